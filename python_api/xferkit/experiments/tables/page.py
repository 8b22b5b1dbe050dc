"""The page of a table: the content of report/templates/table.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xferkit.experiments.tables.claims import check_claims, sentences
from xferkit.experiments.tables.config import TableConfig
from xferkit.experiments.tables.figures import difference_rows, gate_maps, score_figure
from xferkit.experiments.tables.grid import mean_sd
from xferkit.experiments.tables.plan import METHODS
from xferkit.experiments.tables.summary import PanelResult
from xferkit.experiments.tagging_cell import TaggingCell, TaggingOutcome
from xferkit.report.axes import difference_ticks
from xferkit.report.heat_map import heat_maps_svg
from xferkit.report.html import render_page
from xferkit.report.svg import bar_panels, difference_plot
from xferkit.runs.schema import plain

__all__ = ["table_html"]


def table_html(
    config: TableConfig,
    panels: Sequence[PanelResult],
    records: Mapping[TaggingCell, TaggingOutcome],
    facts: Sequence[tuple[str, str]],
) -> str:
    """The page as text.

    Args:
        config: the table.
        panels: what came out.
        records: every run.
        facts: date, machine and versions, as names and values.
    """
    return render_page(
        "table.html",
        title=config.title,
        task=config.task,
        score=config.settings.score_words,
        num_seeds=len(config.seeds),
        sentences=sentences(panels),
        claims=check_claims(panels),
        panels=[_panel(panel) for panel in panels],
        notes=[*config.notes, *_notes(config, panels, records)],
        facts=[*facts, *((name, str(value)) for name, value in plain(config.settings).items())],
        mean_sd=mean_sd,
    )


def _panel(panel: PanelResult) -> dict[str, Any]:
    name = f"source set {panel.name}"
    differences = [(target, difference_rows(target)) for target in panel.targets]
    return {
        "name": panel.name,
        "sources": panel.panel.sources,
        "why": panel.panel.why,
        "targets": panel.targets,
        "lookups": [(METHODS[lookup], lookup) for lookup in panel.targets[0].lookups],
        "rows": list(zip(*(target.methods for target in panel.targets), strict=True)),
        "sizes": panel.sizes,
        "chance": 1 / len(panel.panel.sources),
        "language_chance": 1 / (len(panel.panel.sources) + 1),
        "score_svg": bar_panels(f"Scores with {name}", *score_figure(panel)),
        "differences": [
            {
                "target": target,
                "svg": difference_plot(
                    f"{target.target} with {name}, against pooled",
                    rows,
                    ticks=difference_ticks(rows),
                    low_text="worse than pooled",
                    high_text="better than pooled",
                ),
            }
            for target, rows in differences
            if rows
        ],
        "gates": [
            {
                "label": METHODS[method].label if method in METHODS else method,
                "svg": heat_maps_svg(f"Gate weights of {method} with {name}, %", gate_maps(panel, method)),
            }
            for method in panel.gates
        ],
    }


def _notes(
    config: TableConfig, panels: Sequence[PanelResult], records: Mapping[TaggingCell, TaggingOutcome]
) -> list[str]:
    comparisons = sum(
        m.gain is not None for panel in panels for target in panel.targets for m in target.methods
    )
    notes = [
        f"Seeds: {len(config.seeds)}. Intervals are 95 % Student t-intervals over seeds: they hold the luck of "
        "training, not the choice of test sentences. With few seeds they are wide, and their coverage rests on "
        "scores that spread like a normal distribution.",
        f"{comparisons} differences to pooled are shown and none is corrected for their number; if nothing "
        f"differed, about {max(1, round(comparisons * 0.05))} of them would still leave out 0 by chance.",
        "No label of a target was used but for its test: the weights are those of the best score on the "
        f"sources' development sentences ({config.settings.trainer.select}), and no setting was chosen by a "
        "target's score.",
        "Every method has the same encoder, steps, batches and optimiser, and the time of a run differs "
        "between them: the table compares equal steps, not equal time.",
    ]
    broken = [cell.describe() for cell, run in records.items() if any(v is None for v in run.losses.values())]
    if broken:
        notes.append(f"{len(broken)} runs ended with a loss that is not finite: {', '.join(broken)}.")
    return notes
