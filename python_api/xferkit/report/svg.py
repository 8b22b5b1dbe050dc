"""Figures as inline SVG: horizontal bars in panels, and differences with their intervals.

Written by hand so that a report needs no script, no network and no font, prints, and reads without colour:
what colour says, hatching or the shape of a mark says as well. The page puts :data:`PATTERNS` before the
first figure, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

__all__ = ["PATTERNS", "Bar", "BarPanel", "Difference", "Row", "Style", "bar_panels", "difference_plot"]

#: How a bar is filled; colours of the Okabe-Ito palette, which colour-blind readers can tell apart.
Style = Literal["main", "base", "reference", "other"]

_FILL = {"main": "#0072B2", "base": "#8A939C", "reference": "url(#hatch-grey)", "other": "url(#hatch-orange)"}
_EDGE = {"main": "#0072B2", "base": "#8A939C", "reference": "#8A939C", "other": "#C65A00"}
_INK, _SOFT, _GRID = "#1E2328", "#59636E", "#DDE2E7"

_WIDTH = 880.0
_ROW, _BAR = 26.0, 14.0
_TOP, _BOTTOM, _GAP = 42.0, 26.0, 26.0


def _hatch(name: str, angle: int, ground: str, line: str) -> str:
    return (
        f'<pattern id="{name}" width="5" height="5" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate({angle})"><rect width="5" height="5" fill="{ground}"/>'
        f'<rect width="1.9" height="5" fill="{line}"/></pattern>'
    )


#: The hatchings, as an empty figure that takes no room.
PATTERNS = Markup(
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    + _hatch("hatch-grey", 45, "#F1F3F5", "#8A939C")
    + _hatch("hatch-orange", -45, "#FCEBDD", "#C65A00")
    + "</defs></svg>"
)


@dataclass(frozen=True)
class Row:
    """What all panels of a figure share: label and fill of a row; a row of only `label` is a heading."""

    label: str
    style: Style | None = None


@dataclass(frozen=True)
class Bar:
    """One bar: its length, half width of its interval (NaN: none), single runs as dots, and its number."""

    value: float
    half_width: float = math.nan
    dots: tuple[float, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class BarPanel:
    """One column of bars.

    Attributes:
        title: above the panel.
        bars: one per row; None leaves the row empty.
        high: right end of the axis, which begins at 0.
        ticks: marks of the axis as (value, label).
        lines: dashed vertical lines as (value, label).
    """

    title: str
    bars: tuple[Bar | None, ...]
    high: float
    ticks: tuple[tuple[float, str], ...]
    lines: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Difference:
    """One row of :func:`difference_plot`: mean, half width (NaN: none), verdict and the text at the right."""

    label: str
    mean: float
    half_width: float
    verdict: str
    text: str


def bar_panels(
    title: str, rows: Sequence[Row], panels: Sequence[BarPanel], *, label_width: float = 190.0
) -> Markup:
    """Horizontal bars in panels side by side over the same rows.

    Args:
        title: what a screen reader says.
        rows: label and fill of each row.
        panels: one or more panels with as many bars as there are rows.
        label_width: room for the labels, of 880 units in all.

    Raises:
        ValueError: a panel with another number of bars.
    """
    for panel in panels:
        if len(panel.bars) != len(rows):
            raise ValueError(
                f"bar_panels: panel {panel.title!r} has {len(panel.bars)} bars for {len(rows)} rows; "
                "expected one each"
            )
    bottom = _TOP + _ROW * len(rows)
    parts = []
    for index, row in enumerate(rows):
        middle = _TOP + _ROW * (index + 0.5)
        if row.style is None:
            parts.append(_text(0, middle + 5, row.label, fill=_SOFT, size=12, bold=True))
        else:
            parts.append(_text(label_width - 12, middle + 4.5, row.label, anchor="end"))
    width = (_WIDTH - label_width - _GAP * (len(panels) - 1)) / len(panels)
    for index, panel in enumerate(panels):
        parts += _panel(panel, rows, label_width + index * (width + _GAP), width, bottom)
    return _figure(bottom + _BOTTOM, title, parts)


def _panel(panel: BarPanel, rows: Sequence[Row], left: float, width: float, bottom: float) -> list[str]:
    room = 44.0 if any(bar and bar.text for bar in panel.bars) else 8.0  # numbers stand right of the bars

    def x(value: float) -> float:
        return left + (width - room) * max(0.0, min(value, panel.high)) / panel.high

    numbers: list[str] = []  # over everything else
    parts = [_text(left, 16, panel.title, size=14 if width > 200 else 12, bold=True)]
    for value, label in panel.ticks:
        parts += [
            _line(x(value), _TOP - 4, x(value), bottom, _GRID),
            _text(x(value), bottom + 16, label, size=11, anchor="middle", fill=_SOFT),
        ]
    for row, bar, number in zip(rows, panel.bars, range(len(rows)), strict=True):
        if bar is None or row.style is None:
            continue
        middle = _TOP + _ROW * (number + 0.5)
        parts.append(
            f'<rect x="{_n(left)}" y="{_n(middle - _BAR / 2)}" width="{_n(max(0.5, x(bar.value) - left))}" '
            f'height="{_n(_BAR)}" fill="{_FILL[row.style]}" stroke="{_EDGE[row.style]}" stroke-width="0.8"/>'
        )
        end = x(bar.value)
        for dot in bar.dots:
            parts.append(_circle(x(dot), middle, 2.1, 0.8))
            end = max(end, x(dot))
        if not math.isnan(bar.half_width):
            low, high = x(bar.value - bar.half_width), x(bar.value + bar.half_width)
            parts += _whisker(low, high, middle)
            end = max(end, high)
        if bar.text:
            numbers.append(_text(end + 6, middle + 4.5, bar.text, size=12, halo=True))
    for value, label in panel.lines:
        parts += [
            _line(x(value), _TOP - 8, x(value), bottom, _INK, 1.0, "4 3"),
            _text(x(value), _TOP - 12, label, size=11, anchor="middle", fill=_SOFT),
        ]
    return parts + numbers


def difference_plot(
    title: str,
    rows: Sequence[Difference],
    *,
    ticks: Sequence[tuple[float, str]],
    low_text: str,
    high_text: str,
    label_width: float = 190.0,
) -> Markup:
    """Differences around 0 with their intervals.

    The mark tells the verdict without colour: a filled triangle up "helps", a filled triangle down "hurts",
    an open circle anything else.

    Args:
        title: what a screen reader says.
        rows: the differences.
        ticks: marks of the axis as (value, label); the axis holds them and every interval.
        low_text: what lies left of 0.
        high_text: what lies right of 0.
        label_width: room for the labels, of 880 units in all.
    """
    bottom = _TOP + _ROW * len(rows)
    left, right = label_width, _WIDTH - 290.0
    ends = [value for value, _ in ticks]
    for row in rows:
        half = 0.0 if math.isnan(row.half_width) else row.half_width
        ends += [row.mean - half, row.mean + half]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return left + 8 + (right - left - 16) * (value - low) / span

    parts = [
        _text(x(0) - 10, 16, f"\N{LEFTWARDS ARROW} {low_text}", size=12, anchor="end", fill=_SOFT),
        _text(x(0) + 10, 16, f"{high_text} \N{RIGHTWARDS ARROW}", size=12, fill=_SOFT),
    ]
    for value, label in ticks:
        parts += [
            _line(x(value), _TOP - 8, x(value), bottom, _GRID),
            _text(x(value), bottom + 16, label, size=11, anchor="middle", fill=_SOFT),
        ]
    parts.append(_line(x(0), _TOP - 14, x(0), bottom, _INK, 1.2))
    for number, row in enumerate(rows):
        middle = _TOP + _ROW * (number + 0.5)
        parts.append(_text(label_width - 12, middle + 4.5, row.label, anchor="end"))
        if not math.isnan(row.half_width):
            parts += _whisker(x(row.mean - row.half_width), x(row.mean + row.half_width), middle)
        parts.append(_mark(x(row.mean), middle, row.verdict))
        parts.append(_text(right + 14, middle + 4.5, row.text, size=12))
    return _figure(bottom + _BOTTOM, title, parts)


def _mark(x: float, y: float, verdict: str) -> str:
    if verdict == "helps":
        corners, colour = ((x, y - 7), (x + 6.5, y + 5), (x - 6.5, y + 5)), "#0072B2"
    elif verdict == "hurts":
        corners, colour = ((x, y + 7), (x + 6.5, y - 5), (x - 6.5, y - 5)), "#C65A00"
    else:
        return _circle(x, y, 5.0, 1.6)
    points = " ".join(f"{_n(a)},{_n(b)}" for a, b in corners)
    return f'<polygon points="{points}" fill="{colour}" stroke="#FFFFFF" stroke-width="0.8"/>'


def _whisker(low: float, high: float, y: float) -> list[str]:
    return [
        _line(low, y, high, y, _INK, 1.4),
        _line(low, y - 4, low, y + 4, _INK, 1.4),
        _line(high, y - 4, high, y + 4, _INK, 1.4),
    ]


def _circle(x: float, y: float, radius: float, stroke: float) -> str:
    return (
        f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="#FFFFFF" stroke="{_INK}" '
        f'stroke-width="{_n(stroke)}"/>'
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(
    x: float,
    y: float,
    content: str,
    size: int = 13,
    anchor: str = "start",
    fill: str = _INK,
    bold: bool = False,
    halo: bool = False,
) -> str:
    look = ' font-weight="600"' if bold else ""
    if halo:  # keeps the number readable where a line passes under it
        look += ' stroke="#FFFFFF" stroke-width="3" paint-order="stroke"'
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{look}>'
        f"{escape(content)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1.0, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" stroke="{stroke}" '
        f'stroke-width="{_n(width)}"{dashes}/>'
    )


def _figure(height: float, title: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_n(_WIDTH)} {_n(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
