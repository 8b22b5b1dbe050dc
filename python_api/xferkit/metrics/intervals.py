"""Means over repeated runs (seeds), their Student t-intervals, and what an interval allows one to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

__all__ = ["Interval", "Verdict", "interval_record", "paired_difference", "t_interval", "verdict"]

#: What a difference and its interval allow one to say.
Verdict = Literal["helps", "hurts", "no clear difference", "one run only"]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` runs with a symmetric interval; `half_width` is NaN when `n` is 1."""

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        """Lower end, mean - half_width."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end, mean + half_width."""
        return self.mean + self.half_width


def interval_record(interval: Interval | None) -> dict[str, Any] | None:
    """An interval as JSON holds it: mean, low, high and n; the ends of a single run are None, as JSON has no NaN."""
    if interval is None:
        return None
    known = not math.isnan(interval.half_width)
    return {
        "mean": interval.mean,
        "low": interval.low if known else None,
        "high": interval.high if known else None,
        "n": interval.n,
    }


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of independent runs with its Student t-interval.

    mean ± t_{(1 + confidence) / 2, n - 1} · s / sqrt(n), with s the sample deviation (divisor n - 1).
    It describes the runs given (seeds of training), not the sampling of test examples.

    Args:
        values: one score per run, at least one.
        confidence: coverage in (0, 1).

    Raises:
        ValueError: no value, a value that is not finite, or `confidence` outside (0, 1).
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"t_interval: values must be of shape [n] with n >= 1, got shape {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError(f"t_interval: values must be finite, got {x.tolist()}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"t_interval: confidence must be in (0, 1), got {confidence}")
    n = int(x.size)
    mean = float(x.mean())
    if n == 1:
        return Interval(mean, math.nan, 1)
    quantile = float(stdtrit(n - 1, (1.0 + confidence) / 2.0))
    return Interval(mean, quantile * float(x.std(ddof=1)) / math.sqrt(n), n)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a_i - b_i with its t-interval, for runs of equal index (the same seed) in both.

    Args:
        a: scores ``[n]`` of the method in question.
        b: scores ``[n]`` of the method compared with, in the same order of seeds.
        confidence: coverage in (0, 1).

    Raises:
        ValueError: different numbers of runs, or as :func:`t_interval`.
    """
    if len(a) != len(b):
        raise ValueError(f"paired_difference: a and b must pair run by run, got {len(a)} and {len(b)} runs")
    return t_interval([x - y for x, y in zip(a, b, strict=True)], confidence)


def verdict(difference: Interval) -> Verdict:
    """Three-way wording: helps (interval above 0), hurts (below 0), or no clear difference (it holds 0).

    A single run has no interval and says nothing: "one run only".
    """
    if math.isnan(difference.half_width):
        return "one run only"
    if difference.low > 0.0:
        return "helps"
    if difference.high < 0.0:
        return "hurts"
    return "no clear difference"
