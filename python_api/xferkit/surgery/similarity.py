"""Records which tasks' gradients point the same way, group by group and step by step, without a wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xferkit.surgery.relatedness import gram_cosines
from xferkit.surgery.similarity_record import SimilarityRecord

__all__ = ["SimilarityRecord", "SimilarityRecorder", "StepInfo"]


class StepInfo(Protocol):
    """What a step of surgery says of itself (:class:`SurgeryInfo`), as far as it is recorded here."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the step's t tasks."""
        ...

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the K groups."""
        ...

    @property
    def gram(self) -> Tensor | None:
        """``[K, t, t]``, inner products of the tasks' gradients."""
        ...

    @property
    def cosine(self) -> Tensor | None:
        """``[K, t, t]``, not NaN where surgery visited a pair."""
        ...

    @property
    def moved(self) -> Tensor | None:
        """Bool ``[K, t, t]``, where it changed a gradient."""
        ...


class SimilarityRecorder:
    r"""Keeps the pairwise similarity of the tasks' gradients over a training (Wang, thesis, chapter 6).

    .. math:: s_{kij} = \frac{\langle g_{ki}, g_{kj} \rangle}{\lVert g_{ki} \rVert \lVert g_{kj} \rVert}
        = \frac{G_{kij}}{\sqrt{G_{kii} G_{kjj}}}

    for each group k of parameters and for the whole model, from the Gram matrices G that surgery has anyway::

        recorder = SimilarityRecorder(window=100)
        for step, batch in enumerate(batches, 1):
            recorder(surgery.backward(losses(batch)), step)
            optimizer.step()
        recorder.record().save("similarity.npz")

    A step costs a copy of the Gram matrix on its device. Every ``flush_every`` steps, and when the record is asked
    for, all copies go to the host at once and are averaged into windows of ``window`` steps. Where there are more
    than ``max_windows`` of these, neighbours are joined and windows span twice as many steps, so that memory stays
    bounded however long the training. Tasks may come and go: a pair's mean is over the steps that had both.

    Args:
        window: steps of a window, to begin with.
        max_windows: most windows kept.
        flush_every: steps between transfers to the host.

    Raises:
        ValueError: an argument below 1.
    """

    def __init__(self, *, window: int = 50, max_windows: int = 128, flush_every: int = 64) -> None:
        for name, value in (("window", window), ("max_windows", max_windows), ("flush_every", flush_every)):
            if value < 1:
                raise ValueError(f"SimilarityRecorder: {name} must be at least 1, got {value}")
        self._window, self._max_windows, self._flush_every = window, max_windows, flush_every
        self._tasks: dict[str, int] = {}
        self._groups: tuple[str, ...] | None = None
        self._step = 0
        self._pending: list[tuple[int, tuple[str, ...], tuple[Tensor, Tensor, Tensor]]] = []
        self._windows: dict[int, _Window] = {}

    @classmethod
    def resume(
        cls, record: SimilarityRecord, *, max_windows: int = 128, flush_every: int = 64
    ) -> SimilarityRecorder:
        """A recorder that goes on behind the last step of a record, such as one that was loaded."""
        recorder = cls(window=record.window, max_windows=max_windows, flush_every=flush_every)
        recorder._tasks = {task: n for n, task in enumerate(record.tasks)}
        recorder._groups = record.groups or None
        for w, last in enumerate(record.last.tolist()):
            recorder._windows[(last - 1) // record.window] = _Window.of(record, w)
            recorder._step = last
        return recorder

    def __call__(self, info: StepInfo, step: int | None = None) -> None:
        """Take a step of surgery.

        Args:
            info: what ``surgery.backward(...)`` returned.
            step: its number, not below the last one; None: the next.

        Raises:
            ValueError: a method that takes no gradients apart, or as :meth:`add`.
        """
        if info.gram is None:
            raise ValueError(
                "SimilarityRecorder: this step has no Gram matrix; expected a method that takes the tasks' gradients "
                "apart (Sum does not)"
            )
        self.add(info.gram, info.tasks, info.groups, step=step, cosine=info.cosine, moved=info.moved)

    @torch.no_grad()
    def add(
        self,
        gram: Tensor | npt.ArrayLike,
        tasks: Sequence[str],
        groups: Sequence[str] | None = None,
        *,
        step: int | None = None,
        cosine: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> None:
        """Take the Gram matrices of a step.

        Args:
            gram: ``[K, t, t]``, or ``[t, t]`` for one group, of :func:`xfercore.task_gram`.
            tasks: names of the t tasks, of which other steps may have more or fewer.
            groups: names of the K groups, the same at every step; None: ``("model",)``.
            step: its number, not below the last one; None: the next.
            cosine: ``[K, t, t]``, not NaN where surgery visited a pair; None: no surgery.
            moved: bool ``[K, t, t]``, where it changed a gradient.

        Raises:
            ValueError: shapes that do not fit, a task named twice, other groups than before, a step from before.
        """
        names, kept = tuple(tasks), torch.as_tensor(gram).detach().to(torch.float64, copy=True)
        kept = kept[None] if kept.dim() == 2 else kept
        known = ("model",) if groups is None else tuple(groups)
        self._check(kept, names, known, step)
        for name, tensor in (("cosine", cosine), ("moved", moved)):
            if tensor is not None and tensor.shape != kept.shape:
                raise ValueError(
                    f"SimilarityRecorder: {name} must have the shape of gram {list(kept.shape)}, got "
                    f"{list(tensor.shape)}"
                )
        none = kept.new_zeros(len(known))
        visited = none if cosine is None else (~cosine.isnan()).sum((1, 2)).to(kept)
        active = none if moved is None else moved.sum((1, 2)).to(kept)
        self._groups = known
        self._step = self._step + 1 if step is None else step
        self._pending.append((self._step, names, (kept, visited, active)))
        if len(self._pending) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Move what is still on the device to the host, in one transfer, and average it."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        joined = torch.cat([tensor.flatten() for _, _, three in pending for tensor in three])
        values, at = joined.cpu().numpy(), 0
        for step, tasks, three in pending:
            parts = []
            for tensor in three:
                parts.append(values[at : at + tensor.numel()].reshape(tuple(tensor.shape)))
                at += tensor.numel()
            self._take(step, tasks, *parts)
        while len(self._windows) > self._max_windows:
            self._window *= 2
            halves, self._windows = self._windows, {}
            for number, window in halves.items():
                self._windows.setdefault(number // 2, _Window.empty(len(window.sums) - 1, 0)).join(window)

    def record(self) -> SimilarityRecord:
        """Everything up to now."""
        self.flush()
        k, t = len(self._groups or ()), len(self._tasks)
        windows = [self._windows[number] for number in sorted(self._windows)]
        for window in windows:
            window.grow(t)
        shape = (len(windows), k + 1, t, t)
        sums = np.array([window.sums for window in windows]).reshape(shape)
        counts = np.array([window.counts for window in windows], dtype=np.int64).reshape(shape)
        means = np.full(sums.shape, np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        span = np.array([(window.first, window.last, window.steps) for window in windows], dtype=np.int64)
        tally = np.array([window.tally for window in windows], dtype=np.int64)
        first, last, steps = span.reshape(len(windows), 3).T
        pairs, opposed, visited, moved = tally.reshape(len(windows), 4, k).transpose(1, 0, 2)
        return SimilarityRecord(
            tasks=tuple(self._tasks),
            groups=self._groups or (),
            window=self._window,
            first=first,
            last=last,
            steps=steps,
            cosine=means[:, 1:],
            count=counts[:, 1:],
            model=means[:, 0],
            model_count=counts[:, 0],
            pairs=pairs,
            opposed=opposed,
            visited=visited,
            moved=moved,
        )

    def _check(self, gram: Tensor, tasks: tuple[str, ...], groups: tuple[str, ...], step: int | None) -> None:
        wanted = [len(groups), len(tasks), len(tasks)]
        if list(gram.shape) != wanted:
            raise ValueError(
                f"SimilarityRecorder: gram must have shape [num_groups, num_tasks, num_tasks] = {wanted}, got "
                f"{list(gram.shape)}"
            )
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"SimilarityRecorder: tasks must be different names, got {', '.join(tasks)}")
        if self._groups is not None and groups != self._groups:
            raise ValueError(
                f"SimilarityRecorder: groups must be those of the steps before ({', '.join(self._groups)}), got "
                f"{', '.join(groups)}"
            )
        if step is not None and step < max(self._step, 1):
            raise ValueError(
                f"SimilarityRecorder: step must be at least {max(self._step, 1)}, the last one recorded, got {step}"
            )

    def _take(self, step: int, tasks: tuple[str, ...], gram: _Array, visited: _Array, active: _Array) -> None:
        for task in tasks:
            self._tasks.setdefault(task, len(self._tasks))
        k, t = len(gram), len(self._tasks)
        window = self._windows.setdefault((step - 1) // self._window, _Window.empty(k, t))
        window.grow(t)
        places = np.array([self._tasks[task] for task in tasks], dtype=np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            cosines = gram_cosines(np.concatenate([gram.sum(0, keepdims=True), gram]))
        seen = np.isfinite(cosines)
        block = (slice(None), places[:, None], places[None, :])
        window.sums[block] += np.where(seen, cosines, 0.0)
        window.counts[block] += seen
        upper = np.triu(np.ones(gram.shape[1:], dtype=bool), 1)
        pairs = (seen[1:] & upper).sum((1, 2))
        opposed = ((cosines[1:] < 0) & upper).sum((1, 2))
        window.tally += np.stack([pairs, opposed, visited, active]).astype(np.int64)
        window.first, window.last = min(window.first, step), max(window.last, step)
        window.steps += 1


_Array = npt.NDArray[Any]
_FAR = 2**62


@dataclass
class _Window:
    """Sums over the steps of one window; place 0 of the groups is the whole model."""

    first: int
    last: int
    steps: int
    sums: _Array
    counts: _Array
    tally: _Array

    @classmethod
    def empty(cls, num_groups: int, num_tasks: int) -> _Window:
        shape = (num_groups + 1, num_tasks, num_tasks)
        counts, tally = np.zeros(shape, np.int64), np.zeros((4, num_groups), np.int64)
        return cls(_FAR, -1, 0, np.zeros(shape), counts, tally)

    @classmethod
    def of(cls, record: SimilarityRecord, w: int) -> _Window:
        counts = np.concatenate([record.model_count[w, None], record.count[w]])
        means = np.concatenate([record.model[w, None], record.cosine[w]])
        tally = np.stack([record.pairs[w], record.opposed[w], record.visited[w], record.moved[w]])
        sums = np.where(counts > 0, means, 0.0) * counts
        return cls(int(record.first[w]), int(record.last[w]), int(record.steps[w]), sums, counts, tally)

    def grow(self, num_tasks: int) -> None:
        more = num_tasks - self.sums.shape[1]
        if more > 0:
            pad = ((0, 0), (0, more), (0, more))
            self.sums, self.counts = np.pad(self.sums, pad), np.pad(self.counts, pad)

    def join(self, other: _Window) -> None:
        size = max(self.sums.shape[1], other.sums.shape[1])
        self.grow(size)
        other.grow(size)
        self.sums, self.counts = self.sums + other.sums, self.counts + other.counts
        self.tally = self.tally + other.tally
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.steps += other.steps
