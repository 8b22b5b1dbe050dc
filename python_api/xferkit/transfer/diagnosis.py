"""The answer: every cell of the transfer matrix with its gains, interval and verdict, as text, JSON, CSV or LaTeX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xferkit.metrics.intervals import interval_record, t_interval
from xferkit.transfer import tables
from xferkit.transfer.bootstrap import ExampleInterval, bootstrap_examples
from xferkit.transfer.calling import Outcome
from xferkit.transfer.cells import Cell, Score, cell_record, csv_record
from xferkit.transfer.gap import transfer_gap
from xferkit.transfer.plan import Comparison, Plan, Run, counted
from xferkit.transfer.statistics import Verdict, judge

__all__ = ["Diagnosis", "assemble"]

_FORMAT = 1


@dataclass(frozen=True)
class Diagnosis:
    """The transfer matrix of a plan.

    Attributes:
        plan: what was compared, in which runs.
        cells: one a comparison, in the plan's order.
        scores: the targets' scores in all task sets, those alone first.
        confidence: of every interval, and 1 minus the chance that any verdict is false.
        notes: what a reader has to know: how intervals and verdicts were made, what was not matched, damaged files.
    """

    plan: Plan
    cells: tuple[Cell, ...]
    scores: tuple[Score, ...]
    confidence: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table, and every cell in words."""
        return "\n".join([self.table(), *self.sentences])

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every cell in words: what hurts first, the most harmful above, then what helps, then what is open."""
        order = (Verdict.HURTS, Verdict.HELPS, Verdict.INCONCLUSIVE)
        ranked = sorted(
            self.cells,
            key=lambda c: (order.index(c.verdict), -c.gain if c.verdict is Verdict.HELPS else c.gain),
        )
        return tuple(cell.sentence for cell in ranked)

    def cell(
        self,
        target: str,
        sources: str | Sequence[str],
        *,
        kind: str | None = None,
        matching: str | None = None,
    ) -> Cell:
        """The cell of a target and its sources.

        Args:
            target: the task in question.
            sources: one name or several, in any order.
            kind: which kind, where several have these sources; None: the first.
            matching: which matching; None: the first.

        Raises:
            KeyError: there is none.
        """
        wanted = {sources} if isinstance(sources, str) else set(sources)
        for cell in self.cells:
            fits = kind in (None, cell.kind) and matching in (None, cell.matching)
            if fits and cell.target == target and set(cell.sources) == wanted:
                return cell
        raise KeyError(f"no cell for target {target!r} and sources {sorted(wanted)}")

    def table(self, style: Literal["text", "markdown"] = "text") -> str:
        """All cells as a table for the terminal, or in Markdown.

        Raises:
            ValueError: another style.
        """
        if style not in ("text", "markdown"):
            raise ValueError(f"style must be 'text' or 'markdown', got {style!r}")
        return (tables.text if style == "text" else tables.markdown)(self._rows())

    def to_latex(self) -> str:
        """All cells as a ``tabular`` of LaTeX with booktabs rules."""
        return tables.latex(self._rows())

    def to_csv(self) -> str:
        """All cells with full precision; sources and gains of several are joined by semicolons."""
        return tables.csv_text([csv_record(cell) for cell in self.cells])

    def to_json(self) -> str:
        """Everything, with full precision; ends of an interval that a single seed has not are null."""
        content = {
            "format": _FORMAT,
            "tasks": self.plan.tasks,
            "targets": self.plan.targets,
            "seeds": self.plan.seeds,
            "budget": self.plan.budget,
            "matchings": self.plan.matchings,
            "runs": self.plan.num_runs,
            "comparisons": len(self.cells),
            "confidence": self.confidence,
            "cells": [cell_record(cell) for cell in self.cells],
            "scores": [
                {
                    "target": score.target,
                    "tasks": score.tasks,
                    "matching": score.matching,
                    "values": score.values,
                    "interval": interval_record(score.interval),
                }
                for score in self.scores
            ],
            "sentences": self.sentences,
            "notes": self.notes,
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            tables.header(self.confidence),
            *(tables.row(c.comparison, c.judgement, c.points) for c in self.cells),
        ]


def assemble(
    plan: Plan,
    outcomes: Mapping[Run, Outcome],
    *,
    higher_is_better: Mapping[str, bool],
    confidence: float = 0.95,
    notes: Sequence[str] = (),
) -> Diagnosis:
    """The diagnosis of a plan whose runs are all there.

    Args:
        plan: the comparisons.
        outcomes: of each of its runs.
        higher_is_better: for each target.
        confidence: in (0, 1).
        notes: what else its readers have to know.

    Raises:
        ValueError: the two runs of a comparison scored different numbers of test examples.
    """
    pairs = [plan.pairs(comparison) for comparison in plan.comparisons]
    gaps = [
        transfer_gap(
            [outcomes[a].scores[c.target] for a, _ in runs],
            [outcomes[b].scores[c.target] for _, b in runs],
            higher_is_better=higher_is_better[c.target],
            confidence=confidence,
        )
        for c, runs in zip(plan.comparisons, pairs, strict=True)
    ]
    judgements = judge([gap.gains for gap in gaps], confidence)
    points = {
        target: higher_is_better[target]
        and all(0.0 <= o.scores[target] <= 1.0 for o in outcomes.values() if target in o.scores)
        for target in plan.targets
    }
    cells = tuple(
        Cell(
            c,
            gap.gains,
            judgement,
            _over_examples(c, runs, outcomes, higher_is_better[c.target], confidence),
            points[c.target],
        )
        for c, runs, gap, judgement in zip(plan.comparisons, pairs, gaps, judgements, strict=True)
    )
    return Diagnosis(plan, cells, _scores(plan, outcomes, confidence), confidence, tuple(notes))


def _over_examples(
    c: Comparison,
    runs: Sequence[tuple[Run, Run]],
    outcomes: Mapping[Run, Outcome],
    higher_is_better: bool,
    confidence: float,
) -> ExampleInterval | None:
    sides = [[outcomes[run].examples.get(c.target) for run in side] for side in zip(*runs, strict=True)]
    known = [[row for row in side if row is not None] for side in sides]
    if any(len(rows) < len(runs) for rows in known):
        return None
    expected = len(known[0][0])
    for side, rows in zip(zip(*runs, strict=True), known, strict=True):
        for run, row in zip(side, rows, strict=True):
            if len(row) != expected:
                raise ValueError(
                    f"the run {run.describe()} scored {counted(len(row), 'test example')} of {c.target!r} and the run "
                    f"{runs[0][0].describe()} {expected}; both must score the same ones in the same order"
                )
    if expected < 2:
        return None  # one example has no spread
    return bootstrap_examples(
        np.array(known[0]), np.array(known[1]), higher_is_better=higher_is_better, confidence=confidence
    )


def _scores(plan: Plan, outcomes: Mapping[Run, Outcome], confidence: float) -> tuple[Score, ...]:
    sets = {(c.target, run.tasks, run.matching) for c in plan.comparisons for run in plan.pairs(c)[0]}
    order = {task: i for i, task in enumerate(plan.tasks)}
    ranked = sorted(sets, key=lambda s: (len(s[1]), order[s[0]], [order[t] for t in s[1]], s[2]))
    found = []
    for target, tasks, matching in ranked:
        values = tuple(outcomes[Run(tasks, seed, matching)].scores[target] for seed in plan.seeds)
        found.append(Score(target, tasks, matching, values, t_interval(values, confidence)))
    return tuple(found)
