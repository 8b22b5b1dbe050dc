"""Figures of the page of a diagnosis, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from markupsafe import Markup

from xferkit.diagnosis.pipeline import DiagnosisReport
from xferkit.report.axes import difference_ticks
from xferkit.report.curves import Curve, CurvePanel, curve_panels
from xferkit.report.format import difference
from xferkit.report.heat_map import HeatMap, heat_maps_svg
from xferkit.report.svg import Difference, difference_plot
from xferkit.transfer import Verdict
from xferkit.transfer.causes import GradientConflict

__all__ = ["conflict_curves", "conflict_maps", "cosine_map", "matrix_plot"]

_Panel = TypeVar("_Panel")

_MARKS = {Verdict.HELPS: "helps", Verdict.HURTS: "hurts", Verdict.INCONCLUSIVE: "no clear difference"}
_MOST_PANELS = 6  # groups whose conflict is drawn, those that oppose the target most
_A_ROW = 2
_MOST_TASKS = 24


def matrix_plot(report: DiagnosisReport) -> Markup | None:
    """Gains with their intervals, one row a comparison."""
    rows = []
    for cell in report.matrix.cells:
        c, i = cell.comparison, cell.judgement.interval
        label = (c.group or ", ".join(c.sources)) + (
            f" ({c.matching})" if len(report.matrix.plan.matchings) > 1 else ""
        )
        text = f"{difference(i)} {cell.verdict.value}"
        rows.append(
            Difference(_short(label, 33), 100 * i.mean, 100 * i.half_width, _MARKS[cell.verdict], text)
        )
    if not rows:
        return None
    return difference_plot(
        f"Gain of {report.problem.target} from its sources, points",
        rows,
        ticks=difference_ticks(rows),
        low_text="the sources hurt",
        high_text="the sources help",
        label_width=260.0,
    )


def cosine_map(report: DiagnosisReport) -> Markup | None:
    """Mean cosines of every two tasks, group after group; framed, of two batches of one task."""
    order = [task for task in report.cosines if task == report.problem.target]
    order += [task for members in report.groups.values() for task in members if task in report.cosines]
    if not 2 < len(order) <= _MOST_TASKS:
        return None
    room = max(2, int(min(96, 752 / len(order)) / 8))
    table = HeatMap(
        "Mean cosine, hundredths",
        tuple(_short(name, 15) for name in order),
        tuple(_short(name, room) for name in order),
        tuple(tuple(report.cosines[a][b] for b in order) for a in order),
        marked=frozenset((i, i) for i in range(len(order))),
    )
    return heat_maps_svg("Cosines of the gradients of every two tasks", [table])


def conflicts(report: DiagnosisReport) -> list[GradientConflict]:
    """Of the groups, those that oppose the target most first, as many as are drawn."""
    found = [c for ranked in report.causes.values() for c in ranked.causes if isinstance(c, GradientConflict)]
    return sorted(found, key=lambda c: c.groups[0].cosine.mean)[:_MOST_PANELS]


def conflict_curves(report: DiagnosisReport) -> list[Markup]:
    """Cosines of the whole model over the steps, with what noise alone would leave of one direction."""
    drawn = conflicts(report)
    if not drawn or len(drawn[0].steps) < 2:
        return []
    lines = [(c, c.groups[0]) for c in drawn]
    values = [v for _, g in lines for v in (*g.cosine_by_look, *g.null_by_look)]
    span = (min(-0.1, *values), max(0.1, *values))
    panels = [
        CurvePanel(
            f"{c.target} and {_short(c.source)}",
            (
                Curve("cosine", tuple(zip(c.steps, whole.cosine_by_look, strict=True))),
                Curve("one direction and noise (null)", tuple(zip(c.steps, whole.null_by_look, strict=True))),
            ),
            span,
        )
        for c, whole in lines
    ]
    title = f"Cosines of the gradients of {report.problem.target} and of its sources over the training"
    return [curve_panels(title, row) for row in _rows(panels)]


def conflict_maps(report: DiagnosisReport) -> list[Markup]:
    """Cosine minus its null by layer and step, a map a group."""
    maps = []
    for c in conflicts(report):
        rows = [tuple(a - b for a, b in zip(g.cosine_by_look, g.null_by_look, strict=True)) for g in c.groups]
        names = tuple(_short(g.name, 15) for g in c.groups)
        flagged = [i for i, g in enumerate(c.groups) if g.flag == "yes"]
        maps.append(
            HeatMap(
                f"{c.target} and {_short(c.source)}",
                names,
                tuple(str(step) for step in c.steps),
                tuple(rows),
                marked=frozenset((i, j) for i in flagged for j in range(len(c.steps))),
            )
        )
    title = "Cosine minus its null, hundredths, by group of parameters and step"
    return [heat_maps_svg(title, row) for row in _rows(maps)]


def _rows(items: Sequence[_Panel]) -> list[Sequence[_Panel]]:
    return [items[i : i + _A_ROW] for i in range(0, len(items), _A_ROW)]


def _short(name: str, most: int = 34) -> str:
    """The end of a long name of parameters, which tells them apart; of another name the beginning."""
    if len(name) <= most:
        return name
    return "…" + name[1 - most :].lstrip(".") if "." in name else name[: most - 1] + "…"
