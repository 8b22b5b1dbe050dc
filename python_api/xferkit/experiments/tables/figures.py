"""The figures of a table: scores, differences to pooled, and the weights that gates give to sources."""

from __future__ import annotations

import math

from xferkit.experiments.tables.config import BASELINE
from xferkit.experiments.tables.summary import PanelResult, TargetResult
from xferkit.report.format import percent, points, spread
from xferkit.report.heat_map import HeatMap
from xferkit.report.svg import Bar, BarPanel, Difference, Row

__all__ = ["GATE_TITLES", "difference_rows", "gate_maps", "score_figure"]

GATE_TITLES = {"private": "Gate of the private experts", "predictor": "Gate of the predictor experts"}


def score_figure(panel: PanelResult) -> tuple[list[Row], list[BarPanel]]:
    """Scores of every method, a panel for each target, with the tag of each word in the sources as a line."""
    first = panel.targets[0]
    rows = [Row(m.about.label, "base" if m.name == BASELINE else "main") for m in first.methods]
    ends = [
        m.score.mean + (0.0 if math.isnan(m.score.half_width) else m.score.half_width)
        for target in panel.targets
        for m in target.methods
    ]
    best = max([*ends, *(score for target in panel.targets for score in target.lookups.values())])
    high = max(0.1, min(1.0, math.ceil(best * 10 + 0.2) / 10))
    step = 2 if high > 0.45 else 1
    ticks = tuple((tick / 10, f"{tick * 10}") for tick in range(0, round(high * 10) + 1, step))
    panels = [
        BarPanel(
            f"{target.target} ({target.kind})",
            tuple(
                Bar(m.score.mean, m.score.half_width, m.runs, percent(m.score.mean)) for m in target.methods
            ),
            high,
            ticks,
            ((target.lookups["most_frequent_tag"], "tag by word"),),
        )
        for target in panel.targets
    ]
    return rows, panels


def difference_rows(target: TargetResult) -> list[Difference]:
    """Paired differences to pooled, in points."""
    return [
        Difference(
            m.about.label,
            100 * m.gain.mean,
            100 * m.gain.half_width,
            str(m.verdict),
            f"{points(m.gain.mean)}  [{spread(m.gain)}]  {m.verdict}",
        )
        for m in target.methods
        if m.gain is not None
    ]


def gate_maps(panel: PanelResult, method: str) -> list[HeatMap]:
    """A matrix for each gate of `method`: targets, then held-out sentences of the sources, by source.

    A frame marks a target's sisters and a source itself.
    """
    maps = []
    for gate, rows in panel.gates.get(method, {}).items():
        labels: list[str] = []
        values: list[tuple[float, ...]] = []
        marked: set[tuple[int, int]] = set()
        for row in rows:
            if row.kind == "source" and labels and "" not in labels:
                labels.append("")
                values.append(())
            for column, source in enumerate(panel.panel.sources):
                if source in row.sisters:
                    marked.add((len(labels), column))
            labels.append(
                f"{row.language}, held out" if row.kind == "source" else f"{row.language} ({row.kind})"
            )
            values.append(tuple(row.weights.values()))
        title = GATE_TITLES.get(gate, gate)
        maps.append(HeatMap(title, tuple(labels), panel.panel.sources, tuple(values), frozenset(marked)))
    return maps
