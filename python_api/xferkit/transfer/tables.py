"""Tables of cells: aligned text, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xferkit.transfer.plan import Comparison
from xferkit.transfer.sentences import amount, decimals, matching_phrase, signed_interval, sources_phrase
from xferkit.transfer.statistics import Judgement

__all__ = ["csv_text", "header", "latex", "markdown", "row", "text"]

_GAIN, _INTERVAL = 4, 5
_NUMBERS = (_GAIN, _INTERVAL, 6, 7, 8)
_WHOLE = re.compile(r"^[^.,\]]*")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def header(confidence: float) -> tuple[str, ...]:
    """Heads of the columns that :func:`row` fills."""
    interval = f"{100.0 * confidence:g} % interval"
    return ("target", "source", "kind", "matching", "gain", interval, "seeds", "p", "Holm p", "verdict")


def row(c: Comparison, judgement: Judgement, points: bool) -> tuple[str, ...]:
    """A cell as it stands in a table; gains of scores within [0, 1] in points."""
    i = judgement.interval
    return (
        c.target,
        sources_phrase(c),
        c.kind.replace("_", " "),
        matching_phrase(c.matching),
        amount(i.mean, points, decimals(i, points), signed=True),
        signed_interval(i, points),
        str(i.n),
        _p(judgement.p),
        _p(judgement.holm_p),
        judgement.phrase(),
    )


def text(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces, numbers to the right; gains and ends of intervals by their decimal points."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[_GAIN][1:] = _by_point(columns[_GAIN][1:])
    ends = [value.partition(" ") for value in columns[_INTERVAL][1:]]
    lows, highs = (_by_point([end[i] for end in ends]) for i in (0, 2))
    columns[_INTERVAL][1:] = [f"{low} {high}" for low, high in zip(lows, highs, strict=True)]
    rows = list(zip(*columns, strict=True))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_aligned(r, widths)).rstrip() for r in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]) + "\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    clean = [[_one_line(value).replace("\\", "\\\\").replace("|", "\\|") for value in r] for r in rows]
    rule = ["--:" if i in _NUMBERS else ":--" for i in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(r)} |" for r in (clean[0], rule, *clean[1:])) + "\n"


def latex(rows: Sequence[Sequence[str]]) -> str:
    """A ``tabular`` with the rules of booktabs."""
    clean = [_latex_row(r) for r in rows[1:]]
    columns = "".join("r" if i in _NUMBERS else "l" for i in range(len(rows[0])))
    lines = [" & ".join(r) + r" \\" for r in ([_escaped(name) for name in rows[0]], *clean)]
    body = [lines[0], r"\midrule", *lines[1:]]
    return (
        "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])
        + "\n"
    )


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Comma-separated values with one line of names; None is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _by_point(values: Sequence[str]) -> list[str]:
    """Numbers, with the brackets and commas beside them, whose decimal points stand below each other."""
    ends = [len(_WHOLE.sub("", value)) for value in values]  # of what begins with the point
    left = max((len(value) - end for value, end in zip(values, ends, strict=True)), default=0)
    right = max(ends, default=0)
    return [
        value[: len(value) - end].rjust(left) + value[len(value) - end :].ljust(right)
        for value, end in zip(values, ends, strict=True)
    ]


def _aligned(r: Sequence[str], widths: Sequence[int]) -> list[str]:
    pairs = enumerate(zip(r, widths, strict=True))
    return [value.rjust(width) if i in _NUMBERS else value.ljust(width) for i, (value, width) in pairs]


def _latex_row(r: Sequence[str]) -> list[str]:
    values = [f"${v}$" if v and i in _NUMBERS else _escaped(v) for i, v in enumerate(r)]
    # After the end of a line, a bracket would be taken for a length.
    return [f"{{{values[0]}}}", *values[1:]] if values[0].startswith("[") else values


def _escaped(value: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in _one_line(value))


def _one_line(value: str) -> str:
    return " ".join(value.split())


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
