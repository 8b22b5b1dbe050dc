"""Scores over seeds: mean, standard deviation and t-interval for each labelled set."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xferkit.metrics import Interval, t_interval

if TYPE_CHECKING:
    from xferkit.runs.seed import SeedResult

__all__ = ["SetSummary", "summarise", "summary_json"]


@dataclass(frozen=True)
class SetSummary:
    """Scores of all seeds on one labelled set.

    Attributes:
        role: ``"dev"`` or ``"test"``.
        language: its language.
        name: what the score is.
        per_seed: the score of each seed.
        interval: mean with its 95 % t-interval over seeds.
        sd: sample standard deviation; NaN for one seed.
        accuracy: mean accuracy.
        macro_f1: mean macro-F1.
        majority: accuracy of always answering the most frequent label.
        texts: texts of the set.
    """

    role: str
    language: str
    name: str
    per_seed: dict[int, float]
    interval: Interval
    sd: float
    accuracy: float
    macro_f1: float
    majority: float
    texts: int


def summarise(seeds: Mapping[int, SeedResult]) -> tuple[SetSummary, ...]:
    """One summary for each labelled set, development data first."""
    summaries = []
    for role in ("dev", "test"):
        languages = dict.fromkeys(lang for result in seeds.values() for lang in getattr(result, role))
        for language in languages:
            found = {s: getattr(r, role)[language] for s, r in seeds.items() if language in getattr(r, role)}
            scores = {seed: float(data["score"]) for seed, data in found.items()}
            first = next(iter(found.values()))
            summaries.append(
                SetSummary(
                    role=role,
                    language=language,
                    name=str(first["name"]),
                    per_seed=scores,
                    interval=t_interval(list(scores.values())),
                    sd=statistics.stdev(scores.values()) if len(scores) > 1 else math.nan,
                    accuracy=_mean(found, "accuracy"),
                    macro_f1=_mean(found, "macro_f1"),
                    majority=float(first["majority"]),
                    texts=int(first["texts"]),
                )
            )
    return tuple(summaries)


def _mean(found: Mapping[int, Mapping[str, Any]], name: str) -> float:
    return sum(float(data[name]) for data in found.values()) / len(found)


def summary_json(summaries: Sequence[SetSummary]) -> dict[str, Any]:
    """As plain values, by ``role/language``."""
    return {
        f"{s.role}/{s.language}": {
            "name": s.name,
            "mean": s.interval.mean,
            "sd": s.sd,
            "low": s.interval.low,
            "high": s.interval.high,
            "seeds": s.interval.n,
            "per_seed": {str(seed): score for seed, score in s.per_seed.items()},
            "accuracy": s.accuracy,
            "macro_f1": s.macro_f1,
            "majority": s.majority,
            "texts": s.texts,
        }
        for s in summaries
    }
