"""Cells of the transfer matrix in words."""

from __future__ import annotations

import math

from xferkit.metrics.intervals import Interval
from xferkit.transfer.plan import Comparison, counted
from xferkit.transfer.statistics import Judgement, Verdict

__all__ = ["amount", "decimals", "matching_phrase", "sentence", "signed_interval", "sources_phrase"]

_MOST_NAMES = 5
#: Smaller numbers are written with a power of ten.
_MOST_DECIMALS = 8

_MATCHINGS = {
    "per_task_steps": "same steps per task",
    "total_steps": "same total steps",
    "own": "training not matched",
}


def decimals(interval: Interval, points: bool) -> int:
    """Decimals of all numbers of a comparison, so that its half width has two digits, or a single gain three.

    Points have one, and more only where that would leave nothing of the half width.
    """
    scale = 100.0 if points else 1.0
    size, digits = scale * interval.half_width, 2
    if math.isnan(size) or size <= 1e-9 * abs(scale * interval.mean):  # one seed, or the same gain in all
        size, digits = abs(scale * interval.mean), 3
    if size == 0.0 or (points and size >= 0.05):
        return 1
    return max(0, digits - 1 - math.floor(math.log10(size)))


def amount(value: float, points: bool, places: int, *, signed: bool = False) -> str:
    """A gain with so many decimals, in percentage points or in the unit of the score."""
    number = 100.0 * value if points else value
    text = f"{number:+.2e}" if places > _MOST_DECIMALS else f"{number:+.{places}f}"
    if not text.strip("+-0."):
        return text[1:]
    return text if signed or text[0] == "-" else text[1:]


def signed_interval(interval: Interval, points: bool) -> str:
    """Both ends with their signs, or nothing for a single seed."""
    if math.isnan(interval.half_width):
        return ""
    places = decimals(interval, points)
    ends = (amount(end, points, places, signed=True) for end in (interval.low, interval.high))
    return f"[{', '.join(ends)}]"


def matching_phrase(matching: str) -> str:
    """The matching in a few words."""
    return _MATCHINGS[matching]


def sources_phrase(c: Comparison) -> str:
    """The sources by the name of their group, which says who they are or is followed by it, or one by one."""
    named = set(c.group.split(", ")) == set(c.sources)
    return (c.group if named else f"{c.group} ({', '.join(c.sources)})") if c.group else " + ".join(c.sources)


def _company(c: Comparison) -> str:
    """The tasks that are trained together, or how many, where a reader would lose count."""
    names = c.with_tasks
    return " + ".join(names) if len(names) <= _MOST_NAMES else f"all {len(names)} tasks"


def _verb(c: Comparison, verdict: Verdict) -> str:
    several = len(c.sources) > 1 and not c.group
    return f"together {verdict.value[:-1]}" if several else verdict.value


def sentence(c: Comparison, judgement: Judgement, points: bool) -> str:
    """What the sources do to the target: verdict, size, interval, seeds, and which training was compared.

    The number of a verdict is the size of the help or harm, so its interval has no sign; that of an open case
    is the gain, negative where the sources seem to hurt.
    """
    i, unit = judgement.interval, " points" if points else ""
    places = decimals(i, points)
    place = "" if c.kind in ("pair", "group", "all") else f"Among {_company(c)}: "
    seeds, how = counted(i.n, "seed"), matching_phrase(c.matching)
    if judgement.verdict is Verdict.INCONCLUSIVE:
        known = f"{amount(i.mean, points, places, signed=True)}{unit} {signed_interval(i, points)}".rstrip()
        return (
            f"{place}{sources_phrase(c)} on {c.target}: INCONCLUSIVE, {known} ({seeds}, {how}; "
            f"{judgement.missing()})."
        )
    size, low, high = (amount(abs(v), points, places) for v in (i.mean, *sorted((i.low, i.high), key=abs)))
    return (
        f"{place}{sources_phrase(c)} {_verb(c, judgement.verdict)} {c.target} by {size}{unit} [{low}, {high}] "
        f"({seeds}, {how})."
    )
