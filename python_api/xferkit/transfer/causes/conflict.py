"""Do the gradients of target and source oppose each other more than two batches of one task do?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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
    interval_text,
    relative,
)

__all__ = ["GradientConflict", "GroupConflict", "gradient_conflict"]


@dataclass(frozen=True)
class GroupConflict:
    """One group of parameters (a layer, or the whole model).

    Attributes:
        name: of the group.
        flag: whether the cosine is below 0 and below its null, at a confidence adjusted for the number of
            groups.
        cosine: of target and source, mean over looks, over seeds.
        null: what the cosine would be if both tasks had one gradient and the noise of their batches, over
            seeds.
        difference: cosine - null, paired over seeds.
        negative_share: share of looks (of all seeds) with a cosine below 0.
        first_step: first of two looks in a row (or of the only one) at each of which the interval of cosine -
            null over seeds lies below 0, not adjusted for the number of looks; None: there is none, or one
            seed.
        cosine_by_look, null_by_look: means over seeds at each look.
    """

    name: str
    flag: Flag
    cosine: Interval
    null: Interval
    difference: Interval
    negative_share: float
    first_step: int | None
    cosine_by_look: tuple[float, ...]
    null_by_look: tuple[float, ...]


@dataclass(frozen=True)
class GradientConflict(Cause):
    """Conflict of a source with the target, by group.

    Attributes:
        target, source: names of the tasks.
        groups: one record a group, in the order given.
        steps: of the looks.
        confidence: of the intervals.
    """

    cause: ClassVar[str] = "gradient conflict"
    target: str
    source: str
    groups: tuple[GroupConflict, ...]
    steps: tuple[int, ...]
    confidence: float

    @property
    def worst(self) -> GroupConflict:
        """The group furthest below its null, of those with the flag of the whole."""
        return max((g for g in self.groups if g.flag == self.flag), key=_effect)

    def sentence(self) -> str:
        """One plain sentence with the numbers of the worst group."""
        group = self.worst
        flagged = sum(g.flag == "yes" for g in self.groups)
        start = {
            "yes": f"The gradients of {self.source} oppose those of {self.target} in {flagged} of "
            f"{len(self.groups)} groups of parameters",
            "no": f"The gradients of {self.source} do not oppose those of {self.target}",
            "not clear": f"It is not clear whether the gradients of {self.source} oppose those of "
            f"{self.target}",
        }[self.flag]
        first = (
            f", and below its null from step {group.first_step} on" if group.first_step is not None else ""
        )
        below = group.difference.mean < 0.0
        place = "the group furthest below its null" if below else "where it is lowest against its null"
        return (
            f"{start}: in {group.name}, {place}, the cosine is "
            f"{group.cosine.mean:.2f} where two batches of one task have {group.null.mean:.2f}, a "
            f"difference of {interval_text(group.difference, self.confidence)}; it is below 0 in "
            f"{100 * group.negative_share:.0f} % of looks{first if self.flag == 'yes' else ''}."
        )


def gradient_conflict(
    pair: npt.ArrayLike,
    null_target: npt.ArrayLike,
    null_source: npt.ArrayLike,
    *,
    steps: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    target: str = "target",
    source: str = "source",
    confidence: float = 0.95,
) -> GradientConflict:
    r"""Cosines of target and source against those of two batches of one task, by group.

    With gradients g + noise, two batches of task i have a mean cosine near :math:`\rho_i = |g_i|^2 / (|g_i|^2
    + \sigma_i^2)`, and batches of two tasks near :math:`\cos(g_t, g_s) \sqrt{\rho_t \rho_s}`. The null is
    that of one common direction,

    .. math:: \mathrm{null} = \sqrt{\max(0, \bar\rho_t) \max(0, \bar\rho_s)}

    by seed, from means over its looks. A group is flagged *yes* where the t-intervals over seeds of the
    cosine and of cosine - null both lie below 0, *no* where one of them lies above 0, at a confidence of 1 -
    (1 - confidence) / num_groups (Bonferroni), so that `confidence` holds for all groups together.

    Args:
        pair: ``[seeds, looks, groups]``, cosines of a batch of the target with one of the source.
        null_target: ``[seeds, looks, groups]``, of two batches of the target, **each as large as those of
            pair**; of two halves of one batch, where pair takes halves too.
        null_source: the same of the source.
        steps: step of each look; None: 1, 2, ….
        groups: names; None: ``"group 1"``, …, or ``"model"`` for a single one.
        target, source: names of the tasks.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: shapes that differ, a cosine that is not finite or not in [-1, 1], names or steps that do
            not fit.

    Source: Wang, Lipton and Tsvetkov (2020), On negative interference in multilingual models, section 3
    (batches of one language as control); Spearman (1904) for the attenuation by noise.
    """
    given = {"pair": pair, "null_target": null_target, "null_source": null_source}
    cosines = {name: _cosines(name, values) for name, values in given.items()}
    shape = cosines["pair"].shape
    for name, values in cosines.items():
        if values.shape != shape:
            raise ValueError(
                f"gradient_conflict: {name} must have pair's shape {list(shape)}, got {list(values.shape)}"
            )
    default = ["model"] if shape[2] == 1 else [f"group {n}" for n in range(1, shape[2] + 1)]
    names = list(groups) if groups is not None else default
    at = list(steps) if steps is not None else list(range(1, shape[1] + 1))
    if len(names) != shape[2]:
        raise ValueError(f"gradient_conflict: groups must be {shape[2]} names, got {len(names)}")
    if len(at) != shape[1] or any(b <= a for a, b in itertools.pairwise(at)):
        raise ValueError(f"gradient_conflict: steps must be {shape[1]} rising numbers, got {at}")
    found = tuple(
        _group(name, [values[:, :, k] for values in cosines.values()], at, confidence, shape[2])
        for k, name in enumerate(names)
    )
    flag = all_flags([group.flag for group in found])
    effect = max(_effect(group) for group in found if group.flag == flag)
    return GradientConflict(flag, effect, target, source, found, tuple(at), confidence)


def _group(
    name: str, cosines: Sequence[Floats], steps: Sequence[int], confidence: float, groups: int
) -> GroupConflict:
    pair, target, source = cosines
    cosine = pair.mean(1)
    null = _null(target.mean(1), source.mean(1))
    difference = cosine - null
    adjusted = 1.0 - (1.0 - confidence) / groups
    flags = [flag_above(t_interval((-x).tolist(), adjusted)) for x in (cosine, difference)]
    flag: Flag = "no" if "no" in flags else "not clear" if "not clear" in flags else "yes"
    null_by_look = _null(target, source)
    below = pair - null_by_look
    low = [_lies_below(t_interval(look.tolist(), confidence)) for look in below.T]
    stays = [a and b for a, b in itertools.pairwise(low)] if len(low) > 1 else low
    first = steps[stays.index(True)] if True in stays else None
    return GroupConflict(
        name,
        flag,
        t_interval(cosine.tolist(), confidence),
        t_interval(null.tolist(), confidence),
        t_interval(difference.tolist(), confidence),
        float((pair < 0.0).mean()),
        first,
        tuple(pair.mean(0).tolist()),
        tuple(null_by_look.mean(0).tolist()),
    )


def _null(target: Floats, source: Floats) -> Floats:
    return np.asarray(np.sqrt(np.maximum(target, 0.0) * np.maximum(source, 0.0)), dtype=np.float64)


def _lies_below(interval: Interval) -> bool:
    return not math.isnan(interval.half_width) and interval.high < 0.0


def _effect(group: GroupConflict) -> float:
    return relative(-group.difference.mean, 1.0 + group.null.mean)


def _cosines(name: str, values: npt.ArrayLike) -> Floats:
    array = finite("gradient_conflict", name, values, "seeds, looks, groups")
    if np.abs(array).max() > 1.0 + 1e-6:
        raise ValueError(f"gradient_conflict: {name} must be cosines in [-1, 1], got {np.abs(array).max():g}")
    return array
