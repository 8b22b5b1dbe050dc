"""Progress of the demo: that of any experiment, with the scores the demo is about."""

from __future__ import annotations

from typing import TextIO

from xferkit.demo.pool import AnyOutcome, AnySpec
from xferkit.demo.store import CellOutcome
from xferkit.experiments import progress
from xferkit.experiments.progress import RemainingTime

__all__ = ["Progress", "RemainingTime", "make_progress"]

Progress = progress.Progress[AnySpec, AnyOutcome]


def make_progress(
    specs: tuple[AnySpec, ...], total: int, workers: int, stream: TextIO | None = None
) -> Progress:
    """Progress over `specs`, the runs not done yet of `total`: a bar when `stream` (stderr) is a terminal."""
    return progress.make_progress(specs, total, workers, _scores, stream)


def _scores(outcome: AnyOutcome) -> str:
    if isinstance(outcome, CellOutcome):
        return f"accuracy {outcome.accuracy:.3f}, macro-F1 {outcome.macro_f1:.3f}"
    seen = [cosine for cosine in outcome.model if cosine is not None]
    return f"mean cosine {sum(seen) / max(1, len(seen)):+.3f}"
