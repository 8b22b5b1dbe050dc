"""A finished demo as one value, from which every file is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xferkit.data.cldr import NameData
from xferkit.demo.plan import CellSpec, Preset, SimilaritySpec
from xferkit.demo.similarity import SimilaritySummary
from xferkit.demo.store import CellOutcome, SimilarityOutcome
from xferkit.demo.summary import TargetSummary

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A finished demo: what was asked, what came out, and where.

    Attributes:
        preset: the size.
        records: every run and its result.
        summaries: per target.
        data: names as written.
        environment: versions and hardware, as plain text.
        date: when it ended, ISO 8601 in UTC.
        wall_seconds: time since it was started; runs taken over from an earlier start are not in it.
        reused: how many runs were taken over.
        workers: worker processes.
        similarity_records: every run that compares gradients, and its result.
        similarity: what these say together; None without such runs.
    """

    preset: Preset
    records: Mapping[CellSpec, CellOutcome]
    summaries: tuple[TargetSummary, ...]
    data: NameData
    environment: Mapping[str, str]
    date: str
    wall_seconds: float
    reused: int
    workers: int
    similarity_records: Mapping[SimilaritySpec, SimilarityOutcome] = field(default_factory=dict)
    similarity: SimilaritySummary | None = None
