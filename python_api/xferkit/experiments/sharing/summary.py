"""From the study's runs to its results: cosines over training, likeness of masks by part, gates at both ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from xferkit.experiments.sharing.cell import HALVES, GradientLook, MaskFound, SharingCell, SharingOutcome
from xferkit.experiments.sharing.config import SharingConfig
from xferkit.experiments.sharing.training import find_model_sites
from xferkit.masks import (
    GateRanking,
    HardConcreteMasks,
    MaskAgreement,
    MaskComparison,
    MaskSite,
    compare_masks,
    rank_groups,
)
from xferkit.metrics import Interval, t_interval
from xferkit.models import MaskedLanguageModel

__all__ = ["LanguageResult", "Likeness", "Records", "SharingResult", "summarise"]

Records = Mapping[SharingCell, SharingOutcome]
Masks = dict[tuple[str, str], HardConcreteMasks]


@dataclass(frozen=True)
class Likeness:
    """How alike masks are in one part of the model; each list has a number a seed.

    Attributes:
        name: "all", "layer 1", "attention", "layer 1 attention", ...
        gates: their number.
        within: centred cosine of log alphas of the two halves of a language, mean over languages.
        across: of two languages, mean over pairs and halves.
        plain_within, plain_across: the same of the cosine as the thesis has it, without centring.
        universal: share of gates with log alpha above 0 in both languages of a pair.
        specific: share of gates with log alpha above 0 in one language of a pair alone.
        iou_within, iou_across: overlap of the gates that stay open, intersection over union.
        iou_random: of random sets of the same sizes, for the pairs of languages.
    """

    name: str
    gates: int
    within: list[float]
    across: list[float]
    plain_within: list[float]
    plain_across: list[float]
    universal: list[float]
    specific: list[float]
    iou_within: list[float]
    iou_across: list[float]
    iou_random: list[float]

    @property
    def gap(self) -> list[float]:
        """Within less across: what sets languages apart beyond the noise of training a mask, a number a seed."""
        return [a - b for a, b in zip(self.within, self.across, strict=True)]


@dataclass(frozen=True)
class LanguageResult:
    """One language.

    Attributes:
        sizes: counts of texts and tokens.
        unigram: entropy of its held-out tokens by counts alone, nats.
        nll: of the model on held-out masked tokens, over seeds.
        masked: of the model under the language's own masks, over seeds and halves.
        expected_sparsity, eval_sparsity: of its masks, over seeds and halves.
    """

    name: str
    sizes: dict[str, int]
    unigram: float
    nll: Interval
    masked: Interval
    expected_sparsity: Interval
    eval_sparsity: Interval


@dataclass(frozen=True)
class SharingResult:
    """Everything.

    Attributes:
        groups: groups of parameters whose gradients were looked at.
        looks: by seed.
        likeness: by part of the model: all, layers, kinds, kinds within layers.
        pairs: centred cosine of all log alphas by pair of languages, a language with itself being its two halves;
            mean over seeds.
        ranking: of the gates, by seed.
        languages: in the order of the configuration.
        parameters: trained numbers of a model.
    """

    groups: list[str]
    looks: dict[int, list[GradientLook]]
    likeness: list[Likeness]
    pairs: dict[tuple[str, str], float]
    ranking: dict[int, GateRanking]
    languages: list[LanguageResult]
    parameters: int

    def part(self, name: str) -> Likeness | None:
        """The likeness of that name."""
        return next((likeness for likeness in self.likeness if likeness.name == name), None)

    def cosines(self, group: str, side: str, share: tuple[float, float] = (0.0, 1.0)) -> list[float]:
        """Mean cosine of a group a seed, over the looks between two shares of the training, languages and pairs.

        Args:
            group: a name of ``groups``.
            side: "within" or "across".
            share: begin (left out) and end of the training that counts, as shares of its steps.
        """
        number = self.groups.index(group)
        found = []
        for looks in self.looks.values():
            last = looks[-1].step
            chosen = [look for look in looks if share[0] * last < look.step <= share[1] * last] or looks[:1]
            found.append(fmean(values[number] for look in chosen for values in getattr(look, side).values()))
        return found


def summarise(config: SharingConfig, records: Records) -> SharingResult:
    """All results, from a run for each cell of the study."""
    models = {cell.seed: run.model for cell, run in records.items() if run.model is not None}
    first = models[config.seeds[0]]
    sites = _sites(config)
    masks = {seed: _masks(config, records, seed, sites) for seed in config.seeds}
    compared = {seed: _compare(masks[seed]) for seed in config.seeds}
    return SharingResult(
        groups=first.groups,
        looks={seed: models[seed].looks for seed in config.seeds},
        likeness=_likeness(config, compared, sites),
        pairs=_pairs(config, compared),
        ranking={seed: _rank(config, masks[seed]) for seed in config.seeds},
        languages=[_language(config, records, name) for name in config.languages],
        parameters=first.parameters,
    )


def _sites(config: SharingConfig) -> tuple[MaskSite, ...]:
    """Those of the study's models: gates of the embeddings apart, they do not depend on the vocabulary."""
    with torch.device("meta"):
        model = MaskedLanguageModel(config.settings.model.encoder(config.settings.vocabulary))
    return find_model_sites(config, model)


