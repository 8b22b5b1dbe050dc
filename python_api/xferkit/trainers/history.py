"""What a training reported, in memory and, where it has a folder, as JSON lines that a resumed run continues."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xferkit.files import named_errors, sync_folder, write_atomic

__all__ = ["Evaluation", "History", "MetricsFile", "Record"]


@dataclass(frozen=True)
class Record:
    """Metrics of a window of steps.

    Attributes:
        step: number of the window's last step over all stages, from 1.
        stage: name of the stage.
        seconds: wall time since the start of training, over all its resumptions.
        metrics: means over the window, by ``phase/metric``.
        learning_rates: by optimiser, of the window's last step.
    """

    step: int
    stage: str
    seconds: float
    metrics: dict[str, float]
    learning_rates: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one evaluation, by name, after ``step`` steps."""

    step: int
    stage: str
    seconds: float
    scores: dict[str, float]


@dataclass
class History:
    """All records of a training.

    Attributes:
        records: in order.
        evaluations: in order.
        steps: steps made.
        seconds: wall time of the whole training.
        selected_step: step whose weights were kept; None where the last ones were.
        stopped_early: whether patience ran out.
    """

    records: list[Record] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    selected_step: int | None = None
    stopped_early: bool = False

    @property
    def last(self) -> dict[str, float]:
        """The latest value of every metric that was ever reported."""
        merged: dict[str, float] = {}
        for record in self.records:
            merged |= record.metrics
        return merged

    @property
    def selected(self) -> dict[str, float]:
        """Scores of the evaluation whose weights were kept (the last one's where none was selected)."""
        for evaluation in reversed(self.evaluations):
            if self.selected_step in (None, evaluation.step):
                return evaluation.scores
        return {}


class MetricsFile:
    """``metrics.jsonl``, one object a line with ``metrics`` or ``scores``, and ``metrics.csv`` of the same.

    Args:
        folder: where they are; None keeps nothing.
        writes: whether this process is the one that writes; the others read when a run is resumed.
    """

    def __init__(self, folder: Path | None, writes: bool = True) -> None:
        self.path = None if folder is None else folder / "metrics.jsonl"
        self.writes = writes

    def add(self, entry: Record | Evaluation) -> None:
        """Append a line."""
        if self.path is not None and self.writes:
            with named_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(asdict(entry)), ensure_ascii=False, allow_nan=False) + "\n")

    def position(self) -> int:
        """Bytes so far, safely on the disk: what a checkpoint remembers."""
        if self.path is None or not self.path.exists():
            return 0
        with named_errors(self.path), open(self.path, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def rewind(self, position: int, history: History) -> None:
        """Drop what was written after a checkpoint and read the rest into ``history``.

        Raises:
            ValueError: the file is shorter than the checkpoint says.
        """
        if self.path is None:
            return
        if self.writes:
            with named_errors(self.path):
                self.path.touch()
                # A checkpoint counts on the file: its name must survive a power cut.
                sync_folder(self.path.parent)
        if self.path.stat().st_size < position:
            raise ValueError(
                f"{self.path}: has {self.path.stat().st_size} bytes, expected at least the {position} that the "
                "checkpoint was saved with; was it edited?"
            )
        with named_errors(self.path), open(self.path, "r+b" if self.writes else "rb") as file:
            if self.writes:
                file.truncate(position)
            lines = file.read(position).decode().split("\n")[:-1]
        for line in lines:
            entry = _not_none(json.loads(line))
            if "scores" in entry:
                history.evaluations.append(Evaluation(**entry))
            else:
                history.records.append(Record(**entry))

    def write_csv(self, history: History) -> None:
        """All records as a table, a column for every metric, score and learning rate."""
        if self.path is None or not self.writes:
            return
        rows: list[dict[str, Any]] = []
        entries: list[Record | Evaluation] = [*history.records, *history.evaluations]
        for entry in sorted(entries, key=lambda e: e.step):
            row: dict[str, Any] = {
                "step": entry.step,
                "stage": entry.stage,
                "seconds": f"{entry.seconds:.3f}",
            }
            if isinstance(entry, Record):
                row |= entry.metrics | {f"lr/{name}": rate for name, rate in entry.learning_rates.items()}
            else:
                row |= entry.scores
            rows.append(row)
        columns = dict.fromkeys(name for row in rows for name in row)
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(columns))
        table.writeheader()
        table.writerows(rows)
        write_atomic(self.path.with_suffix(".csv"), text.getvalue())


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _not_none(v) for k, v in value.items()}
    return math.nan if value is None else value
