"""What a training reported, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["History", "Record"]


@dataclass(frozen=True)
class Record:
    """Metrics of a window of steps.

    Attributes:
        step: number of the window's last step over all stages, from 1.
        stage: name of the stage.
        seconds: wall time since the start of training.
        metrics: means over the window, by ``phase/metric``.
        learning_rates: by optimiser, of the window's last step.
    """

    step: int
    stage: str
    seconds: float
    metrics: dict[str, float]
    learning_rates: dict[str, float]


@dataclass
class History:
    """All records of a training.

    Attributes:
        records: in order.
        steps: steps made.
        seconds: wall time of the whole training.
    """

    records: list[Record] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0

    @property
    def last(self) -> dict[str, float]:
        """The latest value of every metric that was ever reported."""
        merged: dict[str, float] = {}
        for record in self.records:
            merged |= record.metrics
        return merged
