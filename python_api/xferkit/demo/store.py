"""The demo's finished runs: what one holds, and the store of an experiment for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xferkit.demo.plan import CellSpec
from xferkit.experiments import cells

__all__ = ["CellOutcome", "CellStore"]


@dataclass(frozen=True)
class CellOutcome:
    """Result of one run.

    Attributes:
        accuracy: on the target's test names, in [0, 1].
        macro_f1: the same names, in [0, 1].
        seconds: wall time of training and test.
        gate: mean weight of each source on the target, for methods that have a gate.
        steps: training steps done.
        losses: last value of each loss by name; None where it was not finite.
    """

    accuracy: float
    macro_f1: float
    seconds: float
    gate: dict[str, float] | None
    steps: int
    losses: dict[str, float | None]

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> CellOutcome:
        """Build from plain values; ValueError says which one cannot be."""
        outcome = cls(
            accuracy=_number("accuracy", values["accuracy"], high=1.0),
            macro_f1=_number("macro_f1", values["macro_f1"], high=1.0),
            seconds=_number("seconds", values["seconds"]),
            gate=None
            if values["gate"] is None
            else {str(k): _number(f"gate[{k}]", v) for k, v in values["gate"].items()},
            steps=int(values["steps"]),
            losses={
                str(k): float(v) if v is not None and math.isfinite(v) else None
                for k, v in values["losses"].items()
            },
        )
        if outcome.steps < 0:
            raise ValueError(f"steps must not be negative, got {outcome.steps}")
        return outcome


def _number(name: str, value: Any, high: float = math.inf) -> float:
    number = float(value)
    if not (math.isfinite(number) and 0.0 <= number <= high):
        raise ValueError(f"{name} must be a finite number in [0, {high}], got {number}")
    return number


class CellStore(cells.CellStore[CellSpec, CellOutcome]):
    """Folder ``cells/`` of an output folder; see :class:`xferkit.experiments.cells.CellStore`.

    Args:
        folder: the folder, made when it is not there.
        conditions: what decides results beside the run, as plain JSON values.
        warn: called with a sentence when a broken file was moved aside.
    """

    def __init__(
        self, folder: Path, conditions: Mapping[str, str], warn: Callable[[str], None] = lambda text: None
    ) -> None:
        """Make the folder when it is not there."""
        super().__init__(folder, conditions, decode=CellOutcome.checked, stem=_stem, warn=warn, owner="demo")


def _stem(spec: CellSpec) -> str:
    case = "-lower" if spec.lowercase else ""
    return f"{spec.target}-{spec.method}{case}-s{spec.seed}"
