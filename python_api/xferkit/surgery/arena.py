"""The tasks' gradients side by side in one tensor, written there by autograd itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from xfercore import combine_gradients, task_gram
from xferkit.surgery.grouping import Grouping, group_names
from xferkit.surgery.shared import Shared, SharedParameters

__all__ = ["TaskGradients"]

#: Every parameter begins at a multiple of so many elements: 32 bytes of a half type, 64 of float32.
_ALIGNMENT = 16


class TaskGradients:
    """Gradients of several tasks: row r of ``data`` holds those of the r-th task of this step.

    While a task is differentiated, every shared parameter's ``.grad`` *is* a view of the task's row, set to zero
    before, so that autograd accumulates there: nothing is cloned or joined. Rows go to tasks as they come; one that
    is absent costs nothing. Other parameters (heads) get their gradients as ever::

        grads = TaskGradients(encoder, num_tasks=2)
        with grads.collecting("de"):
            loss_de.backward(retain_graph=True)
        with grads.collecting("fr"):
            loss_fr.backward()
        grads.combine(weights_of(grads.gram()))  # into every parameter's .grad

    A task may be collected several times (parts of a batch): its gradients add up.

    Args:
        shared: a module, or names and parameters; frozen ones are left out. One dtype, one device.
        num_tasks: most tasks of a step.
        grouping: see :func:`group_names`.
        owner: whose errors these are.

    Attributes:
        groups: names of the groups, in the order of their first parameters.
        layout: names of the parameters in the order of their columns, group by group.
        offsets: ``int64[num_groups + 1]``: group k holds columns ``offsets[k]`` to ``offsets[k + 1]``.
        data: ``[num_tasks, numel]``: parameters begin at multiples of 16 elements, with zeros between.

    Raises:
        ValueError: parameters that cannot stand in one tensor (named), an unknown grouping, ``num_tasks`` below 1.
        RuntimeError: parameters that are cut over processes.
    """

    def __init__(
        self,
        shared: Shared | SharedParameters,
        num_tasks: int,
        *,
        grouping: Grouping = "model",
        owner: str = "TaskGradients",
    ) -> None:
        if num_tasks < 1:
            raise ValueError(f"{owner}: num_tasks must be at least 1, got {num_tasks}")
        self.owner = owner
        self.shared = shared if isinstance(shared, SharedParameters) else SharedParameters(owner, shared)
        of = group_names(self.shared.names, grouping)
        self.groups: tuple[str, ...] = tuple(dict.fromkeys(of))
        order = [n for group in self.groups for n, name in enumerate(of) if name == group]
        self.layout: tuple[str, ...] = tuple(self.shared.names[n] for n in order)
        self._parameters = [self.shared.parameters[n] for n in order]
        self._starts, bounds, column = [], [0], 0
        for place, n in enumerate(order):
            self._starts.append(column)
            column += -(-self._parameters[place].numel() // _ALIGNMENT) * _ALIGNMENT
            if place + 1 == len(order) or of[order[place + 1]] != of[n]:
                bounds.append(column)
        device, dtype = self.shared.device, self.shared.dtype
        self.offsets = torch.tensor(bounds, dtype=torch.int64, device=device)
        self.data = torch.empty((num_tasks, column), dtype=dtype, device=device)
        self._views: dict[int, list[Tensor]] = {}
        self._rows: dict[str, int] = {}
        self._touched = [False] * len(order)
        self._combined: tuple[Tensor, list[Tensor]] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of this step, in the order of their rows."""
        return tuple(self._rows)

    @property
    def num_rows(self) -> int:
        """How many tasks have a row in this step."""
        return len(self._rows)

    def fits(self) -> bool:
        """Whether the parameters are still where the arena is, in its dtype."""
        return self.data.device == self.shared.device and self.data.dtype == self.shared.dtype

    def gradients(self, task: str) -> dict[str, Tensor]:
        """Views of the task's gradients by parameter name, each of its parameter's shape."""
        return dict(zip(self.layout, self._views_of(self._rows[task]), strict=True))

    def row(self, task: str) -> int:
        """The task's row, a new one of zeros where it has none yet.

        Raises:
            ValueError: all rows are taken.
        """
        if task not in self._rows:
            row = len(self._rows)
            if row == len(self.data):
                raise ValueError(f"{self.owner}: there are {row} rows, and {task!r} would be one task more")
            self.data[row].zero_()
            self._rows[task] = row
        return self._rows[task]

    @contextmanager
    def collecting(self, task: str) -> Iterator[None]:
        """Backward passes inside write the shared parameters' gradients into the task's row; ``.grad`` comes back.

        Raises:
            RuntimeError: no shared parameter got a gradient, or a hook took one away. Whatever goes wrong inside,
                everything collected in this step is dropped.
        """
        row = self.row(task)
        views = self._views_of(row)
        kept = [p.grad for p in self._parameters]
        before = [view._version for view in views]
        taken = None
        try:
            for p, view in zip(self._parameters, views, strict=True):
                p.grad = view
            yield
            for name, p, view in zip(self.layout, self._parameters, views, strict=True):
                if p.grad is not view:
                    taken = name
                    break
        except BaseException:
            self.clear()
            raise
        finally:
            for p, grad in zip(self._parameters, kept, strict=True):
                p.grad = grad
        # Each view counts the writes to it: a parameter that no task touches keeps its .grad as it was.
        touched = [view._version != version for view, version in zip(views, before, strict=True)]
        if taken is not None or not any(touched):
            self.clear()
            if taken is not None:
                raise RuntimeError(
                    f"{self.owner}: the gradient of {taken!r} was replaced during the backward pass of {task!r}; "
                    "expected no hook that takes gradients or steps in it"
                )
            raise RuntimeError(
                f"{self.owner}: the loss of {task!r} reaches no shared parameter; expected one computed from them"
            )
        self._touched = [old or new for old, new in zip(self._touched, touched, strict=True)]

    def add(self, tasks: Sequence[str], gradients: Sequence[Tensor | None]) -> None:
        """Add gradients that were computed elsewhere.

        Args:
            tasks: t tasks.
            gradients: for each parameter, in the order of ``shared.parameters``, ``[t, *shape]``, or None.
        """
        rows = [self.row(task) for task in tasks]
        place = {id(p): n for n, p in enumerate(self._parameters)}
        for p, gradient in zip(self.shared.parameters, gradients, strict=True):
            if gradient is None:
                continue
            n = place[id(p)]
            self._touched[n] = True
            if p.is_contiguous() and rows == list(range(rows[0], rows[0] + len(rows))):
                start = self._starts[n]
                block = self.data[rows[0] : rows[0] + len(rows), start : start + p.numel()]
                block += gradient.reshape(len(rows), -1)
            else:
                for row, one in zip(rows, gradient, strict=True):
                    self._views_of(row)[n].add_(one)

    def gram(self) -> Tensor:
        """``float64[num_groups, t, t]``: inner products of the gradients of this step's t tasks, group by group."""
        return task_gram(self.data[: self.num_rows], self.offsets)

    def combine(self, weights: Tensor) -> None:
        """Put ``sum_j weights[k, j] * gradient_j`` into the parameters' ``.grad``, and forget this step's tasks.

        It is added to a ``.grad`` that is there, as ``backward()`` would. Where none is, ``.grad`` becomes a view of
        one tensor that the next step writes to again: keep a clone, not the view. A parameter that no task touched
        is left alone.

        Args:
            weights: ``float64[num_groups, t]``.
        """
        fresh = all(p.grad is None for p in self._parameters)
        if fresh and self._combined is None:
            out = torch.empty_like(self.data[0])
            self._combined = out, self._split(out)
        rows = self.data[: self.num_rows]
        if fresh and self._combined is not None:
            out, views = self._combined
            combine_gradients(rows, self.offsets, weights, out)
        else:
            total = combine_gradients(rows, self.offsets, weights)
            assert isinstance(total, Tensor)
            views = self._split(total)
        with torch.no_grad():
            for p, view, touched in zip(self._parameters, views, self._touched, strict=True):
                if touched:
                    p.grad = view if p.grad is None else p.grad.add_(view)
        self.clear()

    def clear(self) -> None:
        """Forget this step's tasks; nothing is freed or written."""
        self._rows = {}
        self._touched = [False] * len(self._touched)

    def _views_of(self, row: int) -> list[Tensor]:
        if row not in self._views:
            self._views[row] = self._split(self.data[row])
        return self._views[row]

    def _split(self, row: Tensor) -> list[Tensor]:
        # .data gives each view a count of its own of the writes to it, which views of one tensor otherwise share.
        return [
            _laid_out(row[start : start + p.numel()], p).data
            for start, p in zip(self._starts, self._parameters, strict=True)
        ]


def _laid_out(flat: Tensor, p: Tensor) -> Tensor:
    """A view of the parameter's shape, in its order in memory (channels last, say), as optimisers want gradients."""
    order = sorted(range(p.dim()), key=lambda dim: -p.stride()[dim])
    if p.is_contiguous() or not p.permute(order).is_contiguous():
        return flat.view(p.shape)
    return flat.view([p.shape[dim] for dim in order]).permute([order.index(dim) for dim in range(p.dim())])
