"""One run of the study: a model with looks at its gradients, or the masks of half a language on it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from xferkit.data.masked_text import MaskedTextBatch, MaskedTextStream, fixed_batches
from xferkit.data.seeding import derive_seed, seeded
from xferkit.experiments.sharing.cell import (
    GradientLook,
    MaskFound,
    ModelTrained,
    SharingCell,
    SharingOutcome,
)
from xferkit.experiments.sharing.config import SharingConfig
from xferkit.experiments.sharing.corpora import Corpora, half_of, read_corpora
from xferkit.experiments.sharing.gradients import GradientObserver, flat_scores, look_of
from xferkit.masks import Granularity, HardConcreteMasks, MaskSite, MaskTrainer, find_sites
from xferkit.methods.masked_lm import MASKED, MaskedLmMethod
from xferkit.trainers import History, Trainer

__all__ = ["Given", "find_model_sites", "run_sharing_cell"]


@dataclass(frozen=True)
class Given:
    """What every run is given.

    Attributes:
        config: the study.
        data: folder of the data.
        work: where models are kept while they are trained and for their masks.
        identity: what a model's checkpoints are of, beside its seed.
    """

    config: SharingConfig
    data: Path
    work: Path
    identity: str


def find_model_sites(config: SharingConfig, model: nn.Module) -> tuple[MaskSite, ...]:
    """The gates of the study on a model of it."""
    granularity = cast("tuple[Granularity, ...]", config.settings.granularity)
    return find_sites(model, granularity)


def run_sharing_cell(cell: SharingCell, given: Given) -> SharingOutcome:
    """Train what `cell` says; masks train their model first where nobody has."""
    begin = time.monotonic()
    corpora = read_corpora(given.config, given.data)
    method, history, groups = _model(cell.seed, given, corpora)
    if cell.part == "model":
        found: dict[str, Any] = {"model": _trained(given.config, method, history, groups, corpora)}
    else:
        found = {"masks": _masks(cell, given.config, method, corpora)}
    return SharingOutcome(time.monotonic() - begin, **found)


def _model(seed: int, given: Given, corpora: Corpora) -> tuple[MaskedLmMethod, History, tuple[str, ...]]:
    """The model of a seed: trained, taken up where a stopped run left it, or read when it is finished."""
    settings = given.config.settings
    place = given.work / f"seed-{seed}"
    with _alone(place), seeded(derive_seed(seed, "model")):
        method = MaskedLmMethod(settings.model.encoder(corpora.vocab_size), settings.lm)
        looks = MaskedTextStream(
            corpora.train,
            settings.cosine_texts,
            method.masking,
            max_length=settings.model.max_length,
            seed=seed,
            name="gradients",
        )
        observer = GradientObserver(method, looks, list(given.config.languages))
        trainer = Trainer(
            **settings.lm.trainer_options(),
            select="last",
            eval_every=settings.cosine_every,
            checkpoint_every=settings.cosine_every,
            progress="plain",
            title=f"model, seed {seed}",
            device="cpu",
        )
        history = trainer.fit(
            method,
            {MASKED: method.stream(corpora.train, seed=seed)},
            settings.steps,
            evaluate=lambda: flat_scores(*observer.look()),
            folder=place,
            identity={"study": given.identity, "seed": str(seed)},
        )
    return method, history, observer.groups


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Wait for whoever trains or reads the model; a process that dies lets go."""
    import fcntl

    place.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.wait"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _trained(
    config: SharingConfig, method: MaskedLmMethod, history: History, groups: tuple[str, ...], corpora: Corpora
) -> ModelTrained:
    looks = [
        GradientLook(e.step, look_of(e.scores, "within"), look_of(e.scores, "across"))
        for e in history.evaluations
    ]
    dev = method.fixed_batches(corpora.dev)
    return ModelTrained(
        groups=list(groups),
        looks=looks,
        nll={name: method.mean_nll(batches) for name, batches in dev.items()},
        unigram=corpora.unigram(),
        sizes=corpora.sizes(),
        parameters=sum(p.numel() for p in method.module.parameters()),
        steps=history.steps,
    )


def _masks(cell: SharingCell, config: SharingConfig, method: MaskedLmMethod, corpora: Corpora) -> MaskFound:
    settings = config.settings
    number = list(config.languages).index(cell.language)
    corpus, dev = corpora.train[number], corpora.dev[number]
    seed = derive_seed(cell.seed, "masks", cell.language, cell.half) % 2**62
    stream = MaskedTextStream(
        [half_of(corpus, cell.half)],
        settings.lm.batch_size,
        method.masking,
        max_length=settings.model.max_length,
        seed=seed,
        name="masks",
        bucket=settings.lm.bucket,
    )
    model = method.model
    masks = HardConcreteMasks(model, find_model_sites(config, model), seed=seed)

    def loss(module: Any, batch: MaskedTextBatch) -> Tensor:
        logits = module(batch.tokens, batch.lengths, batch.positions).logits
        return cross_entropy(logits, batch.labels)

    record = MaskTrainer(model, loss, lambda step: stream.next(), masks, settings.masks).run()
    batches = fixed_batches(dev, method.masking, max_length=settings.model.max_length, language=number)
    unmasked = method.mean_nll(batches)
    with masks.applied(model, mode="eval"):
        nll = method.mean_nll(batches)
    return MaskFound(
        log_alpha={site.name: masks.log_alpha(site).detach().flatten().tolist() for site in masks.sites},
        nll=nll,
        nll_unmasked=unmasked,
        expected_sparsity=record.final.expected_parameters,
        eval_sparsity=record.final.eval_parameters,
        steps=len(record.loss),
    )
