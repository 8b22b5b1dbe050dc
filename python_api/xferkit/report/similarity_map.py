"""Square matrices of cosines as heat maps: inline SVG for a page, PNG where matplotlib is installed.

Blue is alike, orange opposed, white unrelated: two colours of the Okabe-Ito palette that colour-blind readers tell
apart. Numbers stand in the cells where they fit; where they do not, negative cells carry a minus sign, so that the
figure reads in grey as well.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from xferkit.report.format import signed

__all__ = ["SimilarityMap", "cosine_colour", "similarity_maps_png", "similarity_maps_svg"]

_INK, _SOFT, _BLANK = "#1E2328", "#59636E", "#E4E8EC"
_BLUE, _ORANGE = (0, 114, 178), (213, 94, 0)
_WIDTH, _GAP, _TOP, _KEY = 880.0, 30.0, 64.0, 46.0
_LETTER, _FITS = 6.2, 25.0
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class SimilarityMap:
    """Pairwise cosines of tasks.

    Attributes:
        title: above it.
        labels: of the rows.
        values: ``[n][n]`` cosines; the diagonal is not drawn, nor is NaN.
        short: labels of the columns; None: those of the rows, which must be short then.
        blocks: (name, number of tasks) of neighbours that belong together, in order; empty: none.
        bold: places of labels that are set in bold type.
    """

    title: str
    labels: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    short: tuple[str, ...] | None = None
    blocks: tuple[tuple[str, int], ...] = ()
    bold: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        n = len(self.labels)
        if len(self.values) != n or any(len(row) != n for row in self.values):
            raise ValueError(
                f"SimilarityMap {self.title!r}: values must be [{n}][{n}], one row and column a label"
            )
        if self.short is not None and len(self.short) != n:
            raise ValueError(f"SimilarityMap {self.title!r}: {len(self.short)} short labels for {n} rows")
        if self.blocks and sum(size for _, size in self.blocks) != n:
            raise ValueError(
                f"SimilarityMap {self.title!r}: blocks must cover the {n} rows, got {self.blocks}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Labels of the columns."""
        return self.labels if self.short is None else self.short

    @property
    def borders(self) -> tuple[int, ...]:
        """Places where one block ends and the next begins."""
        ends = [sum(size for _, size in self.blocks[: n + 1]) for n in range(len(self.blocks))]
        return tuple(ends[:-1])


def cosine_colour(cosine: float) -> str:
    """Colour of a cosine: white at 0, blue at 1, orange at -1."""
    depth = max(-1.0, min(1.0, cosine))
    ends = _BLUE if depth >= 0 else _ORANGE
    return "#" + "".join(f"{round(255 + (c - 255) * abs(depth)):02X}" for c in ends)


def similarity_maps_svg(title: str, maps: Sequence[SimilarityMap]) -> Markup:
    """Matrices side by side with one scale beneath; the cosine of a cell shows under the pointer.

    Args:
        title: what a screen reader says.
        maps: one or more.
    """
    width = (_WIDTH - _GAP * (len(maps) - 1)) / len(maps)
    parts, bottom, signs = [], 0.0, False
    for index, m in enumerate(maps):
        drawn, end, with_signs = _one(m, index * (width + _GAP), width)
        parts += drawn
        bottom, signs = max(bottom, end), signs or with_signs
    parts += _key(bottom + 16, signs)
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH:.0f} {bottom + _KEY:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _one(m: SimilarityMap, left: float, width: float) -> tuple[list[str], float, bool]:
    n = max(1, len(m.labels))
    letter = _LETTER * (1.12 if m.bold else 1.0)
    margin = 14 + letter * max((len(label) for label in m.labels), default=0)
    cell = min(40.0, (width - margin) / n)
    height, numbers = min(cell, 26.0), cell >= _FITS
    start = left + margin
    size = 12 if height >= 18 else 11
    parts = [_text(left, 16, m.title, "start", size=14, bold=True)]
    at = 0
    for name, count in m.blocks:
        x1, x2 = start + cell * at + 2, start + cell * (at + count) - 2
        parts.append(_text((x1 + x2) / 2, 36, name, "middle", fill=_SOFT, size=11.5))
        parts.append(f'<path d="M{x1:.1f} 42H{x2:.1f}" stroke="{_SOFT}" stroke-width="1"/>')
        at += count
    for x, label in enumerate(m.columns):
        middle = start + cell * (x + 0.5)
        parts.append(_text(middle, _TOP - 7, label, "middle", fill=_SOFT, size=min(size, 0.62 * cell)))
    marks: dict[str, list[str]] = {_INK: [], "#FFFFFF": []}
    for y, (label, row) in enumerate(zip(m.labels, m.values, strict=True)):
        top = _TOP + height * y
        parts.append(
            _text(start - 8, top + height / 2 + 0.35 * size, label, "end", size=size, bold=y in m.bold)
        )
        for x, value in enumerate(row):
            place = f"M{start + cell * x:.1f} {top:.1f}h{cell:.1f}v{height:.1f}h-{cell:.1f}z"
            if x == y or math.isnan(value):
                parts.append(f'<path d="{place}" fill="{_BLANK if x == y else "#FFFFFF"}"/>')
                continue
            said = escape(f"{label}, {m.labels[x]}: {signed(value)}")
            parts.append(f'<path d="{place}" fill="{cosine_colour(value)}"><title>{said}</title></path>')
            middle, line = start + cell * (x + 0.5), top + height / 2
            ink = "#FFFFFF" if abs(value) > 0.6 else _INK
            if numbers:
                parts.append(_text(middle, line + 3.6, _brief(value), "middle", fill=ink, size=10))
            elif signed(value).startswith(_MINUS):
                marks[ink].append(f"M{middle - 2.2:.1f} {line:.1f}h4.4")
    for ink, lines in marks.items():
        if lines:
            parts.append(f'<path d="{"".join(lines)}" stroke="{ink}" stroke-width="1.1"/>')
    end = _TOP + height * len(m.labels)
    for border in m.borders:
        across, down = start + cell * border, _TOP + height * border
        parts.append(
            f'<path d="M{across:.1f} {_TOP:.1f}V{end:.1f}M{start:.1f} {down:.1f}H{start + cell * n:.1f}" '
            f'stroke="{_INK}" stroke-width="1.6"/>'
        )
    return parts, end, bool(marks[_INK] or marks["#FFFFFF"])


def _key(top: float, signs: bool) -> list[str]:
    left, width, steps = 70.0, 240.0, 40
    parts = [_text(left - 10, top + 10, "opposed", "end", fill=_SOFT, size=11.5)]
    for n in range(steps):
        place = f"M{left + width * n / steps:.1f} {top:.1f}h{width / steps + 0.4:.1f}v12h-{width / steps + 0.4:.1f}z"
        parts.append(f'<path d="{place}" fill="{cosine_colour(-1 + 2 * (n + 0.5) / steps)}"/>')
    for value in (-1.0, -0.5, 0.0, 0.5, 1.0):
        at = left + width * (value + 1) / 2
        parts.append(_text(at, top + 25, signed(value, 1), "middle", fill=_SOFT, size=11))
    beside = "alike" + (f";  {_MINUS} in a cell: below 0" if signs else "")
    parts.append(_text(left + width + 10, top + 10, beside, "start", fill=_SOFT, size=11.5))
    return parts


def _brief(value: float) -> str:
    """0.57 -> ".57", -0.4 -> "−.40"."""
    return signed(value).lstrip("+").replace("0.", ".", 1)


def _text(
    x: float, y: float, content: str, anchor: str, fill: str = _INK, bold: bool = False, size: float = 12
) -> str:
    look = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.3g}" text-anchor="{anchor}" fill="{fill}"{look}>'
        f"{escape(content)}</text>"
    )


