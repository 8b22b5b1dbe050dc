"""Numbers as a reader sees them: true minus signs, points for fractions, a dash for what is missing."""

from __future__ import annotations

import math

from xferkit.metrics import Interval

__all__ = [
    "difference",
    "duration",
    "percent",
    "percent_interval",
    "points",
    "signed",
    "signed_interval",
    "spread",
]

_MINUS = "\N{MINUS SIGN}"
_DASH = "\N{EN DASH}"


def percent(fraction: float, digits: int = 1) -> str:
    """0.6183 -> "61.8"; a value that is not a number -> a dash."""
    return _signless(100.0 * fraction, digits)


def percent_interval(interval: Interval) -> str:
    """Mean and half width in per cent: "61.8 ± 1.2"; one run: the mean alone."""
    text = percent(interval.mean)
    return text if math.isnan(interval.half_width) else f"{text} ± {percent(interval.half_width)}"


def points(fraction: float, digits: int = 1) -> str:
    """A difference in percentage points with its sign: 0.071 -> "+7.1", -0.004 -> "−0.4"."""
    if math.isnan(fraction):
        return _DASH
    value = round(100.0 * fraction, digits)
    if value == 0:
        return f"{0:.{digits}f}"
    return f"{'+' if value > 0 else _MINUS}{abs(value):.{digits}f}"


def spread(interval: Interval) -> str:
    """Ends of the interval of a difference in points: "+4.0 to +10.2"; one run: a dash."""
    if math.isnan(interval.half_width):
        return _DASH
    return f"{points(interval.low)} to {points(interval.high)}"


def difference(interval: Interval) -> str:
    """A difference in points with its interval: "+7.1 [+4.0 to +10.2]"; one run: "+7.1"."""
    if math.isnan(interval.half_width):
        return points(interval.mean)
    return f"{points(interval.mean)} [{spread(interval)}]"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, such as a cosine: 0.571 -> "+0.57", -0.36 -> "−0.36", 0.001 -> "0.00"."""
    if math.isnan(value):
        return _DASH
    rounded = round(value, digits)
    sign = "" if rounded == 0 else "+" if rounded > 0 else _MINUS
    return f"{sign}{abs(rounded):.{digits}f}"


def signed_interval(interval: Interval, digits: int = 2) -> str:
    """Mean and ends: "+0.57 [+0.50 to +0.64]"; one run: "+0.57"."""
    mean = signed(interval.mean, digits)
    if math.isnan(interval.half_width):
        return mean
    return f"{mean} [{signed(interval.low, digits)} to {signed(interval.high, digits)}]"


def duration(seconds: float) -> str:
    """Seconds as "0.8 s", "14 s" or "7 min 5 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def _signless(value: float, digits: int) -> str:
    if math.isnan(value):
        return _DASH
    return f"{value:.{digits}f}".replace("-", _MINUS)
