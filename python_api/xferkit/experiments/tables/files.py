"""A table as files: Markdown and LaTeX to read, CSV and JSON to go on with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from xferkit.experiments.tables.config import TableConfig
from xferkit.experiments.tables.grid import (
    DASH,
    Grid,
    csv_mean,
    csv_number,
    csv_text,
    gain_words,
    grid_markdown,
    grid_tex,
    mean_sd,
)
from xferkit.experiments.tables.plan import METHODS
from xferkit.experiments.tables.summary import MethodResult, PanelResult, TargetResult
from xferkit.experiments.tagging_cell import TaggingCell, TaggingOutcome
from xferkit.metrics import Interval, interval_record
from xferkit.runs.schema import plain

__all__ = ["cells_csv", "results_json", "table_csv", "table_markdown", "table_tex"]


def _share(interval: Interval | None) -> str:
    return DASH if interval is None else f"{100 * interval.mean:.0f}"


def _gates(method: MethodResult) -> str:
    return " / ".join(f"{100 * i.mean:.0f}" for i in method.gate_accuracy.values()) or DASH


def _grid(config: TableConfig, panel: PanelResult) -> Grid:
    header = ["Method"]
    for target in panel.targets:
        name = f"{target.target} ({target.kind})"
        header += [name, f"{name} against pooled"]
    header += ["sources (dev)", "adversary", "probe", "gate"]
    rows = []
    for lookup in panel.targets[0].lookups:
        scores = [[f"{100 * target.lookups[lookup]:.1f}", DASH] for target in panel.targets]
        rows.append([METHODS[lookup].label, *chain(*scores), *[DASH] * 4])
    for index, first in enumerate(panel.targets[0].methods):
        of = [target.methods[index] for target in panel.targets]
        scores = [
            [mean_sd(method.score, method.sd), gain_words(method.gain, method.verdict)] for method in of
        ]
        rows.append(
            [
                first.about.label,
                *chain(*scores),
                " / ".join(dict.fromkeys(f"{100 * m.source_score.mean:.1f}" for m in of)),
                " / ".join(dict.fromkeys(_share(m.discriminator) for m in of)),
                " / ".join(_share(m.probe) for m in of),
                "; ".join(dict.fromkeys(_gates(m) for m in of)),
            ]
        )
    num, sources = len(panel.panel.sources), ", ".join(panel.panel.sources)
    seeds = f"{len(config.seeds)} seed{'s' if len(config.seeds) != 1 else ''}"
    caption = (
        f"{panel.name}: sources {sources}. {config.settings.score_words}: mean ± sd over {seeds}; "
        "differences to pooled in points, paired by seed, with 95 % t-intervals. Adversary, probe: accuracy of the "
        f"discriminator and of a fresh one on held-out sentences, % (chance {100 / (num + 1):.0f}). Gate: held-out "
        f"source tokens sent to their own language, % (chance {100 / num:.0f}), private / predictor gate."
    )
    return Grid(caption, header, rows)


def table_markdown(config: TableConfig, panels: Sequence[PanelResult]) -> str:
    """One table a panel, with captions."""
    parts = [f"# {config.title}", f"{config.task}. Labels of a target are used for its test alone."]
    parts += [grid_markdown(_grid(config, panel)) for panel in panels]
    return "\n\n".join([*parts, *config.notes]) + "\n"


def table_tex(config: TableConfig, panels: Sequence[PanelResult]) -> str:
    """One ``table`` environment a panel; needs no package."""
    return "\n\n".join(grid_tex(_grid(config, panel)) for panel in panels) + "\n"


def table_csv(panels: Sequence[PanelResult]) -> str:
    """One line a panel, target and method; shares and differences in [-1, 1], empty where there is none."""
    header = ["panel", "sources", "target", "kind", "method", "seeds", "score", "sd", "low", "high"]
    header += [
        "against_pooled",
        "against_pooled_low",
        "against_pooled_high",
        "verdict",
        "accuracy",
        "source_dev",
    ]
    header += [
        "adversary_accuracy",
        "probe_accuracy",
        "private_gate_accuracy",
        "predictor_gate_accuracy",
        "seconds",
    ]
    rows: list[list[Any]] = []
    for panel in panels:
        for target in panel.targets:
            begin = [panel.name, " ".join(panel.panel.sources), target.target, target.kind]
            for name, score in target.lookups.items():
                row = [*begin, name, 1, score]
                rows.append([*row, *[""] * 7, target.lookup_accuracy[name], *[""] * 6])
            for m in target.methods:
                gain = m.gain
                rows.append(
                    [
                        *[*begin, m.name, m.score.n, m.score.mean, csv_number(m.sd)],
                        *[csv_number(m.score.low), csv_number(m.score.high)],
                        *[csv_number(v) for v in ((gain.mean, gain.low, gain.high) if gain else (None,) * 3)],
                        *[m.verdict or "", m.accuracy.mean, m.source_score.mean],
                        *[csv_mean(i) for i in (m.discriminator, m.probe)],
                        *[csv_mean(i) for i in map(m.gate_accuracy.get, ("private", "predictor"))],
                        m.seconds,
                    ]
                )
    return csv_text(header, rows)


def cells_csv(config: TableConfig, records: Mapping[TaggingCell, TaggingOutcome]) -> str:
    """One line a run and target."""
    score = config.settings.score_name
    header = ["sources", "target", "method", "seed", "score", "accuracy", "selected_step", "steps", "seconds"]
    rows = [
        [
            *[" ".join(cell.sources), target, cell.method, cell.seed, scores[score], scores["accuracy"]],
            *["" if run.selected_step is None else run.selected_step, run.steps, run.seconds],
        ]
        for cell, run in records.items()
        for target, scores in run.targets.items()
    ]
    return csv_text(header, rows)


def results_json(
    config: TableConfig,
    panels: Sequence[PanelResult],
    records: Mapping[TaggingCell, TaggingOutcome],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything: settings, panels, and every run as it stands on the disk."""
    return {
        "format": 1,
        "title": config.title,
        "task": config.task,
        "score": config.settings.score_words,
        "interval": "Student t over seeds, 95 %",
        **facts,
        "settings": plain(config.settings),
        "panels": [_panel_json(panel) for panel in panels],
        "cells": [{**asdict(cell), **asdict(run)} for cell, run in records.items()],
    }