def similarity_maps_png(title: str, maps: Sequence[SimilarityMap]) -> bytes:
    """The figure of :func:`similarity_maps_svg` as the bytes of a PNG file; needs matplotlib."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    most = max((len(m.labels) for m in maps), default=1)
    side = max(2.6, min(5.2, 0.34 * most))
    figure = Figure(figsize=((side + 1.1) * len(maps), side + 1.5), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for ax, m in zip(axes, maps, strict=True):
        _draw(ax, m, side / max(1, len(m.labels)))
    colours = LinearSegmentedColormap.from_list("cosine", [cosine_colour(v) for v in (-1.0, 0.0, 1.0)], N=255)
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), colours),
        ax=list(axes),
        location="bottom",
        shrink=0.4,
        aspect=30,
        pad=0.02,
    )
    bar.set_ticks([-1, -0.5, 0, 0.5, 1], labels=[signed(v, 1) for v in (-1.0, -0.5, 0.0, 0.5, 1.0)])
    bar.ax.tick_params(labelsize=7, colors=_SOFT, length=0)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _draw(ax: Any, m: SimilarityMap, inches: float) -> None:
    from matplotlib.patches import Rectangle

    n = len(m.labels)
    for y, row in enumerate(m.values):
        for x, value in enumerate(row):
            blank = x == y or math.isnan(value)
            colour = (_BLANK if x == y else "#FFFFFF") if blank else cosine_colour(value)
            ax.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="none"))
            if blank:
                continue
            ink = "white" if abs(value) > 0.6 else _INK
            if inches >= 0.3:
                ax.text(x + 0.5, y + 0.5, _brief(value), ha="center", va="center", color=ink, fontsize=7)
            elif signed(value).startswith(_MINUS):
                ax.plot([x + 0.36, x + 0.64], [y + 0.5, y + 0.5], color=ink, linewidth=0.7)
    for border in m.borders:
        ax.plot([border, border], [0, n], color=_INK, linewidth=1.2)
        ax.plot([0, n], [border, border], color=_INK, linewidth=1.2)
    ax.set_xlim(0, n)
    ax.set_ylim(n, 0)
    ax.set_aspect("equal")
    ax.set_xticks([x + 0.5 for x in range(n)], m.columns, color=_SOFT)
    rows = ax.set_yticks([y + 0.5 for y in range(n)], m.labels)
    for y, tick in enumerate(rows):
        tick.label1.set_fontweight("bold" if y in m.bold else "normal")
    ax.tick_params(length=0, labelsize=7, top=True, labeltop=True, bottom=False, labelbottom=False)
    named = " | ".join(name for name, _ in m.blocks)
    ax.set_title(f"{m.title}: {named}" if named else m.title, fontsize=9, loc="left", fontweight="bold")
    for spine in ax.spines.values():
        spine.set_visible(False)
