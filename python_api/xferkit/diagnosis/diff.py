"""Two reports of one question, compared: which gains and verdicts changed, and what else differs between them."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xferkit.runs.files import read_json

__all__ = ["Change", "ReportDiff", "diff_reports"]

# What decides the numbers of a report, and the keys under which it says so. Gains of two metrics or targets cannot be
# compared.
_QUESTION: tuple[tuple[str, tuple[str, ...]], ...] = (("metric", ("metric",)), ("target", ("target",)))
_CONDITIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("part of the data", ("part",)),
    ("data", ("facts", "conditions", "data")),
    ("seeds", ("settings", "seeds")),
    ("budget", ("settings", "budget")),
)
_HASH_DIGITS, _MOST_CHARACTERS = 12, 80


@dataclass(frozen=True)
class Change:
    """One comparison of two reports.

    Attributes:
        name: sources and target.
        before, after: mean gains, None where a report lacks the comparison.
        verdicts: of both, "" where one lacks it.
        overlap: whether the two intervals overlap; None where one is missing.
    """

    name: str
    before: float | None
    after: float | None
    verdicts: tuple[str, str]
    overlap: bool | None

    @property
    def changed(self) -> bool:
        """Whether both reports have a verdict, and the second another one."""
        return not self.new and not self.gone and self.verdicts[0] != self.verdicts[1]

    @property
    def new(self) -> bool:
        """Whether the second report alone has the comparison."""
        return self.before is None

    @property
    def gone(self) -> bool:
        """Whether the first report alone has the comparison."""
        return self.after is None


@dataclass(frozen=True)
class ReportDiff:
    """Two reports side by side.

    Attributes:
        differences: a sentence for each thing that differs beside the gains: part of the data, data, seeds, budget,
            settings of the problem.
        changes: one a comparison of either report.
    """

    differences: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def summary(self) -> str:
        """How many verdicts changed, or that no comparison is in both reports."""
        new, gone = sum(c.new for c in self.changes), sum(c.gone for c in self.changes)
        both = len(self.changes) - new - gone
        if not both:
            return f"Nothing can be compared: no comparison is in both reports, {new} new, {gone} gone."
        return f"{sum(c.changed for c in self.changes)} of {both} verdicts changed, {new} new, {gone} gone."


def diff_reports(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> ReportDiff:
    """What changed from report `a` to report `b`, each a folder of a diagnosis or its report.json.

    Args:
        a: the one before.
        b: the one after.

    Raises:
        ValueError: no report there, none of a diagnosis, one whose comparisons lack a part or hold another type, or
            reports of different metrics or targets.
    """
    contents = [_content(path) for path in (a, b)]
    sides = [_cells(file, content) for file, content in contents]
    before, after = (content for _, content in contents)
    for name, keys in _QUESTION:
        values = [_at(content, keys) for content in (before, after)]
        if None not in values and values[0] != values[1]:
            raise ValueError(
                f"the {name} is {_shown(values[0])} in {contents[0][0]} and {_shown(values[1])} in {contents[1][0]}; "
                f"expected two reports of one {name}"
            )
    differences = []
    for name, keys in (*_QUESTION, *_CONDITIONS):
        values = [_at(content, keys) for content in (before, after)]
        if values[0] != values[1]:
            differences.append(f"Different {name}: {_shown(values[0])} before and {_shown(values[1])} after.")
    differences += _settings(before, after)
    names = dict.fromkeys([*sides[0], *sides[1]])
    changes = (_change(name, sides[0].get(name), sides[1].get(name)) for name in names)
    return ReportDiff(tuple(differences), tuple(changes))


@dataclass(frozen=True)
class _Cell:
    """A comparison of one report: mean and ends of its gain, and its verdict."""

    mean: float
    low: float | None
    high: float | None
    verdict: str


def _content(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    return file, read_json(file)


def _at(content: Any, keys: tuple[str, ...]) -> Any:
    """A value inside a report; None where it has none."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _settings(before: Any, after: Any) -> list[str]:
    old, new = (_at(content, ("settings", "problem")) for content in (before, after))
    if not isinstance(old, dict) or not isinstance(new, dict):
        return []
    named = [name for name, _ in _QUESTION]
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and name not in named]
    return [f"Other settings of the problem: {', '.join(names)}."] if names else []


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return f"SHA-256 {text[:_HASH_DIGITS]}"
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"


def _cells(file: Path, content: dict[str, Any]) -> dict[str, _Cell]:
    matrix = content.get("matrix")
    cells = matrix.get("cells") if isinstance(matrix, dict) else None
    if not isinstance(cells, list):
        raise ValueError(f"{file}: holds no transfer matrix; expected the report.json of a diagnosis")
    try:
        return dict(_cell(cell, number) for number, cell in enumerate(cells, 1))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; expected the report.json of a diagnosis") from None


def _cell(values: Any, number: int) -> tuple[str, _Cell]:
    """Name and content of comparison `number`."""
    where = f"comparison {number} of its transfer matrix"

    def text(name: str) -> str:
        value = values.get(name)
        if not isinstance(value, str):
            raise ValueError(f"{where} has no text as {name!r}")
        return value

    if not isinstance(values, dict):
        raise ValueError(f"{where} is no object")
    sources, interval = values.get("sources"), values.get("interval")
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise ValueError(f"{where} has no list of texts as 'sources'")
    if not isinstance(interval, dict) or not _is_number(interval.get("mean")):
        raise ValueError(f"{where} has no 'interval' with a number as 'mean'")
    low, high = interval.get("low"), interval.get("high")  # both null with a single seed
    if not all(end is None or _is_number(end) for end in (low, high)):
        raise ValueError(f"{where} has an 'interval' whose ends are no numbers")
    left_out = "all but " if text("kind").startswith("leave") else ""
    name = f"{left_out}{'+'.join(sorted(sources))} -> {text('target')} ({text('matching')})"
    return name, _Cell(float(interval["mean"]), low, high, text("verdict"))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _change(name: str, before: _Cell | None, after: _Cell | None) -> Change:
    means = [None if cell is None else cell.mean for cell in (before, after)]
    verdicts = ["" if cell is None else cell.verdict for cell in (before, after)]
    return Change(name, means[0], means[1], (verdicts[0], verdicts[1]), _overlap(before, after))


def _overlap(before: _Cell | None, after: _Cell | None) -> bool | None:
    if before is None or before.low is None or before.high is None:
        return None
    if after is None or after.low is None or after.high is None:
        return None
    return before.low <= after.high and after.low <= before.high
