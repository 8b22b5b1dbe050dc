"""A table as files: Markdown and LaTeX to read, CSV and JSON to go on with."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from xferkit.experiments.tables.config import TableConfig
from xferkit.experiments.tables.plan import METHODS
from xferkit.experiments.tables.summary import MethodResult, PanelResult, TargetResult, score_name
from xferkit.experiments.tagging_cell import TaggingCell, TaggingOutcome
from xferkit.metrics import Interval, interval_record
from xferkit.report.format import points, spread
from xferkit.runs.schema import plain

__all__ = ["cells_csv", "mean_sd", "results_json", "score_words", "table_csv", "table_markdown", "table_tex"]

_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class _Grid:
    caption: str
    header: list[str]
    rows: list[list[str]]


def score_words(config: TableConfig) -> str:
    """The score with its scheme: "accuracy, %" or "span F1 (conlleval), %"."""
    if config.settings.score == "accuracy":
        return "token accuracy, %"
    return f"span F1 ({config.settings.scheme}), %"


def mean_sd(score: Interval, sd: float) -> str:
    """Mean and sample deviation in per cent: "61.8 ± 1.2"; one run: the mean alone."""
    mean = f"{100 * score.mean:.1f}"
    return mean if math.isnan(sd) else f"{mean} ± {100 * sd:.1f}"


def _share(interval: Interval | None) -> str:
    return _DASH if interval is None else f"{100 * interval.mean:.0f}"


def _gates(method: MethodResult) -> str:
    return " / ".join(f"{100 * i.mean:.0f}" for i in method.gate_accuracy.values()) or _DASH


def _against_pooled(method: MethodResult) -> str:
    if method.gain is None:
        return _DASH
    between = "" if math.isnan(method.gain.half_width) else f" [{spread(method.gain)}]"
    return f"{points(method.gain.mean)}{between} {method.verdict}"


def _grid(config: TableConfig, panel: PanelResult) -> _Grid:
    header = ["Method"]
    for target in panel.targets:
        name = f"{target.target} ({target.kind})"
        header += [name, f"{name} against pooled"]
    header += ["sources (dev)", "adversary", "probe", "gate"]
    rows = []
    for lookup in panel.targets[0].lookups:
        scores = [[f"{100 * target.lookups[lookup]:.1f}", _DASH] for target in panel.targets]
        rows.append([METHODS[lookup].label, *chain(*scores), *[_DASH] * 4])
    for index, first in enumerate(panel.targets[0].methods):
        of = [target.methods[index] for target in panel.targets]
        scores = [[mean_sd(method.score, method.sd), _against_pooled(method)] for method in of]
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
        f"{panel.name}: sources {sources}. {score_words(config)}: mean ± sd over {seeds}; "
        "differences to pooled in points, paired by seed, with 95 % t-intervals. Adversary, probe: accuracy of the "
        f"discriminator and of a fresh one on held-out sentences, % (chance {100 / (num + 1):.0f}). Gate: held-out "
        f"source tokens sent to their own language, % (chance {100 / num:.0f}), private / predictor gate."
    )
    return _Grid(caption, header, rows)


def table_markdown(config: TableConfig, panels: Sequence[PanelResult]) -> str:
    """One table a panel, with captions."""
    parts = [f"# {config.title}", f"{config.task}. Labels of a target are used for its test alone."]
    for panel in panels:
        grid = _grid(config, panel)
        lines = [_row(grid.header), _row(["---"] * len(grid.header)), *map(_row, grid.rows)]
        parts += ["\n".join(lines), grid.caption]
    return "\n\n".join([*parts, *config.notes]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_TEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\~{}"}
_TEX |= {"±": r"$\pm$", "\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--", "\\": r"\textbackslash{}", "^": r"\^{}"}


def table_tex(config: TableConfig, panels: Sequence[PanelResult]) -> str:
    """One ``table`` environment a panel; needs no package."""
    parts = []
    for panel in panels:
        grid = _grid(config, panel)
        body = [" & ".join(map(_tex, row)) + r" \\" for row in [grid.header, *grid.rows]]
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\begin{tabular}{l" + "r" * (len(grid.header) - 1) + "}",
                    r"\hline",
                    body[0],
                    r"\hline",
                    *body[1:],
                    r"\hline",
                    r"\end{tabular}",
                    rf"\caption{{{_tex(grid.caption)}}}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _number(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value


def _mean(interval: Interval | None) -> float | str:
    return "" if interval is None else interval.mean


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
                        *[*begin, m.name, m.score.n, m.score.mean, _number(m.sd)],
                        *[_number(m.score.low), _number(m.score.high)],
                        *[_number(v) for v in ((gain.mean, gain.low, gain.high) if gain else (None,) * 3)],
                        *[m.verdict or "", m.accuracy.mean, m.source_score.mean],
                        *[_mean(i) for i in (m.discriminator, m.probe)],
                        *[_mean(i) for i in map(m.gate_accuracy.get, ("private", "predictor"))],
                        m.seconds,
                    ]
                )
    return _csv(header, rows)


def cells_csv(config: TableConfig, records: Mapping[TaggingCell, TaggingOutcome]) -> str:
    """One line a run and target."""
    score = score_name(config)
    header = ["sources", "target", "method", "seed", "score", "accuracy", "selected_step", "steps", "seconds"]
    rows = [
        [
            *[" ".join(cell.sources), target, cell.method, cell.seed, scores[score], scores["accuracy"]],
            *["" if run.selected_step is None else run.selected_step, run.steps, run.seconds],
        ]
        for cell, run in records.items()
        for target, scores in run.targets.items()
    ]
    return _csv(header, rows)


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
        "score": score_words(config),
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
