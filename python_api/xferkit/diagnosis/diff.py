"""Two reports of one question, compared: which gains and verdicts changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xferkit.runs.files import read_json

__all__ = ["Change", "compare_reports"]


@dataclass(frozen=True)
class Change:
    """One comparison in both reports.

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
        """Whether the verdict is another one."""
        return self.verdicts[0] != self.verdicts[1]


def compare_reports(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[Change]:
    """Changes from report `a` to report `b`, each a folder of a diagnosis or its report.json.

    Raises:
        ValueError: no report there, or none of a diagnosis.
    """
    sides = [_cells(path) for path in (a, b)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    return [_change(name, sides[0].get(name), sides[1].get(name)) for name in names]


def _cells(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    content = read_json(file)
    try:
        cells = content["matrix"]["cells"]
        return {
            f"{'all but ' if str(c['kind']).startswith('leave') else ''}{'+'.join(sorted(c['sources']))} -> "
            f"{c['target']} ({c['matching']})": c
            for c in cells
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: holds no transfer matrix; expected the report.json of a diagnosis"
        ) from error


def _change(name: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> Change:
    means = [None if c is None else float(c["interval"]["mean"]) for c in (before, after)]
    verdicts = tuple("" if c is None else str(c["verdict"]) for c in (before, after))
    overlap = None
    if before is not None and after is not None:
        ends = [(c["interval"]["low"], c["interval"]["high"]) for c in (before, after)]
        if all(v is not None for pair in ends for v in pair):
            overlap = ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]
    return Change(name, means[0], means[1], verdicts, overlap)  # type: ignore[arg-type]
