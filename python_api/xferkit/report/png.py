"""The main figures as PNG, for pages that cannot hold SVG; needs matplotlib, an extra."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from xferkit.report.svg import Bar, BarPanel, Difference, Row, Style

__all__ = ["bar_panels_png", "difference_png"]

_FACE = {"main": "#0072B2", "base": "#8A939C", "reference": "#F1F3F5", "other": "#FCEBDD"}
_EDGE = {"main": "#0072B2", "base": "#8A939C", "reference": "#8A939C", "other": "#C65A00"}
_HATCH = {"main": "", "base": "", "reference": "////", "other": "\\\\\\\\"}
_INK, _SOFT = "#1E2328", "#59636E"
_MARK = {"helps": ("^", "#0072B2"), "hurts": ("v", "#C65A00")}


def bar_panels_png(title: str, rows: Sequence[Row], panels: Sequence[BarPanel]) -> bytes:
    """The figure of ``svg.bar_panels`` as the bytes of a PNG file."""
    figure = _figure(2.0 + (4.6, 3.2, 2.7, 2.3)[min(len(panels), 4) - 1] * len(panels), len(rows))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        for y, (row, bar) in enumerate(zip(rows, panel.bars, strict=True)):
            if bar is not None and row.style is not None:
                _bar(ax, y, bar, row.style, panel.high)
        for value, label in panel.lines:
            ax.axvline(value, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
            above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "xytext": (0, 2)}
            ax.annotate(label, (value, 1), ha="center", va="bottom", fontsize=7, color=_SOFT, **above)
        ax.set_xlim(0, panel.high * 1.1)
        ax.set_xticks([value for value, _ in panel.ticks], [label for _, label in panel.ticks])
        ax.set_title(panel.title, fontsize=9, loc="left", pad=14, fontweight="bold")
        _plain(ax)
    labels = axes[0].set_yticks(range(len(rows)), [row.label for row in rows])
    for row, tick in zip(rows, labels, strict=True):
        tick.label1.set_fontweight("bold" if row.style is None else "normal")
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return _png(figure)


def difference_png(title: str, rows: Sequence[Difference], ticks: Sequence[tuple[float, str]]) -> bytes:
    """The figure of ``svg.difference_plot`` as the bytes of a PNG file."""
    figure = _figure(6.6, len(rows))
    ax = figure.subplots()
    ax.axvline(0, color=_INK, linewidth=1.1)
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (8, 0)}
    for y, row in enumerate(rows):
        mark, colour = _MARK.get(row.verdict, ("o", "white"))
        if not math.isnan(row.half_width):
            ax.errorbar(row.mean, y, xerr=row.half_width, color=_INK, capsize=2.5, linewidth=1.1, zorder=2)
        ax.plot([row.mean], [y], mark, ms=7, mfc=colour, mec=_INK, mew=0.9, zorder=3)
        ax.annotate(row.text, (1, y), va="center", fontsize=8, annotation_clip=False, **beside)
    ax.set_xticks([value for value, _ in ticks], [label for _, label in ticks])
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    _plain(ax)
    return _png(figure)


def _figure(width: float, num_rows: int) -> Any:
    # The class itself, not pyplot: no global state, no window system.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 1.0 + 0.29 * num_rows), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _bar(ax: Any, y: int, bar: Bar, style: Style, high: float) -> None:
    look = {"color": _FACE[style], "edgecolor": _EDGE[style], "hatch": _HATCH[style]}
    ax.barh(y, bar.value, 0.58, linewidth=0.8, **look)
    end = max([bar.value, *bar.dots])
    if not math.isnan(bar.half_width):
        low, up = max(0.0, bar.value - bar.half_width), min(high, bar.value + bar.half_width)
        reach = [[bar.value - low], [max(0.0, up - bar.value)]]
        ax.errorbar(bar.value, y, xerr=reach, color=_INK, capsize=2.5, linewidth=1.1)
        end = max(end, up)
    ax.plot(bar.dots, [y] * len(bar.dots), "o", ms=3, mfc="white", mec=_INK, mew=0.6, zorder=3)
    ax.text(end + 0.014 * high, y, bar.text, va="center", fontsize=8)


def _plain(ax: Any) -> None:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0, labelsize=8)
    ax.tick_params(axis="x", labelsize=8, colors=_SOFT)
    ax.grid(axis="x", color="#DDE2E7", linewidth=0.7)
    ax.set_axisbelow(True)
