"""Signed values of several series with their intervals, row by row: inline SVG, and PNG where matplotlib is installed.

Series are told apart by the shape and the filling of their marks as well as by colour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Dot", "DotPanel", "dot_panels", "dot_panels_png"]

_INK, _SOFT, _GRID = "#1E2328", "#59636E", "#DDE2E7"
_WIDTH, _GAP, _TOP, _ROW, _BOTTOM = 880.0, 26.0, 40.0, 34.0, 48.0
#: Colour, filled, and shape (for matplotlib) of each series.
_MARKS = (("#0072B2", True, "o"), ("#C65A00", False, "s"), ("#009E73", True, "D"), ("#1E2328", False, "o"))


@dataclass(frozen=True)
class Dot:
    """A value with the half width of its interval (NaN: none)."""

    value: float
    half_width: float = math.nan


@dataclass(frozen=True)
class DotPanel:
    """One column of rows.

    Attributes:
        title: above the panel.
        rows: for each label of the figure, a dot (or None) of each series.
    """

    title: str
    rows: tuple[tuple[Dot | None, ...], ...]


def dot_panels(
    title: str,
    labels: Sequence[str],
    series: Sequence[str],
    panels: Sequence[DotPanel],
    *,
    ticks: Sequence[tuple[float, str]],
    label_width: float = 150.0,
) -> Markup:
    """Panels side by side over the same rows and the same axis.

    Args:
        title: what a screen reader says.
        labels: of the rows.
        series: names of the series, at most four.
        panels: one or more.
        ticks: marks of the axis as (value, label); the axis spans them, and what lies beyond is drawn at its end.
        label_width: room for the labels, of 880 units in all.

    Raises:
        ValueError: a panel with another number of rows or series.
    """
    _check(labels, series, panels)
    bottom = _TOP + _ROW * len(labels)
    parts = [
        _text(label_width - 12, _TOP + _ROW * (n + 0.5) + 4.5, label, "end") for n, label in enumerate(labels)
    ]
    width = (_WIDTH - label_width - _GAP * (len(panels) - 1)) / len(panels)
    low, high = min(v for v, _ in ticks), max(v for v, _ in ticks)
    for index, panel in enumerate(panels):
        left = label_width + index * (width + _GAP)

        def x(value: float, left: float = left) -> float:
            return left + 14 + (width - 28) * (max(low, min(high, value)) - low) / (high - low)

        parts.append(_text(left, 16, panel.title, "start", size=13, bold=True))
        for value, label in ticks:
            stroke = _INK if value == 0 else _GRID
            parts.append(f'<path d="M{x(value):.1f} {_TOP - 6:.1f}V{bottom:.1f}" stroke="{stroke}"/>')
            parts.append(_text(x(value), bottom + 16, label, "middle", fill=_SOFT, size=11))
        for n, row in enumerate(panel.rows):
            for place, dot in enumerate(row):
                if dot is None or math.isnan(dot.value):
                    continue
                y = _TOP + _ROW * (n + 0.5) + 8 * (place - (len(row) - 1) / 2)
                if not math.isnan(dot.half_width):
                    a, b = x(dot.value - dot.half_width), x(dot.value + dot.half_width)
                    parts.append(f'<path d="M{a:.1f} {y:.1f}H{b:.1f}" stroke="{_INK}" stroke-width="1.3"/>')
                parts.append(_mark(x(dot.value), y, place))
    at = label_width
    for place, name in enumerate(series):
        parts.append(_mark(at + 6, bottom + 34, place))
        parts.append(_text(at + 18, bottom + 38, name, "start", size=12))
        at += 44 + 6.6 * len(name)
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH:.0f} {bottom + _BOTTOM:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _check(labels: Sequence[str], series: Sequence[str], panels: Sequence[DotPanel]) -> None:
    if not 1 <= len(series) <= len(_MARKS):
        raise ValueError(f"dot_panels: expected 1 to {len(_MARKS)} series, got {len(series)}")
    for panel in panels:
        if len(panel.rows) != len(labels) or any(len(row) != len(series) for row in panel.rows):
            raise ValueError(
                f"dot_panels: panel {panel.title!r} must have {len(labels)} rows of {len(series)} series"
            )


def _mark(x: float, y: float, place: int) -> str:
    colour, filled, shape = _MARKS[place]
    look = f'fill="{colour if filled else "#FFFFFF"}" stroke="{colour}" stroke-width="1.8"'
    if shape == "o":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.4" {look}/>'
    if shape == "s":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {look}/>'
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z" {look}/>'


def _text(
    x: float, y: float, content: str, anchor: str, fill: str = _INK, bold: bool = False, size: float = 13
) -> str:
    look = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{look}>'
        f"{escape(content)}</text>"
    )


def dot_panels_png(
    title: str,
    labels: Sequence[str],
    series: Sequence[str],
    panels: Sequence[DotPanel],
    *,
    ticks: Sequence[tuple[float, str]],
) -> bytes:
    """The figure of :func:`dot_panels` as the bytes of a PNG file; needs matplotlib."""
    from matplotlib.figure import Figure

    _check(labels, series, panels)
    figure = Figure(figsize=(1.8 + 3.2 * len(panels), 1.3 + 0.38 * len(labels)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    low, high = min(v for v, _ in ticks), max(v for v, _ in ticks)
    for ax, panel in zip(axes, panels, strict=True):
        ax.axvline(0, color=_INK, linewidth=0.9)
        for place, name in enumerate(series):
            colour, filled, shape = _MARKS[place]
            shift = 0.2 * (place - (len(series) - 1) / 2)
            dots = [(n + shift, row[place]) for n, row in enumerate(panel.rows)]
            shown = [(y, dot) for y, dot in dots if dot is not None and not math.isnan(dot.value)]
            for y, dot in shown:
                half = 0.0 if math.isnan(dot.half_width) else dot.half_width
                ax.plot([dot.value - half, dot.value + half], [y, y], color=_INK, linewidth=1.0, zorder=2)
            look = {"ms": 5.5, "mec": colour, "mfc": colour if filled else "white", "mew": 1.3, "zorder": 3}
            ax.plot([dot.value for _, dot in shown], [y for y, _ in shown], shape, label=name, **look)
        ax.set_xlim(low, high)
        ax.set_xticks([value for value, _ in ticks], [label for _, label in ticks])
        ax.set_title(panel.title, fontsize=9, loc="left", fontweight="bold")
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        ax.tick_params(axis="y", length=0, labelsize=8)
        ax.tick_params(axis="x", labelsize=8, colors=_SOFT)
        ax.grid(axis="x", color=_GRID, linewidth=0.7)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(labels)), list(labels))
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    axes[0].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=len(series))
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()
