"""The demo's finished runs: what one holds, and the store of an experiment for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xferkit.demo.plan import CellSpec, SimilaritySpec
from xferkit.experiments import cells

__all__ = ["CellOutcome", "CellStore", "Pairs", "SimilarityOutcome", "SimilarityStore"]

#: Cosines of the pairs (i, j), i < j, of languages, row by row; None where a gradient is zero.
Pairs = tuple[float | None, ...]


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
            losses=_losses(values["losses"]),
        )
        if outcome.steps < 0:
            raise ValueError(f"steps must not be negative, got {outcome.steps}")
        return outcome


@dataclass(frozen=True)
class SimilarityOutcome:
    """Result of one run that compares gradients.

    Attributes:
        model: the whole model's cosines, mean over the steps of the focus.
        layers: the same of each layer.
        samples: the same of gradients over fewer names, by their number.
        course: the whole model's cosines by step.
        seconds: wall time.
        steps: training steps done.
        losses: last value of each loss by name; None where it was not finite.
    """

    model: Pairs
    layers: dict[str, Pairs]
    samples: dict[str, Pairs]
    course: dict[str, Pairs]
    seconds: float
    steps: int
    losses: dict[str, float | None]

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> SimilarityOutcome:
        """Build from plain values; ValueError says which one cannot be."""
        model = _cosines("model", values["model"])
        tables = {
            name: {str(key): _cosines(f"{name}[{key}]", pairs) for key, pairs in values[name].items()}
            for name in ("layers", "samples", "course")
        }
        for name, table in tables.items():
            for key, pairs in table.items():
                if len(pairs) != len(model):
                    raise ValueError(f"{name}[{key}] must hold {len(model)} cosines, got {len(pairs)}")
        for step in tables["course"]:
            int(step)
        return cls(
            model=model,
            seconds=_number("seconds", values["seconds"]),
            steps=int(values["steps"]),
            losses=_losses(values["losses"]),
            **tables,
        )


def _number(name: str, value: Any, high: float = math.inf) -> float:
    number = float(value)
    if not (math.isfinite(number) and 0.0 <= number <= high):
        raise ValueError(f"{name} must be a finite number in [0, {high}], got {number}")
    return number


def _losses(values: Mapping[str, Any]) -> dict[str, float | None]:
    return {str(k): float(v) if v is not None and math.isfinite(v) else None for k, v in values.items()}


def _cosines(name: str, values: Any) -> Pairs:
    cosines = tuple(None if value is None else float(value) for value in values)
    for value in cosines:
        if value is not None and not -1.0 <= value <= 1.0:
            raise ValueError(f"{name} must hold cosines, got {value}")
    return cosines


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


class SimilarityStore(cells.CellStore[SimilaritySpec, SimilarityOutcome]):
    """The same for runs that compare gradients, in the same folder.

    Args:
        folder: as of :class:`CellStore`, whose lock counts for both.
        conditions: as of :class:`CellStore`.
        warn: as of :class:`CellStore`.
    """

    def __init__(
        self, folder: Path, conditions: Mapping[str, str], warn: Callable[[str], None] = lambda text: None
    ) -> None:
        super().__init__(
            folder,
            conditions,
            decode=SimilarityOutcome.checked,
            stem=lambda spec: f"gradients{'-lower' if spec.lowercase else ''}-s{spec.seed}",
            warn=warn,
            owner="demo",
        )


def _stem(spec: CellSpec) -> str:
    case = "-lower" if spec.lowercase else ""
    return f"{spec.target}-{spec.method}{case}-s{spec.seed}"
