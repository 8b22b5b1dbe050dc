"""Progress of the demo: that of any experiment, with the scores the demo is about."""

from __future__ import annotations

from typing import TextIO

from xferkit.demo.plan import CellSpec
from xferkit.demo.store import CellOutcome
from xferkit.experiments import progress
from xferkit.experiments.progress import RemainingTime

__all__ = ["Progress", "RemainingTime", "make_progress"]

Progress = progress.Progress[CellSpec, CellOutcome]


def make_progress(
    specs: tuple[CellSpec, ...], total: int, workers: int, stream: TextIO | None = None
) -> Progress:
    """Progress over `specs`, the runs not done yet of `total`: a bar when `stream` (stderr) is a terminal."""
    return progress.make_progress(specs, total, workers, _scores, stream)


def _scores(outcome: CellOutcome) -> str:
    return f"accuracy {outcome.accuracy:.3f}, macro-F1 {outcome.macro_f1:.3f}"
