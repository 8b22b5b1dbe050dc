"""Does one task drown the others? Shares of gradient norm, loss and samples against equal ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from xferkit.metrics.intervals import Interval, t_interval
from xferkit.transfer.causes.cause import (
    Cause,
    Flag,
    Floats,
    all_flags,
    finite,
    flag_above,
    relative,
)
from xferkit.transfer.causes.shares import share_text, times_text

__all__ = ["Domination", "TaskShare", "domination"]


@dataclass(frozen=True)
class TaskShare:
    """One task among the others.

    Attributes:
        name: of the task.
        flag: whether its share of the gradient norm is above `limit`.
        norm_share: share of the sum of the tasks' gradient norms.
        fair_share: what it should be.
        limit: share at which its odds are `factor` times the fair ones.
        log_norm_ratio: log of its gradient norm over the geometric mean of the other tasks' norms; null 0.
        log_loss_ratio: the same of losses; None where they were not given.
        sampling_share: of the samples; None where they were not given.
    """

    name: str
    flag: Flag
    norm_share: Interval
    fair_share: float
    limit: float
    log_norm_ratio: Interval
    log_loss_ratio: Interval | None
    sampling_share: float | None


@dataclass(frozen=True)
class Domination(Cause):
    """Shares of all tasks.

    Attributes:
        tasks: in the order given.
        target: task that a domination would hurt; None: any.
        over: what the intervals are over.
        confidence: of the intervals.
        factor: how many times its fair odds a task may have.
    """

    cause: ClassVar[str] = "domination"
    tasks: tuple[TaskShare, ...]
    target: str | None
    over: Literal["seeds", "looks"]
    confidence: float
    factor: float

    @property
    def largest(self) -> TaskShare:
        """The task other than the target with the largest excess over its fair share."""
        others = [task for task in self.tasks if task.name != self.target]
        return max(others, key=lambda task: task.norm_share.mean - task.fair_share)

    def sentence(self) -> str:
        """One plain sentence on the task with the largest excess."""
        task = self.largest
        start = {
            "yes": f"{task.name} dominates",
            "no": f"No task{' but the target' if self.target else ''} dominates: {task.name}, the first,",
            "not clear": f"It is not clear whether {task.name} dominates: it",
        }[self.flag]
        more = [f"{times_text(task.log_norm_ratio.mean)} the norm of the others"]
        if task.log_loss_ratio is not None:
            more.append(f"{times_text(task.log_loss_ratio.mean)} their loss")
        if task.sampling_share is not None:
            more.append(f"{100 * task.sampling_share:.0f} % of the samples")
        joined = more[0] if len(more) == 1 else f"{', '.join(more[:-1])} and {more[-1]}"
        verb = ": it has" if self.flag == "yes" else " has"
        return (
            f"{start}{verb} a share of the gradient norms of "
            f"{share_text(task.norm_share, self.confidence, self.over)} where {task.fair_share:.2f} is "
            f"fair and {task.limit:.2f} the limit, with {joined}."
        )


def domination(
    gradient_norms: npt.ArrayLike,
    tasks: Sequence[str],
    *,
    losses: npt.ArrayLike | None = None,
    samples: npt.ArrayLike | None = None,
    fair_shares: npt.ArrayLike | None = None,
    target: str | None = None,
    factor: float = 2.0,
    confidence: float = 0.95,
) -> Domination:
    r"""Shares of gradient norm against fair ones, with ratios of norms and losses and shares of samples.

    The share of task i is the mean over looks of :math:`n_i / \sum_j n_j`, with a t-interval over seeds, or
    over looks where there is one seed (looks of one training depend on each other: that interval is too
    narrow). Its limit is where the odds :math:`s / (1 - s)` are `factor` times those of the fair share f,
    :math:`cf / (1 - f + cf)`: about c · f of many tasks, and a share of 2/3 of two, of which twice the fair
    share would be everything. *yes*: the interval lies above the limit; *no*: below. The target's own share
    is shown and never flagged. Ratios are :math:`\log n_i - \mathrm{mean}_{j \ne i} \log n_j`, whose null is
    0 (ratio 1).

    Args:
        gradient_norms: ``[seeds, looks, tasks]``, at least 0, of the tasks' gradients as they are added up:
            with their weights in the loss.
        tasks: two or more names.
        losses: ``[seeds, looks, tasks]``, at least 0, with their weights.
        samples: ``[tasks]``, how many of each task were drawn.
        fair_shares: ``[tasks]``, scaled to a sum of 1; None: equal.
        target: name of the task that is to be helped.
        factor: c, above 1.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: shapes that do not fit, a number not finite or below 0, a look of which all norms are 0,
            an unknown target, `factor` not above 1.

    Source: Chen et al. (2018), GradNorm; Yu et al. (2020), Gradient surgery for multi-task learning
    (differences in gradient magnitude).
    """
    norms = finite("domination", "gradient_norms", gradient_norms, "seeds, looks, tasks", low=0.0)
    names, count = list(tasks), norms.shape[2]
    if count < 2 or len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"domination: tasks must be two or more different names, one for each of gradient_norms' "
            f"{count} tasks, got {', '.join(names) or 'none'}"
        )
    if target is not None and target not in names:
        raise ValueError(f"domination: target must be one of {', '.join(names)}, got {target}")
    if not factor > 1.0:
        raise ValueError(f"domination: factor must be above 1, got {factor}")
    totals = norms.sum(2, keepdims=True)
    if not totals.all():
        raise ValueError("domination: gradient_norms must not all be 0 at a look")
    kept = None if losses is None else finite("domination", "losses", losses, "seeds, looks, tasks", low=0.0)
    if kept is not None and kept.shape != norms.shape:
        raise ValueError(
            f"domination: losses must have gradient_norms' shape {list(norms.shape)}, got {list(kept.shape)}"
        )
    fair = _shares("fair_shares", np.ones(count) if fair_shares is None else fair_shares, count)
    drawn = None if samples is None else _shares("samples", samples, count)
    share = norms / totals
    found = []
    for i, name in enumerate(names):
        limit = float(factor * fair[i] / (1.0 - fair[i] + factor * fair[i]))
        values = _runs(share[:, :, i])
        above = t_interval([value - limit for value in values], confidence)
        found.append(
            TaskShare(
                name,
                "no" if name == target else flag_above(above),
                t_interval(values, confidence),
                float(fair[i]),
                limit,
                _log_ratio(norms, i, confidence),
                None if kept is None else _log_ratio(kept, i, confidence),
                None if drawn is None else float(drawn[i]),
            )
        )
    others = [task for task in found if task.name != target]
    flag = all_flags([task.flag for task in others])
    effect = max(relative(t.norm_share.mean - t.fair_share, 1.0 - t.fair_share) for t in others)
    over: Literal["seeds", "looks"] = "seeds" if norms.shape[0] > 1 else "looks"
    return Domination(flag, effect, tuple(found), target, over, confidence, factor)


def _runs(values: Floats) -> list[float]:
    """One number a seed, or one a look of the only seed."""
    return [float(x) for x in (values.mean(1) if len(values) > 1 else values[0])]


def _log_ratio(values: Floats, i: int, confidence: float) -> Interval:
    logs = np.log(np.maximum(values, 1e-30))
    others = np.delete(logs, i, axis=2).mean(2)
    return t_interval(_runs(logs[:, :, i] - others), confidence)


def _shares(name: str, values: npt.ArrayLike, count: int) -> Floats:
    array = finite("domination", name, values, "tasks", low=0.0)
    if array.size != count or not array.sum() > 0.0:
        raise ValueError(
            f"domination: {name} must be {count} numbers, not all of them 0, got {array.tolist()}"
        )
    return np.asarray(array / array.sum(), dtype=np.float64)
