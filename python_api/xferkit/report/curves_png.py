"""The curves of :mod:`xferkit.report.curves` as PNG; needs matplotlib, an extra."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from xferkit.report.curves import STYLES, CurvePanel

__all__ = ["curve_panels_png"]

_INK, _SOFT, _GRID = "#1E2328", "#59636E", "#DDE2E7"


def curve_panels_png(title: str, panels: Sequence[CurvePanel]) -> bytes:
    """The figure of ``curves.curve_panels`` as the bytes of a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 4.2 * len(panels), 3.2), layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        names = list(dict.fromkeys(curve.label for curve in panel.curves))
        for curve in panel.curves:
            colour, dash = STYLES[names.index(curve.label) % len(STYLES)]
            style: Any = (0, tuple(float(part) for part in dash.split())) if dash else "-"
            steps, values = [x for x, _ in curve.points], [y for _, y in curve.points]
            ax.plot(steps, values, color=colour, linestyle=style, linewidth=1.4, label=curve.label)
            marked = [(x, y) for x, y in curve.points if x == curve.marked]
            ax.plot(
                [x for x, _ in marked], [y for _, y in marked], "o", ms=6, mfc="white", mec=colour, mew=1.4
            )
        if panel.span is not None:
            ax.set_ylim(*panel.span)
        low, high = ax.get_ylim()
        if low < 0 < high:
            ax.axhline(0, color=_INK, linewidth=0.9)
        ax.set_title(panel.title, fontsize=9, loc="left", fontweight="bold")
        ax.set_xlabel("step", fontsize=8, color=_SOFT)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        ax.tick_params(labelsize=8, colors=_SOFT, length=0)
        ax.grid(axis="y", color=_GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        handles, labels = ax.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        if unique:
            ax.legend(unique.values(), unique.keys(), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()
