"""Which gates all languages keep, and which are one language's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xferkit.masks.comparison import check_same_sites, log_alphas
from xferkit.masks.gates import HardConcreteMasks
from xferkit.masks.names import nearest
from xferkit.masks.sites import Kind

__all__ = ["GateRanking", "GateScore", "rank_groups"]


@dataclass(frozen=True)
class GateScore:
    """One gate over all languages.

    Attributes:
        site: name of its site.
        gate: number in the site, over the flattened shape.
        layer, kind: of the site.
        log_alpha: by language.
        universal: the smallest of them; above 0 where all languages keep the gate.
        language: the one that differs most from the mean of the others.
        difference: its log alpha minus that mean: above 0 where it alone needs the gate, below where it alone does
            without.
        noise: deviation of such a difference that chance alone gives in this site, NaN without replicates.
        z: difference over noise, NaN without replicates.
    """

    site: str
    gate: int
    layer: int | None
    kind: Kind
    log_alpha: dict[str, float]
    universal: float
    language: str
    difference: float
    noise: float
    z: float


@dataclass(frozen=True)
class GateRanking:
    """The gates at both ends.

    Attributes:
        universal: kept by all languages (every log alpha above 0), largest ``universal`` first.
        specific: kept by some alone (signs differ), largest absolute ``difference`` first.
        num_universal, num_specific, num_pruned: how many there are in all, kept by all, by some and by none.
    """

    universal: tuple[GateScore, ...]
    specific: tuple[GateScore, ...]
    num_universal: int
    num_specific: int
    num_pruned: int


def rank_groups(
    masks: Mapping[str, HardConcreteMasks],
    *,
    replicates: Mapping[str, Sequence[HardConcreteMasks]] | None = None,
    limit: int = 20,
) -> GateRanking:
    r"""Rank the gates of the languages' masks.

    With m the mask of a language and its replicates (the same language, another seed or half of the data), the variance
    within languages of a site is pooled over languages and gates, and the noise of a difference between one of L
    languages and the mean of the others is

    .. math:: \sqrt{s^2 \, (1 + 1 / (L - 1))}

    A difference below two or three of these says nothing about languages.

    Args:
        masks: by language, at least two.
        replicates: further masks by language, for some or all languages.
        limit: most gates in each list.

    Raises:
        ValueError: fewer than two languages, masks of other sites, replicates of an unknown language, a limit below 1.
    """
    languages = list(masks)
    if len(languages) < 2:
        raise ValueError(f"rank_groups: expected masks of at least two languages, got {len(languages)}")
    if limit < 1:
        raise ValueError(f"rank_groups: limit must be at least 1, got {limit}")
    more = {language: list(found) for language, found in (replicates or {}).items()}
    for language in more:
        if language not in masks:
            raise ValueError(
                f"rank_groups: replicates of the unknown language {language!r}{nearest(language, languages)}"
            )
    check_same_sites("rank_groups", [*masks.values(), *(m for found in more.values() for m in found)])
    universal: list[GateScore] = []
    specific: list[GateScore] = []
    counts = np.zeros(3, np.int64)
    for site in masks[languages[0]].sites:
        values = np.stack([log_alphas(masks[language], site.name) for language in languages])
        differences = values - (values.sum(0) - values) / (len(languages) - 1)
        most = np.abs(differences).argmax(0)
        largest = np.take_along_axis(differences, most[None], 0)[0]
        lowest, everywhere, nowhere = values.min(0), values.min(0) > 0, values.max(0) <= 0
        some = ~everywhere & ~nowhere
        counts += [int(everywhere.sum()), int(some.sum()), int(nowhere.sum())]
        noise = math.sqrt(_variance_within(masks, more, site.name) * (1 + 1 / (len(languages) - 1)))
        for found, chosen, key in ((universal, everywhere, -lowest), (specific, some, -np.abs(largest))):
            gates = np.flatnonzero(chosen)
            for gate in gates[np.argsort(key[gates], kind="stable")[:limit]].tolist():
                difference = float(largest[gate])
                found.append(
                    GateScore(
                        site.name,
                        gate,
                        site.layer,
                        site.kind,
                        {language: float(values[n, gate]) for n, language in enumerate(languages)},
                        float(lowest[gate]),
                        languages[int(most[gate])],
                        difference,
                        noise,
                        difference / noise if noise > 0 else math.nan,
                    )
                )
    return GateRanking(
        tuple(sorted(universal, key=lambda score: -score.universal)[:limit]),
        tuple(sorted(specific, key=lambda score: -abs(score.difference))[:limit]),
        *counts.tolist(),
    )


def _variance_within(
    masks: Mapping[str, HardConcreteMasks], more: Mapping[str, Sequence[HardConcreteMasks]], site: str
) -> float:
    """Of log alpha among masks of one language, over languages and gates; NaN where no language has two."""
    squares, freedom = 0.0, 0
    for language, found in more.items():
        values = np.stack([log_alphas(m, site) for m in (masks[language], *found)])
        squares += float(((values - values.mean(0)) ** 2).sum())
        freedom += (values.shape[0] - 1) * values.shape[1]
    return squares / freedom if freedom else math.nan