def _found(records: Records, cell: SharingCell) -> MaskFound:
    found = records[cell].masks
    assert found is not None
    return found


def _masks(config: SharingConfig, records: Records, seed: int, sites: Sequence[MaskSite]) -> Masks:
    masks = {}
    for language, half in itertools.product(config.languages, HALVES):
        values = _found(records, SharingCell("masks", seed, language, half)).log_alpha
        init: dict[str, Tensor | float] = {
            site.name: torch.tensor(values[site.name]).reshape(site.shape) for site in sites
        }
        masks[language, half] = HardConcreteMasks(None, sites, init=init)
    return masks


def _compare(masks: Masks) -> dict[tuple[str, str], list[MaskComparison]]:
    """Comparisons by pair of languages; a language with itself: of its halves."""
    found: dict[tuple[str, str], list[MaskComparison]] = {}
    for one, other in itertools.combinations(masks, 2):
        found.setdefault((one[0], other[0]), []).append(compare_masks(masks[one], masks[other]))
    return found


def _likeness(
    config: SharingConfig,
    compared: Mapping[int, Mapping[tuple[str, str], list[MaskComparison]]],
    sites: Sequence[MaskSite],
) -> list[Likeness]:
    kinds = {"ffn": "feed-forward"}

    def site_name(number: int) -> str:
        site = sites[number]
        layer = "" if site.layer is None else f"layer {site.layer + 1} "
        return f"{layer}{kinds.get(site.kind, site.kind)}"

    example = next(iter(next(iter(compared.values())).values()))[0]
    parts: list[tuple[str, Callable[[MaskComparison], MaskAgreement]]] = [("all", lambda c: c.whole)]
    for number, agreement in enumerate(example.layers):
        layer = int(agreement.name.split()[1]) + 1
        parts.append((f"layer {layer}", lambda c, n=number: c.layers[n]))  # type: ignore[misc]
    for number, agreement in enumerate(example.kinds):
        name = kinds.get(agreement.name, agreement.name)
        parts.append((name, lambda c, n=number: c.kinds[n]))  # type: ignore[misc]
    for number in range(len(sites)):
        parts.append((site_name(number), lambda c, n=number: c.sites[n]))  # type: ignore[misc]
    return [_one(name, of, compared) for name, of in parts]


def _one(
    name: str,
    of: Callable[[MaskComparison], MaskAgreement],
    compared: Mapping[int, Mapping[tuple[str, str], list[MaskComparison]]],
) -> Likeness:
    def mean(value: Callable[[MaskAgreement], float], same: bool) -> list[float]:
        found = []
        for pairs in compared.values():
            numbers = [value(of(c)) for pair, cs in pairs.items() if (pair[0] == pair[1]) == same for c in cs]
            known = [number for number in numbers if number == number]
            found.append(fmean(known) if known else 0.0)
        return found

    gates = of(next(iter(next(iter(compared.values())).values()))[0]).gates
    return Likeness(
        name=name,
        gates=gates,
        within=mean(lambda a: a.centred_cosine, True),
        across=mean(lambda a: a.centred_cosine, False),
        plain_within=mean(lambda a: a.cosine, True),
        plain_across=mean(lambda a: a.cosine, False),
        universal=mean(lambda a: a.universal, False),
        specific=mean(lambda a: a.specific, False),
        iou_within=mean(lambda a: a.overlap.iou, True),
        iou_across=mean(lambda a: a.overlap.iou, False),
        iou_random=mean(lambda a: a.overlap.expected_iou, False),
    )


def _pairs(
    config: SharingConfig, compared: Mapping[int, Mapping[tuple[str, str], list[MaskComparison]]]
) -> dict[tuple[str, str], float]:
    found = {}
    for one, other in itertools.combinations_with_replacement(config.languages, 2):
        values = [c.whole.centred_cosine for pairs in compared.values() for c in pairs[one, other]]
        found[one, other] = found[other, one] = fmean(values)
    return found


def _rank(config: SharingConfig, masks: Masks) -> GateRanking:
    first, second = HALVES
    return rank_groups(
        {language: masks[language, first] for language in config.languages},
        replicates={language: [masks[language, second]] for language in config.languages},
        limit=12,
    )


def _language(config: SharingConfig, records: Records, name: str) -> LanguageResult:
    models = [records[SharingCell("model", seed)].model for seed in config.seeds]
    assert all(model is not None for model in models)
    masks = [
        [_found(records, SharingCell("masks", seed, name, half)) for half in HALVES] for seed in config.seeds
    ]

    def over_seeds(value: Callable[[MaskFound], float]) -> Interval:
        return t_interval([fmean(value(found) for found in halves) for halves in masks])

    first = models[0]
    assert first is not None
    return LanguageResult(
        name,
        first.sizes[name],
        first.unigram[name],
        t_interval([model.nll[name] for model in models if model is not None]),
        over_seeds(lambda found: found.nll),
        over_seeds(lambda found: found.expected_sparsity),
        over_seeds(lambda found: found.eval_sparsity),
    )
