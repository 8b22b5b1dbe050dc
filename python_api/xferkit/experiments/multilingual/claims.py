"""What the paper says, held against what came out: each claim with its figures, whichever way they fall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from xferkit.experiments.multilingual.config import MultilingualConfig, Row
from xferkit.experiments.multilingual.summary import RowResult, TableResult
from xferkit.metrics import Interval, paired_difference, verdict
from xferkit.report.format import difference, percent, points, signed, signed_interval, spread

__all__ = ["Claim", "check_claims", "sentences", "watched"]


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        text: what is claimed.
        figures: what was measured.
        holds: "yes" or "no" where the figures decide, else what they leave open.
    """

    text: str
    figures: str
    holds: str


def watched(result: TableResult) -> RowResult | None:
    """The row whose gradients are looked at: of those that take them apart, the one that turns the fewest pairs."""
    seen = [row for row in result.rows if row.pairs is not None]

    def turned(row: RowResult) -> float:
        assert row.pairs is not None
        return 1.0 if row.pairs.active is None else row.pairs.active.mean

    return min(seen, key=turned, default=None)


def check_claims(config: MultilingualConfig, result: TableResult) -> list[Claim]:
    """All claims for which there are figures."""
    return [*_relatedness(result), *_against_pcgrad(config, result), *_not_worse(config, result)]


def _relatedness(result: TableResult) -> Iterator[Claim]:
    row = watched(result)
    if row is None or row.pairs is None or row.pairs.difference is None:
        return
    pairs = row.pairs
    assert pairs.related is not None and pairs.others is not None and pairs.difference is not None
    yield Claim(
        "Gradients of related languages point more alike than those of others",
        f"mean cosine of pairs of one family {signed(pairs.related.mean, 3)}, of others "
        f"{signed(pairs.others.mean, 3)}: {signed_interval(pairs.difference, 3)} ({row.label})",
        _decided(pairs.difference),
    )


def _like(one: Row, other: Row) -> bool:
    """Whether two rows make surgery on the same groups and tasks."""
    keys: dict[str, Any] = {"grouping": "model", "apply_to": []}
    return all(
        one.options.get(key, default) == other.options.get(key, default) for key, default in keys.items()
    )


def _against_pcgrad(config: MultilingualConfig, result: TableResult) -> Iterator[Claim]:
    for name, row in config.methods.items():
        for other, base in config.methods.items():
            if row.method != "gradvac" or base.method != "pcgrad" or not _like(row, base):
                continue
            vac, pc = result.row(name), result.row(other)
            if vac is None or pc is None or vac.pairs is None or pc.pairs is None:
                continue
            if "active" in vac.pairs.runs and "active" in pc.pairs.runs:
                ours, theirs = vac.pairs.runs["active"], pc.pairs.runs["active"]
                gain = paired_difference(ours, theirs)
                yield Claim(
                    f"{vac.label} turns more pairs than {pc.label}",
                    f"{percent(fmean(ours))} % against {percent(fmean(theirs))} %: {difference(gain)} points",
                    _decided(gain),
                )
            if "after" in vac.pairs.runs and "after" in pc.pairs.runs:
                ours, theirs = vac.pairs.runs["after"], pc.pairs.runs["after"]
                gain = paired_difference(ours, theirs)
                yield Claim(
                    f"{vac.label} leaves gradients at least as alike as {pc.label}",
                    f"mean cosine after surgery {signed(fmean(ours), 3)} against {signed(fmean(theirs), 3)}: "
                    f"{signed_interval(gain, 3)}",
                    _decided(gain),
                )


def _not_worse(config: MultilingualConfig, result: TableResult) -> Iterator[Claim]:
    base = result.row(config.baseline)
    for row in result.rows:
        if base is None or row.name not in config.methods or row.test["all"].gain is None:
            continue
        test, dev = row.test["all"], row.dev["all"]
        assert test.gain is not None and dev.gain is not None
        holds = {"helps": "yes, better", "hurts": "no, worse"}.get(str(test.verdict), str(test.verdict))
        yield Claim(
            f"{row.label} is not worse than {base.label} in the mean over languages",
            f"{difference(test.gain)} points on test, {difference(dev.gain)} on development sentences",
            holds,
        )


def _decided(gain: Interval) -> str:
    return {"helps": "yes", "hurts": "no, the opposite"}.get(verdict(gain), verdict(gain))


def sentences(config: MultilingualConfig, result: TableResult) -> list[str]:
    """What came out, in a sentence for each row: the means, then single languages for which there is a verdict."""
    base = result.row(config.baseline)
    assert base is not None
    found = [
        f"{base.label}: "
        + ", ".join(f"{_mean_words(key)} {percent(base.test[key].interval.mean)}" for key in result.means)
        + f" ({config.settings.score_words})."
    ]
    for row in result.rows:
        if row.name not in config.methods or row.name == config.baseline:
            continue
        parts = []
        for key in result.means:
            score = row.test[key]
            assert score.gain is not None
            parts.append(
                f"{_mean_words(key)} {points(score.gain.mean)} [{spread(score.gain)}] {score.verdict}"
            )
        single = [
            f"{lang} {points(score.gain.mean)}"
            for lang, score in row.test.items()
            if lang in config.languages and score.gain is not None and score.verdict in ("helps", "hurts")
        ]
        parts.append(f"single languages whose interval leaves out 0: {', '.join(single) or 'none'}")
        found.append(f"{row.label} against {base.label}, points. {'; '.join(parts)}.")
    if result.joint_gain:
        where: dict[str, list[str]] = {}
        for lang in config.languages:
            gain = result.joint_gain[lang]
            where.setdefault(verdict(gain), []).append(f"{lang} {points(gain.mean)}")
        kinds = [f"{kind}: {', '.join(of)}" for kind, of in where.items()]
        found.append(f"{base.label} against a model of each language alone, points. {'; '.join(kinds)}.")
    return found


def _mean_words(key: str) -> str:
    return {"all": "all languages", "low": "low-resource", "high": "high-resource"}[key]
