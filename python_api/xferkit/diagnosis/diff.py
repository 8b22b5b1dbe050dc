"""Two reports of one question, compared: which gains and verdicts changed."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xferkit.runs.files import read_json

__all__ = ["Change", "compare_reports"]


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


def compare_reports(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[Change]:
    """Changes from report `a` to report `b`, each a folder of a diagnosis or its report.json.

    Raises:
        ValueError: no report there, none of a diagnosis, or one whose comparisons lack a part or hold another type.
    """
    sides = [_cells(path) for path in (a, b)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    return [_change(name, sides[0].get(name), sides[1].get(name)) for name in names]


@dataclass(frozen=True)
class _Cell:
    """A comparison of one report: mean and ends of its gain, and its verdict."""

    mean: float
    low: float | None
    high: float | None
    verdict: str


def _cells(path: str | os.PathLike[str]) -> dict[str, _Cell]:
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    content = read_json(file)
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
