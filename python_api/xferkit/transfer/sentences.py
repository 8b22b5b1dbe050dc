"""Cells of the transfer matrix in words."""

from __future__ import annotations

import math

from xferkit.metrics.intervals import Interval
from xferkit.transfer.plan import Comparison
from xferkit.transfer.statistics import Judgement, Verdict

__all__ = ["amount", "matching_phrase", "sentence", "signed_interval", "sources_phrase"]

_MOST_NAMES = 5

_MATCHINGS = {
    "per_task_steps": "same steps per task",
    "total_steps": "same total steps",
    "own": "training not matched",
}


def amount(value: float, points: bool, *, signed: bool = False) -> str:
    """A gain as people write it: percentage points with one decimal, or three significant digits."""
    text = f"{100.0 * value:+.1f}" if points else f"{value:+.3g}"
    if not text.strip("+-0."):
        return text[1:]
    return text if signed or text[0] == "-" else text[1:]


def signed_interval(interval: Interval, points: bool) -> str:
    """Both ends with their signs, or nothing for a single seed."""
    if math.isnan(interval.half_width):
        return ""
    return f"[{amount(interval.low, points, signed=True)}, {amount(interval.high, points, signed=True)}]"


def matching_phrase(matching: str) -> str:
    """The matching in a few words."""
    return _MATCHINGS[matching]


def sources_phrase(c: Comparison) -> str:
    """The sources by the name of their group, or one by one."""
    return f"{c.group} ({', '.join(c.sources)})" if c.group else " + ".join(c.sources)


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
    seeds = f"{i.n} seed{'' if i.n == 1 else 's'}"
    place = "" if c.kind in ("pair", "group", "all") else f"Among {_company(c)}: "
    how = matching_phrase(c.matching)
    if judgement.verdict is Verdict.INCONCLUSIVE:
        known = f"{amount(i.mean, points, signed=True)}{unit} {signed_interval(i, points)}".rstrip()
        return (
            f"{place}{sources_phrase(c)} on {c.target}: INCONCLUSIVE, {known} ({seeds}, {how}; "
            f"{judgement.missing()})."
        )
    ends = sorted((abs(i.low), abs(i.high)))
    return (
        f"{place}{sources_phrase(c)} {_verb(c, judgement.verdict)} {c.target} by "
        f"{amount(abs(i.mean), points)}{unit} [{amount(ends[0], points)}, {amount(ends[1], points)}] ({seeds}, {how})."
    )
