"""Tables as text: what a caption, a header and rows become in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xferkit.metrics import Interval
from xferkit.report.format import points, spread

__all__ = [
    "DASH",
    "Grid",
    "csv_mean",
    "csv_number",
    "csv_text",
    "gain_words",
    "grid_markdown",
    "grid_tex",
    "mean_sd",
]

#: Stands where there is nothing.
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Grid:
    """A table: caption, names of the columns, and rows of texts."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def mean_sd(score: Interval, sd: float) -> str:
    """Mean and sample deviation in per cent: "61.8 ± 1.2"; one run: the mean alone."""
    mean = f"{100 * score.mean:.1f}"
    return mean if math.isnan(sd) else f"{mean} ± {100 * sd:.1f}"


def gain_words(gain: Interval | None, verdict: str | None) -> str:
    """A paired difference in points, its interval and its verdict; a dash where there is none."""
    if gain is None:
        return DASH
    between = "" if math.isnan(gain.half_width) else f" [{spread(gain)}]"
    return f"{points(gain.mean)}{between} {verdict}"


def grid_markdown(grid: Grid) -> str:
    """The table, then its caption as a paragraph."""
    lines = [_row(grid.header), _row(["---"] * len(grid.header)), *map(_row, grid.rows)]
    return "\n".join(lines) + f"\n\n{grid.caption}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_TEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\~{}"}
_TEX |= {"±": r"$\pm$", "\N{MINUS SIGN}": "$-$", DASH: "--", "\\": r"\textbackslash{}", "^": r"\^{}"}


def grid_tex(grid: Grid) -> str:
    """A ``table`` environment; needs no package."""
    body = [" & ".join(map(_tex, row)) + r" \\" for row in [grid.header, *grid.rows]]
    return "\n".join(
        [
            r"\begin{table}",
            r"\begin{tabular}{l" + "r" * (len(grid.header) - 1) + "}",
            r"\hline",
            body[0],
            r"\hline",
            *body[1:],
            r"\hline",
            r"\end{tabular}",
            rf"\caption{{{_tex(grid.caption)}}}",
            r"\end{table}",
        ]
    )


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Header and rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def csv_number(value: float | None) -> float | str:
    """A number; empty for one that is missing or NaN."""
    return "" if value is None or math.isnan(value) else value


def csv_mean(interval: Interval | None) -> float | str:
    """The interval's mean; empty for None."""
    return "" if interval is None else interval.mean
