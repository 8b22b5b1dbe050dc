"""Curves over training steps as inline SVG: panels side by side, lines told apart by dashes as well as by colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["STYLES", "Curve", "CurvePanel", "curve_panels", "round_ticks"]

_INK, _SOFT, _GRID = "#1E2328", "#59636E", "#DDE2E7"
_WIDTH, _GAP = 880.0, 34.0
_TOP, _HEIGHT, _AXIS, _LINE = 30.0, 190.0, 36.0, 18.0

#: Colours of the Okabe-Ito palette with a dash pattern each; after the last one they begin again.
STYLES = (
    ("#0072B2", ""),
    ("#D55E00", "6 3"),
    ("#009E73", "2 3"),
    ("#CC79A7", "8 3 2 3"),
    ("#56B4E9", "4 2"),
    ("#E69F00", "1 2"),
    ("#1E2328", "10 4"),
)


@dataclass(frozen=True)
class Curve:
    """One line: its label (equal labels share a style and one entry of the legend), points and marked point.

    Attributes:
        label: in the legend.
        points: (step, value) in the order of steps; values that are not finite break the line.
        marked: step whose point is circled; None for none.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    marked: float | None = None


@dataclass(frozen=True)
class CurvePanel:
    """Axes with curves.

    Attributes:
        title: above them.
        curves: the lines.
        span: ends of the vertical axis, for panels that are to be compared; None: it spans the values, from 0 where
            they lie near it.
    """

    title: str
    curves: tuple[Curve, ...]
    span: tuple[float, float] | None = None


def curve_panels(title: str, panels: Sequence[CurvePanel]) -> Markup:
    """Panels side by side, each with axes and a legend of its own.

    Args:
        title: what a screen reader says.
        panels: one or more; a panel without a finite point says so.
    """
    width = (_WIDTH - _GAP * (len(panels) - 1)) / len(panels)
    labels = [list(dict.fromkeys(curve.label for curve in panel.curves)) for panel in panels]
    legend = max((len(_legend_rows(names, width)) for names in labels), default=0)
    height = _TOP + _HEIGHT + _AXIS + _LINE * legend + 4
    parts = []
    for index, (panel, names) in enumerate(zip(panels, labels, strict=True)):
        parts += _panel(panel, names, index * (width + _GAP), width)
    return Markup(
        f'<svg viewBox="0 0 {_n(_WIDTH)} {_n(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def round_ticks(low: float, high: float, count: int = 4) -> tuple[float, ...]:
    """About `count` round numbers that reach over [low, high].

    Raises:
        ValueError: an end that is not finite, or low above high.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"round_ticks: low and high must be finite and in order, got {low} and {high}")
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return tuple(round(k * step, 12) for k in range(first, last + 1))


def _panel(panel: CurvePanel, names: list[str], left: float, width: float) -> list[str]:
    parts = [_text(left, 14, panel.title, size=13, bold=True)]
    points = [p for curve in panel.curves for p in curve.points if math.isfinite(p[1])]
    bottom = _TOP + _HEIGHT
    if not points:
        return [*parts, _text(left, _TOP + 40, "nothing was recorded", fill=_SOFT)]
    low, high = min(y for _, y in points), max(y for _, y in points)
    low, high = panel.span or (0.0 if 0 < low < 0.4 * high else low, high)
    y_ticks = round_ticks(low, high)
    x_ticks = round_ticks(0, max(x for x, _ in points))
    x_ticks = x_ticks[:-1] if x_ticks[-1] > 1.1 * max(x for x, _ in points) else x_ticks
    x_end = max(x_ticks[-1], max(x for x, _ in points))
    begin = left + 44.0

    def x(value: float) -> float:
        return begin + (left + width - begin - 6) * value / (x_end or 1.0)

    def y(value: float) -> float:
        return bottom - (bottom - _TOP - 6) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    for tick in y_ticks:
        at_zero = tick == 0 and y_ticks[0] < 0
        parts.append(_line(begin, y(tick), left + width, y(tick), _INK if at_zero else _GRID))
        parts.append(_text(begin - 7, y(tick) + 4, _short(tick), size=11, anchor="end", fill=_SOFT))
    for tick in x_ticks:
        middle = min(
            x(tick), left + width - 3.2 * len(_short(tick))
        )  # the last label stays within the figure
        parts.append(_text(middle, bottom + 16, _short(tick), size=11, anchor="middle", fill=_SOFT))
    parts.append(_text(left + width, bottom + 30, "step", size=11, anchor="end", fill=_SOFT))
    parts.append(_line(begin, bottom, left + width, bottom, _INK, 1.0))
    style = {name: STYLES[i % len(STYLES)] for i, name in enumerate(names)}
    for curve in panel.curves:
        colour, dash = style[curve.label]
        for piece in _pieces(curve.points):
            if len(piece) == 1:
                parts.append(
                    f'<circle cx="{_n(x(piece[0][0]))}" cy="{_n(y(piece[0][1]))}" r="2" fill="{colour}"/>'
                )
                continue
            way = " ".join(f"{_n(x(a))},{_n(y(b))}" for a, b in piece)
            pattern = f' stroke-dasharray="{dash}"' if dash else ""
            parts.append(
                f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.6"{pattern}/>'
            )
        for a, b in curve.points:
            if a == curve.marked and math.isfinite(b):
                parts.append(
                    f'<circle cx="{_n(x(a))}" cy="{_n(y(b))}" r="4.5" fill="#FFFFFF" stroke="{colour}" '
                    'stroke-width="1.8"/>'
                )
    return parts + _legend(names, style, left, width, bottom + _AXIS)


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b in points:
        if math.isfinite(b):
            pieces[-1].append((a, b))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _legend_rows(names: Sequence[str], width: float) -> list[list[str]]:
    rows: list[list[str]] = []
    used = width
    for name in names:
        room = 34 + 6.4 * len(name)
        if used + room > width:
            rows.append([])
            used = 0.0
        rows[-1].append(name)
        used += room
    return rows


def _legend(
    names: list[str], style: dict[str, tuple[str, str]], left: float, width: float, top: float
) -> list[str]:
    parts = []
    for number, row in enumerate(_legend_rows(names, width)):
        at, middle = left, top + _LINE * number + 6
        for name in row:
            colour, dash = style[name]
            parts.append(_line(at, middle, at + 20, middle, colour, 1.8, dash))
            parts.append(_text(at + 25, middle + 4, name, size=11.5))
            at += 34 + 6.4 * len(name)
    return parts


def _short(value: float) -> str:
    if value and abs(value) >= 10_000:
        return f"{value / 1000:g}k".replace("-", "\N{MINUS SIGN}")
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(
    x: float,
    y: float,
    content: str,
    size: float = 12,
    anchor: str = "start",
    fill: str = _INK,
    bold: bool = False,
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{weight}>'
        f"{escape(content)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1.0, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" stroke="{stroke}" '
        f'stroke-width="{_n(width)}"{dashes}/>'
    )
