"""One cell of the transfer matrix, one score of a task set, and their records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xferkit.metrics.intervals import Interval, interval_record
from xferkit.transfer.bootstrap import ExampleInterval
from xferkit.transfer.plan import Comparison
from xferkit.transfer.sentences import sentence
from xferkit.transfer.statistics import Judgement, Verdict

__all__ = ["Cell", "Score", "cell_record", "csv_record"]


@dataclass(frozen=True)
class Score:
    """The target's score in one task set, over seeds.

    Attributes:
        target: the task that is scored.
        tasks: the tasks that were trained together.
        matching: see :data:`~xferkit.transfer.plan.Matching`.
        values: one a seed, as the training function returned them.
        interval: their mean with its t-interval.
    """

    target: str
    tasks: tuple[str, ...]
    matching: str
    values: tuple[float, ...]
    interval: Interval


@dataclass(frozen=True)
class Cell:
    """What some sources do to a target.

    Attributes:
        comparison: target, sources, kind, matching and the two task sets.
        gains: one a seed, positive where the sources help, whatever the direction of the score.
        judgement: interval, p-values and verdict.
        examples: interval over test examples for these trained models, where scores per example were returned.
        points: a unit of the score is shown as 100 points.
    """

    comparison: Comparison
    gains: tuple[float, ...]
    judgement: Judgement
    examples: ExampleInterval | None = None
    points: bool = False

    @property
    def target(self) -> str:
        """The task in question."""
        return self.comparison.target

    @property
    def sources(self) -> tuple[str, ...]:
        """What was added to its training."""
        return self.comparison.sources

    @property
    def kind(self) -> str:
        """See :data:`~xferkit.transfer.plan.Kind`."""
        return self.comparison.kind

    @property
    def matching(self) -> str:
        """See :data:`~xferkit.transfer.plan.Matching`."""
        return self.comparison.matching

    @property
    def verdict(self) -> Verdict:
        """HELPS, HURTS or INCONCLUSIVE, after Holm over all cells."""
        return self.judgement.verdict

    @property
    def gain(self) -> float:
        """Mean gain; negative: the sources hurt. The negative transfer gap is its negative."""
        return self.judgement.interval.mean

    @property
    def sentence(self) -> str:
        """The cell in words: ``fr HURTS en by 2.1 points [1.2, 3.0] (5 seeds).``"""
        return sentence(self.comparison, self.judgement, self.points)


def cell_record(cell: Cell) -> dict[str, Any]:
    """A cell as JSON holds it."""
    c, j = cell.comparison, cell.judgement
    return {
        "target": c.target,
        "sources": c.sources,
        "kind": c.kind,
        "group": c.group,
        "matching": c.matching,
        "with_tasks": c.with_tasks,
        "without_tasks": c.without_tasks,
        "gains": cell.gains,
        "interval": interval_record(j.interval),
        "ntg": 0.0 - cell.gain,
        "p": j.p,
        "holm_p": j.holm_p,
        "verdict": j.verdict.value,
        "more_seeds": j.more_seeds,
        "note": j.note,
        "points": cell.points,
        "examples": None
        if cell.examples is None
        else {
            "mean": cell.examples.mean,
            "low": cell.examples.low,
            "high": cell.examples.high,
            "examples": cell.examples.examples,
            "method": cell.examples.method,
        },
        "sentence": cell.sentence,
    }


def csv_record(cell: Cell) -> dict[str, Any]:
    """A cell as one flat row; values of several are joined by semicolons."""
    record = cell_record(cell)
    interval = record.pop("interval")
    examples = record.pop("examples") or {}
    for name in ("sources", "with_tasks", "without_tasks", "gains"):
        record[name] = ";".join(map(str, record[name]))
    record |= {"gain": interval["mean"], "low": interval["low"], "high": interval["high"], "n": interval["n"]}
    record |= {f"examples_{name}": examples.get(name) for name in ("low", "high", "examples", "method")}
    return record
