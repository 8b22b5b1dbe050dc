"""What the gains of a few seeds allow one to say: p-values, Holm over all comparisons, verdicts, missing seeds.

A *gain* is the score with a source minus the score without, both of one seed, turned so that positive means "helps".
Its interval over seeds is Student's paired one. A bootstrap over seeds is not offered: resampling 3 to 5 values
cannot show how far the mean of other seeds would lie, and its 95 % interval covers 73 to 83 % of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import stdtr, stdtrit

from xferkit.metrics.intervals import Interval, t_interval

__all__ = ["MAX_MORE_SEEDS", "Judgement", "Verdict", "holm", "judge", "more_seeds", "paired_p_value"]

#: More missing seeds than this are not counted: "more than 100".
MAX_MORE_SEEDS = 100

# Gains that differ by less than this share of their mean differ by rounding alone.
_ROUNDING = 1e-9


class Verdict(StrEnum):
    """Does the source help the target or hurt it?"""

    HELPS = "HELPS"
    HURTS = "HURTS"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Judgement:
    """One comparison among several.

    Attributes:
        interval: mean gain with its paired t-interval, not adjusted for the number of comparisons.
        p: two-sided p-value of "the mean gain is 0", not adjusted.
        holm_p: the same, adjusted by Holm over all comparisons; decides the verdict.
        verdict: HELPS or HURTS where ``holm_p`` is at most 1 - confidence.
        more_seeds: about how many more seeds an INCONCLUSIVE one needs; None: more than 100, or unknown.
        note: why nothing can be said whatever the numbers are, or "".
    """

    interval: Interval
    p: float
    holm_p: float
    verdict: Verdict
    more_seeds: int | None
    note: str = ""

    def phrase(self) -> str:
        """The verdict and, when there is none, what is missing."""
        if self.verdict is not Verdict.INCONCLUSIVE:
            return self.verdict.value
        return f"{self.verdict.value} ({self.missing()})"

    def missing(self) -> str:
        """What an INCONCLUSIVE comparison lacks."""
        if self.note:
            return self.note
        i = self.interval
        alone = "clear by itself, not after Holm; " if i.low > 0.0 or i.high < 0.0 else ""
        if self.more_seeds is None:
            return f"{alone}needs more than {MAX_MORE_SEEDS} more seeds"
        return f"{alone}needs about {self.more_seeds} more seed{'' if self.more_seeds == 1 else 's'}"


def paired_p_value(gains: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test that the mean gain is 0.

    2 · P(T_{n-1} <= -|t|) with t = mean · sqrt(n) / s. It is 1 for a single gain and for gains that do not vary,
    of which the test can say nothing.

    Args:
        gains: one a seed, at least one.

    Raises:
        ValueError: no gain, or one that is not finite.

    Source: Student (1908), The probable error of a mean.
    """
    x = _checked(gains, "paired_p_value")
    if x.size == 1 or _constant(x):
        return 1.0
    t = float(x.mean()) * math.sqrt(x.size) / float(x.std(ddof=1))
    return min(1.0, 2.0 * float(stdtr(x.size - 1, -abs(t))))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted so that all those at most α are true but for a chance of α, however they depend.

    With p_(1) <= … <= p_(m): adjusted p_(i) = min(1, max_{j <= i} (m - j + 1) · p_(j)).

    Args:
        p_values: one a comparison, in any order.

    Returns:
        The adjusted values in the order of ``p_values``.

    Raises:
        ValueError: a value outside [0, 1].

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0.0) & (p <= 1.0)).all():
        raise ValueError(f"holm: p_values must be a list of numbers in [0, 1], got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, stepped)
    return tuple(adjusted.tolist())


def more_seeds(gains: Sequence[float], alpha: float = 0.05) -> int | None:
    """About how many more seeds would put 0 outside the interval, if mean and deviation stay what they are.

    The smallest k >= 1 with t_{1 - alpha/2, n+k-1} · s / sqrt(n + k) < |mean|. As the mean will move, that many
    seeds decide in about half of the cases.

    Args:
        gains: one a seed, at least one.
        alpha: 1 - confidence of the interval, in (0, 1).

    Returns:
        k, or None when 100 more would not do, or when gains that do not vary (or a single one) tell nothing.

    Raises:
        ValueError: no gain, one that is not finite, or ``alpha`` outside (0, 1).
    """
    x = _checked(gains, "more_seeds")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"more_seeds: alpha must be in (0, 1), got {alpha}")
    if x.size == 1 or _constant(x):
        return None
    n = x.size + np.arange(1, MAX_MORE_SEEDS + 1)
    half_width = stdtrit(n - 1, 1.0 - alpha / 2.0) * float(x.std(ddof=1)) / np.sqrt(n)
    enough = np.flatnonzero(half_width < abs(float(x.mean())))
    return int(enough[0]) + 1 if enough.size else None


def judge(gains: Sequence[Sequence[float]], confidence: float = 0.95) -> tuple[Judgement, ...]:
    """Verdicts of all comparisons together: with probability `confidence` or more, none of them is false.

    A comparison HELPS or HURTS where its p-value under :func:`holm` is at most 1 - confidence, by the sign of the
    mean. Gains of one seed, and gains that are the same in all seeds (a training that does not use its seed),
    are INCONCLUSIVE whatever their size; they count as comparisons all the same.

    Args:
        gains: for each comparison its gains, one a seed; positive means "helps".
        confidence: of the intervals, and 1 minus the chance of any false verdict; in (0, 1).

    Raises:
        ValueError: a comparison without gains, a gain that is not finite, or `confidence` outside (0, 1).
    """
    alpha = 1.0 - confidence
    intervals = [t_interval(values, confidence) for values in gains]
    p_values = [paired_p_value(values) for values in gains]
    adjusted = holm(p_values)
    decided = [value <= alpha for value in adjusted]
    # The threshold of the first comparison that Holm's procedure could not decide, where it stopped.
    next_alpha = alpha / max(1, len(adjusted) - sum(decided))
    found = []
    for values, interval, p, holm_p, known in zip(gains, intervals, p_values, adjusted, decided, strict=True):
        verdict, missing = Verdict.INCONCLUSIVE, None
        if known:
            verdict = Verdict.HELPS if interval.mean > 0.0 else Verdict.HURTS
        else:
            missing = more_seeds(values, next_alpha)
        found.append(Judgement(interval, p, holm_p, verdict, missing, _note(values)))
    return tuple(found)


def _note(gains: Sequence[float]) -> str:
    x = np.asarray(gains, dtype=np.float64)
    if x.size == 1:
        return "one seed tells nothing about others"
    if not x.any():
        return "no difference in any seed"
    if _constant(x):
        return "the same difference in every seed: too few examples to differ, or a training that does not use its seed"
    return ""


def _constant(x: np.ndarray) -> bool:
    return float(np.ptp(x)) <= _ROUNDING * float(np.abs(x).max())


def _checked(gains: Sequence[float], what: str) -> np.ndarray:
    x = np.asarray(gains, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"{what}: gains must be a list of one or more finite numbers, got {x.tolist()}")
    return x
