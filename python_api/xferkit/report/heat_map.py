"""Small matrices of shares or cosines as figures: inline SVG for a page, PNG where matplotlib is installed.

The number, in hundredths, stands in every cell, so that the figure reads without colour.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["HeatMap", "heat_maps_png", "heat_maps_svg"]

_INK, _SOFT, _BLUE, _ORANGE = "#1E2328", "#59636E", (0, 114, 178), (198, 90, 0)
_WIDTH, _GAP, _LABEL, _ROW, _TOP = 880.0, 28.0, 128.0, 30.0, 62.0


@dataclass(frozen=True)
class HeatMap:
    """A matrix of shares or cosines.

    Attributes:
        title: above it.
        rows: labels of the rows; an empty one leaves a gap.
        columns: labels of the columns.
        values: per row, a number for each column, None for an empty cell; an empty row for a gap.
        marked: cells (row, column) with a frame.
        full: the number that has the full colour, blue above 0 and orange below.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    marked: frozenset[tuple[int, int]] = frozenset()
    full: float = 1.0

    def __post_init__(self) -> None:
        if not self.full > 0:
            raise ValueError(f"HeatMap {self.title!r}: full must be above 0, got {self.full}")
        if len(self.values) != len(self.rows):
            raise ValueError(
                f"HeatMap {self.title!r}: {len(self.values)} rows of values for {len(self.rows)} labels"
            )
        for label, row in zip(self.rows, self.values, strict=True):
            if len(row) != (len(self.columns) if label else 0):
                raise ValueError(f"HeatMap {self.title!r}: row {label!r} has {len(row)} values")

    def cells(self, row: int) -> list[tuple[int, str, str, str]]:
        """Column, fill, colour of the number, and number, of each cell of a row that is not empty."""
        found = []
        for column, value in enumerate(self.values[row]):
            if value is None:
                continue
            depth = min(1.0, abs(value) / self.full)
            colour = _BLUE if value >= 0 else _ORANGE
            fill = "#" + "".join(f"{round(255 + (c - 255) * depth):02X}" for c in colour)
            number = f"{100 * value:.0f}".replace("-0", "0").replace("-", "\N{MINUS SIGN}")
            found.append((column, fill, "#FFFFFF" if depth > 0.55 else _INK, number))
        return found


def heat_maps_svg(title: str, maps: Sequence[HeatMap]) -> Markup:
    """Matrices side by side.

    Args:
        title: what a screen reader says.
        maps: one or more.
    """
    height = _TOP + _ROW * max(len(m.rows) for m in maps) + 6
    width = (_WIDTH - _GAP * (len(maps) - 1)) / len(maps)
    parts = [part for index, m in enumerate(maps) for part in _one(m, index * (width + _GAP), width)]
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _one(m: HeatMap, left: float, width: float) -> list[str]:
    cell = min(96.0, (width - _LABEL) / len(m.columns))
    parts = [_text(left, 16, m.title, "start", bold=True, size=14)]
    for number, label in enumerate(m.columns):
        parts.append(_text(left + _LABEL + cell * (number + 0.5), _TOP - 10, label, "middle", fill=_SOFT))
    frames = []
    for y, label in enumerate(m.rows):
        top = _TOP + _ROW * y
        parts.append(_text(left + _LABEL - 10, top + _ROW / 2 + 4.5, label, "end"))
        for x, fill, ink, text in m.cells(y):
            place = f'x="{left + _LABEL + cell * x:.1f}" y="{top:.1f}" width="{cell:.1f}" height="{_ROW:.1f}"'
            parts.append(f'<rect {place} fill="{fill}" stroke="#FFFFFF" stroke-width="1.5"/>')
            middle = left + _LABEL + cell * (x + 0.5)
            parts.append(_text(middle, top + _ROW / 2 + 4.5, text, "middle", fill=ink))
            if (y, x) in m.marked:
                frames.append(f'<rect {place} fill="none" stroke="{_INK}" stroke-width="2"/>')
    return parts + frames


def _text(
    x: float, y: float, content: str, anchor: str, fill: str = _INK, bold: bool = False, size: int = 13
) -> str:
    look = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{look}>'
        f"{escape(content)}</text>"
    )


def heat_maps_png(title: str, maps: Sequence[HeatMap]) -> bytes:
    """The figure of :func:`heat_maps_svg` as the bytes of a PNG file; needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    height = 1.3 + 0.33 * max(len(m.rows) for m in maps)
    figure = Figure(figsize=(4.4 * len(maps), height), layout="constrained")
    for ax, m in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        for y in range(len(m.rows)):
            for x, fill, ink, number in m.cells(y):
                edge = _INK if (y, x) in m.marked else "white"
                order = 2 if (y, x) in m.marked else 1
                place = Rectangle((x, y), 1, 1, facecolor=fill, edgecolor=edge, linewidth=1.4, zorder=order)
                ax.add_patch(place)
                ax.text(x + 0.5, y + 0.5, number, ha="center", va="center", color=ink, zorder=3)
        ax.set_xlim(0, len(m.columns))
        ax.set_ylim(len(m.rows), 0)
        ax.set_xticks([x + 0.5 for x in range(len(m.columns))], m.columns, color=_SOFT)
        ax.set_yticks([y + 0.5 for y in range(len(m.rows))], m.rows)
        ax.tick_params(length=0, labelsize=9, top=True, labeltop=True, bottom=False, labelbottom=False)
        ax.set_title(m.title, fontsize=10, loc="left", fontweight="bold")
        for side in ax.spines.values():
            side.set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()