def _panel_json(panel: PanelResult) -> dict[str, Any]:
    return {
        "name": panel.name,
        "sources": panel.panel.sources,
        "why": panel.panel.why,
        "targets": [_target_json(target) for target in panel.targets],
        "gates": {
            method: {
                gate: [{**asdict(r), "preference": r.preference} for r in rows] for gate, rows in of.items()
            }
            for method, of in panel.gates.items()
        },
        "gate_accuracy": {
            method: {gate: interval_record(i) for gate, i in of.items()}
            for method, of in panel.gate_accuracy.items()
        },
    }


def _target_json(target: TargetResult) -> dict[str, Any]:
    return {
        "target": target.target,
        "kind": target.kind,
        "sizes": target.sizes,
        "lookups": target.lookups,
        "methods": {
            m.name: {
                "runs": m.runs,
                "score": interval_record(m.score),
                "sd": None if math.isnan(m.sd) else m.sd,
                "accuracy": interval_record(m.accuracy),
                "against_pooled": interval_record(m.gain),
                "against_man": interval_record(m.man_gain),
                "verdict": m.verdict,
                "source_dev": interval_record(m.source_score),
                "adversary_accuracy": interval_record(m.discriminator),
                "probe_accuracy": interval_record(m.probe),
                "gate_accuracy": {gate: interval_record(i) for gate, i in m.gate_accuracy.items()},
                "seconds": m.seconds,
            }
            for m in target.methods
        },
    }
