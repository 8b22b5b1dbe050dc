"""Shares and ratios in words: no share below 0 or above 1, and no ratio whose digits say nothing."""

from __future__ import annotations

import math

from xferkit.metrics.intervals import Interval
from xferkit.transfer.causes.cause import interval_text

__all__ = ["share_text", "times_text"]

#: Beyond this, and below one over it, the smaller of two numbers is next to nothing and their ratio is noise.
_MOST = 100.0


def share_text(interval: Interval, confidence: float, unit: str = "seeds") -> str:
    """``0.50 (95 % interval 0.00 to 1.00, 3 looks)``: as ``interval_text``, with the ends cut to [0, 1].

    Args:
        interval: a mean of shares; of few and scattered ones a t-interval is wider than shares can be.
        confidence: of the interval.
        unit: what the mean is over.
    """
    if math.isnan(interval.half_width):
        return interval_text(interval, confidence, unit)
    ends = f"{max(0.0, interval.low):.2f} to {min(1.0, interval.high):.2f}"
    return f"{interval.mean:.2f} ({100 * confidence:g} % interval {ends}, {interval.n} {unit})"


def times_text(log_ratio: float) -> str:
    """``2.50 times``, ``over 100 times`` or ``less than 0.01 times``, of the logarithm of a ratio."""
    if log_ratio > math.log(_MOST):
        return f"over {_MOST:g} times"
    if log_ratio < -math.log(_MOST):
        return f"less than {1 / _MOST:g} times"
    return f"{math.exp(log_ratio):.2f} times"
