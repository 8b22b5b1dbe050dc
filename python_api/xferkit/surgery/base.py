"""What all methods of gradient surgery share: losses by task in, one combined gradient out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xferkit.surgery.arena import TaskGradients
from xferkit.surgery.grouping import Grouping, group_names
from xferkit.surgery.info import SurgeryInfo
from xferkit.surgery.passes import BackwardName, batched_pass, choose_pass, without_autocast
from xferkit.surgery.shared import Shared, SharedParameters, refuse_replicas
from xferkit.surgery.state import Axes, SurgeryState
from xferkit.surgery.step import Solution, Step
from xferkit.surgery.tasks import Loss, Losses, TaskNames, check_loss

__all__ = ["Surgery"]

#: Small tensors kept for combinations of tasks that were seen, at most.
_MOST_KEPT = 256


class Surgery(ABC):
    """Takes the tasks' gradients apart and leaves one combined gradient in the shared parameters' ``.grad``.

        surgery = GradVac(model.encoder, tasks=("de", "fr"))
        ...
        optimizer.zero_grad()
        surgery.backward({"de": loss_de, "fr": loss_fr})
        optimizer.step()

    Parameters that are not shared (heads) get their plain gradients from the same passes. What is kept from step to
    step stands in ``state``, a module of buffers, and in :meth:`state_dict` by the names of tasks. A step with a
    gradient that is not finite changes none of it, and the NaN reaches ``.grad``, where a loss scaler or a trainer
    sees it.

    Args:
        shared: a module, or names and parameters; frozen ones are left out.
        tasks: names of all tasks there may be; a step may have losses of some of them.
        grouping: which parameters are treated together, see :func:`group_names`.
        task_weights: weights of the tasks' losses, 1 where not given; they weigh the heads' gradients too.
        backward: ``"loop"``: a backward pass for each task. ``"batched"``: one vectorised pass
            (``is_grads_batched``) of losses that share one graph. ``"auto"``: the first step tries both and keeps the
            faster; name one where a training is to be repeated to the bit.

    Attributes:
        tasks: the tasks' names.
        groups: the groups' names.
        state: what is kept; registered in a model (``model.surgery = surgery.state``) it is saved with it.
        info: what the last step saw and did.

    Raises:
        ValueError: an argument that does not fit, named.
        RuntimeError: parameters that are cut over processes, or several processes.
    """

    #: Whether processes may do this on parts of a batch each, their gradients being averaged afterwards.
    exact_on_replicas = False

    def __init__(
        self,
        shared: Shared,
        tasks: Iterable[str],
        *,
        grouping: Grouping = "model",
        task_weights: Mapping[str, float] | None = None,
        backward: BackwardName = "loop",
    ) -> None:
        self.kind = type(self).__name__
        self._tasks = TaskNames(self.kind, tasks)
        self.tasks = self._tasks.names
        if backward not in get_args(BackwardName):
            raise ValueError(f"{self.kind}: backward must be 'loop', 'batched' or 'auto', got {backward!r}")
        self._asked: BackwardName = backward
        self._passes: Literal["loop", "batched"] | None = None if backward == "auto" else backward
        self.task_weights = self._tasks.weights(task_weights)
        if not self.exact_on_replicas:
            refuse_replicas(self.kind)
        self._shared = SharedParameters(self.kind, shared)
        self._grouping = grouping
        self.groups: tuple[str, ...] = tuple(dict.fromkeys(group_names(self._shared.names, grouping)))
        self.state = SurgeryState(self.kind, self.tasks, self.groups, self._initial_state())
        self.info: SurgeryInfo | None = None
        self._grads: TaskGradients | None = None
        self._losses: dict[str, Tensor] = {}
        self._scaler: Any = None
        self._kept: dict[Any, Tensor] = {}

    # What a method is

    def _initial_state(self) -> dict[str, tuple[Tensor, Axes]]:
        """What is kept from step to step: tensors by name, with what their dimensions are."""
        return {}

    @abstractmethod
    def _solve(self, step: Step) -> Solution:
        """The coefficients of this step. Writes to ``state`` through :meth:`Step.keep`."""

    # A step

    def backward(
        self, losses: Losses, *, scaler: Any = None, retain_graph: bool | None = None
    ) -> SurgeryInfo:
        """Differentiate the losses and put the combined gradient into ``.grad``: :meth:`collect` and :meth:`combine`.

        It is added to a ``.grad`` that is there, as by ``loss.backward()``.

        Args:
            losses: by task, of those that are there; a scalar, or a function that computes it. Functions are called one
                at a time, each before its backward pass, so that the activations of one task are held at once. A graph
                that T losses share is gone through T times in full: texts of different tasks are cheaper, up to T
                times, with a forward pass for each task than in one batch.
            scaler: a :class:`torch.amp.GradScaler`: losses are scaled, and the combined gradient stays scaled, for
                ``scaler.unscale_`` and ``scaler.step``. Norms and Gram matrices are without the scale.
            retain_graph: False: each loss has a graph of its own, which its pass frees. True: all are kept. None: kept
                until the last loss's pass; those of functions are freed.

        Returns:
            What was seen and done, without waiting for it.

        Raises:
            ValueError: an unknown task, no task, a loss that is no scalar, does not require grad or reaches no shared
                parameter, shared parameters that have changed; nothing was changed, unless a function gave that loss.
            RuntimeError: several processes, a hook that takes gradients away, or losses that ``"batched"`` cannot take.
        """
        self.collect(losses, scaler=scaler, retain_graph=retain_graph)
        return self.combine()

    def collect(self, losses: Losses, *, scaler: Any = None, retain_graph: bool | None = None) -> None:
        """Differentiate the losses of a part of a batch; parts add up until :meth:`combine`.

        Arguments and errors are those of :meth:`backward`. When something goes wrong, all parts since the last
        combination are dropped, and the shared parameters' ``.grad`` is as it was.
        """
        if not self.exact_on_replicas:
            refuse_replicas(self.kind)
        self._shared.check()
        given = self._tasks.in_order(losses)
        for name, loss in given:
            if not callable(loss):
                check_loss(self.kind, name, loss, self._shared)
        if self._losses and scaler is not self._scaler:
            raise ValueError(f"{self.kind}: expected one scaler for all parts of a step, got another")
        self._scaler = scaler
        self._follow()
        try:
            self._differentiate(given, retain_graph)
        except BaseException:
            self.discard()
            raise

    @torch.no_grad()
    def combine(self) -> SurgeryInfo:
        """Put the combined gradient of all that was collected into ``.grad``.

        Raises:
            RuntimeError: nothing was collected.
        """
        numbers, losses = self._collected()
        grads = self._grads
        assert grads is not None
        gram = grads.gram()
        if self._scaler is not None:
            one = torch.ones((), dtype=torch.float64, device=gram.device)
            gram = gram / self._scaler.scale(one).square()
        rows = tuple(self._tasks.number(name) for name in grads.tasks)
        if rows != numbers:  # some came with a later part
            order = self._index(tuple(rows.index(n) for n in numbers))
            gram = gram.index_select(1, order).index_select(2, order)
        finite = gram.diagonal(dim1=1, dim2=2).isfinite().all() & losses.isfinite().all()
        index = None if len(numbers) == len(self.tasks) else self._index(numbers)
        solution = self._solve(Step(numbers, index, gram, losses, finite))
        weights = solution.weights
        if rows != numbers:
            weights = weights.index_select(1, self._index(tuple(numbers.index(n) for n in rows)))
        grads.combine(weights)
        return self._finish(numbers, losses, solution, gram)

    def discard(self) -> None:
        """Drop what was collected since the last combination."""
        self._losses, self._scaler = {}, None
        if self._grads is not None:
            self._grads.clear()

    # State

    def state_dict(self) -> dict[str, Any]:
        """What is kept from step to step, by the names of tasks and groups; copies."""
        return {**self.state.collect(), "passes": self._passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a surgery of the same kind, tasks and groups, in whatever order these are.

        Raises:
            ValueError: it is of another kind, other tasks or other groups; nothing was changed.
        """
        self.state.restore(state)
        if self._asked == "auto" and state.get("passes") in ("loop", "batched"):
            self._passes = state["passes"]

    # Details

    def _arena(self) -> TaskGradients:
        if self._grads is None or not self._grads.fits():
            self._grads = TaskGradients(
                self._shared, len(self.tasks), grouping=self._grouping, owner=self.kind
            )
        return self._grads

    def _follow(self) -> None:
        """Go where the shared parameters are: a model may have been moved since."""
        device = self._shared.device
        if any(buffer.device != device for buffer in self.state.buffers()):
            self.state.to(device)
        if self._kept and next(iter(self._kept.values())).device != device:
            self._kept = {}

    def _differentiate(self, given: Sequence[tuple[str, Loss]], retain_graph: bool | None) -> None:
        grads = self._arena()
        tensors = {name: loss for name, loss in given if isinstance(loss, Tensor)}
        if len(tensors) < len(given) and self._asked == "batched":
            raise ValueError(
                f"{self.kind}: backward='batched' needs losses of one graph, got a function; expected tensors, or "
                "backward='loop'"
            )
        if 1 < len(tensors) == len(given) and self._passes != "loop":
            names, scaled = list(tensors), [self._scaled(name, loss) for name, loss in tensors.items()]
            with without_autocast(self._shared.device):
                if self._passes is None and not grads.tasks:
                    self._passes = choose_pass(grads, names, scaled)
                if self._passes == "batched":
                    batched_pass(grads, names, scaled, bool(retain_graph))
            if self._passes == "batched":
                for name, loss in tensors.items():
                    self._count(name, loss)
                return
        last = next(reversed(tensors), None)
        for name, item in given:
            loss = item if isinstance(item, Tensor) else self._computed(name, item)
            keep = isinstance(item, Tensor) and name != last if retain_graph is None else retain_graph
            scaled_loss = self._scaled(name, loss)
            with without_autocast(self._shared.device), grads.collecting(name):
                scaled_loss.backward(retain_graph=keep)
            self._count(name, loss)

    def _computed(self, name: str, function: Callable[[], Tensor]) -> Tensor:
        return check_loss(self.kind, name, function(), self._shared)

    def _scaled(self, name: str, loss: Tensor) -> Tensor:
        weighted = self._weighted(name, loss)
        return weighted if self._scaler is None else self._scaler.scale(weighted)

    def _weighted(self, name: str, loss: Tensor) -> Tensor:
        weight = self.task_weights[self._tasks.number(name)]
        return loss if weight == 1.0 else loss * weight

    def _count(self, name: str, loss: Tensor) -> None:
        value = loss.detach().reshape(()).to(self._shared.device, torch.float64)
        self._losses[name] = self._losses[name] + value if name in self._losses else value

    def _collected(self) -> tuple[tuple[int, ...], Tensor]:
        if not self._losses:
            raise RuntimeError(f"{self.kind}: nothing was collected since the last combination")
        numbers = tuple(sorted(self._tasks.number(name) for name in self._losses))
        return numbers, torch.stack([self._losses[self.tasks[n]] for n in numbers])

    def _index(self, numbers: tuple[int, ...]) -> Tensor:
        return self._keep(numbers, lambda: torch.tensor(numbers, device=self._shared.device))

    def _keep(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """A small tensor, kept on the device: sending it there anew would wait for the device."""
        if key not in self._kept:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = make()
        return self._kept[key]

    def _finish(
        self, numbers: tuple[int, ...], losses: Tensor, solution: Solution, gram: Tensor | None
    ) -> SurgeryInfo:
        names = tuple(self.tasks[n] for n in numbers)
        self.info = SurgeryInfo(
            names, self.groups, solution.weights, losses, gram, solution.cosine, solution.moved
        )
        self.discard()
        return self.info
