"""One seed of a run: a method built, trained, tested and saved."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xferkit.checkpoints import DamagedError, open_folder
from xferkit.data.ragged import RaggedLabels, Texts
from xferkit.data.seeding import derive_seed, seeded
from xferkit.data.streams import BatchStream, DomainData, DomainStream
from xferkit.files import free_name
from xferkit.methods import ClassifierMethod
from xferkit.runs.config import IGNORED_BY_IDENTITY, AnyRunConfig, RunConfig
from xferkit.runs.corpus import EvalSet, RunCorpus
from xferkit.runs.folder import InputFile, RunFolder
from xferkit.runs.pipeline import MODEL_KIND, Blueprint, Pipeline
from xferkit.runs.predicting import mean_source_weights, predict_numbers
from xferkit.runs.scoring import Scores, score_numbers
from xferkit.trainers import Trainer, TrainerConfig

__all__ = ["Plan", "SeedResult", "make_plan", "run_identity", "train_seed"]

Say = Callable[[str], None]

_PASSES, _FEWEST_STEPS, _MOST_STEPS = 20, 200, 5000
_BATCH_SIZE = 16


@dataclass(frozen=True)
class Plan:
    """What the settings leave open, decided from the data.

    Attributes:
        steps: training steps.
        batch_size: texts of each language in a batch (of all together, where the sampler is not balanced).
        trainer: settings of the trainer.
        why: what was decided, in a sentence.
    """

    steps: int
    batch_size: int
    trainer: TrainerConfig
    why: str


def make_plan(config: RunConfig, corpus: RunCorpus) -> Plan:
    """Steps, batch size, and how often to evaluate and save; 20 passes over the mean source unless told otherwise."""
    batch_size = config.batch_size or int(getattr(config.options, "batch_size", _BATCH_SIZE))
    steps, why = config.steps, "as told"
    if steps is None:
        # Other samplers share a batch among the sources.
        each = batch_size if config.sampler == "balanced" else batch_size / len(corpus.sources)
        passes = round(_PASSES * corpus.mean_source_size / each)
        steps = min(max(passes, _FEWEST_STEPS), _MOST_STEPS)
        why = (
            f"{_PASSES} passes over the mean source"
            if steps == passes
            else f"{_PASSES} passes over the mean source would be {passes:,}"
        )
    often = max(1, steps // config.evaluations, min(10, steps))
    trainer = replace(
        config.trainer,
        eval_every=config.trainer.eval_every or often,
        checkpoint_every=config.trainer.checkpoint_every or often,
    )
    whose = {"balanced": "each language", "cycling": "one language"}.get(
        config.sampler, "all languages together"
    )
    return Plan(steps, batch_size, trainer, f"{steps:,} steps ({why}) with {batch_size} texts of {whose}")


def run_identity(config: AnyRunConfig, files: Sequence[InputFile]) -> dict[str, str]:
    """What checkpoints belong to: settings that decide the result, and the content of the files."""
    values = {k: v for k, v in config.values().items() if k not in IGNORED_BY_IDENTITY}
    content = [[f.role, f.language, f.sha256] for f in files]

    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    return {"settings": digest(values), "data": digest(content)}


@dataclass(frozen=True)
class SeedResult:
    """What came out of a seed.

    Attributes:
        seed: the seed.
        dev: scores by language, as plain values (see :class:`~xferkit.runs.scoring.Scores`).
        test: likewise.
        source_weights: by tested language, the mean weight of each source; empty for methods that do not choose.
        steps: steps made, those of further stages of the method included.
        selected_step: the step whose weights were kept; None: the last one.
        stopped_early: whether patience ran out.
        seconds: wall time of training, over all its sessions.
        parameters: trained numbers.
        losses: last value of each loss; None where it was not finite.
    """

    seed: int
    dev: dict[str, dict[str, Any]]
    test: dict[str, dict[str, Any]]
    source_weights: dict[str, dict[str, float]]
    steps: int
    selected_step: int | None
    stopped_early: bool
    seconds: float
    parameters: int
    losses: dict[str, float | None]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SeedResult:
        """The result that a result.json holds.

        Raises:
            ValueError: when it holds none.
        """
        try:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise ValueError(f"a result.json lacks {error}") from None


def train_seed(
    config: RunConfig,
    corpus: RunCorpus,
    seed: int,
    *,
    folder: Path | None,
    identity: Mapping[str, str],
    warn: Say,
    writes: bool = True,
) -> SeedResult:
    """Train, test and save one seed; in a folder that holds a part of it, the rest.

    Args:
        config: the settings.
        corpus: the data.
        seed: of parameters, dropout and batches.
        folder: where it goes; None keeps nothing.
        identity: what checkpoints belong to.
        warn: told of damaged checkpoints.
        writes: False in processes that only help to train.

    Raises:
        ValueError: settings that do not go together, or a checkpoint of something else.
        Interrupted: SIGTERM or Ctrl-C, after the state was saved.
        NonFiniteError: a loss or gradient is not finite.
    """
    plan = make_plan(config, corpus)
    blueprint = Blueprint(
        config.method, config.options, corpus.encoder, corpus.sources, corpus.target, config.ops
    )
    streams = _streams(config, corpus, plan.batch_size, seed)
    with seeded(derive_seed(seed, "run")):
        target_inputs = corpus.unlabelled[-1].inputs if corpus.unlabelled else None
        method = blueprint.build(corpus.coder, corpus.vectors, target_inputs)
        pipeline = Pipeline(blueprint, corpus.coder, method)
        trainer = Trainer(plan.trainer, title=_title(config, seed))
        history = trainer.fit(
            method,
            streams,
            plan.steps,
            evaluate=lambda: _dev_scores(config, corpus, pipeline),
            folder=folder,
            identity={**identity, "seed": str(seed)},
            warn=warn,
        )
        pipeline.method = _whole(blueprint, corpus, method, target_inputs)
        result = SeedResult(
            seed=seed,
            dev={k: _score(config, pipeline, k, v).to_json() for k, v in corpus.dev.items()},
            test={k: _score(config, pipeline, k, v).to_json() for k, v in corpus.test.items()},
            source_weights=_source_weights(pipeline, corpus),
            steps=history.steps,
            selected_step=history.selected_step,
            stopped_early=history.stopped_early,
            seconds=history.seconds,
            parameters=sum(p.numel() for p in pipeline.method.module.parameters() if p.requires_grad),
            losses={name: float(value) for name, value in history.last.items()},
        )
    if folder is not None and writes:
        pipeline.facts = {
            "seed": seed,
            "steps": history.steps,
            "test": _short(result.test),
            "dev": _short(result.dev),
        }
        _move_damaged(folder / "model", warn)
        pipeline.save_pretrained(folder / "model", overwrite=True)
        RunFolder.save_result(folder, vars(result))
    return result


def _whole(
    blueprint: Blueprint, corpus: RunCorpus, method: ClassifierMethod, target_inputs: Texts | None
) -> ClassifierMethod:
    """The method itself, or where its parameters are cut over processes a whole one with their values."""
    state: dict[str, Any] = method.module.state_dict()
    if not any(hasattr(value, "full_tensor") for value in state.values()):
        return method
    full = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
    whole = blueprint.build(corpus.coder, corpus.vectors, target_inputs)
    whole.module.to(next(iter(full.values())).device).load_state_dict(full)
    whole.module.eval()
    return whole


def _move_damaged(path: Path, warn: Say) -> None:
    """Make room where a model is damaged, so that the run goes on; what is left of it stays."""
    if not path.exists():
        return
    try:
        open_folder(path, kind=MODEL_KIND)
    except DamagedError as error:
        aside = free_name(path.with_name(f"{path.name}.corrupt"))
        os.rename(path, aside)
        warn(f"{error} It was moved to {aside.name} and is written again.")


def _title(config: RunConfig, seed: int) -> str:
    default = TrainerConfig().title
    return (
        f"{config.method.replace('_', '-')} seed {seed}"
        if config.trainer.title == default
        else config.trainer.title
    )


def _streams(config: RunConfig, corpus: RunCorpus, batch_size: int, seed: int) -> dict[str, BatchStream]:
    def stream(name: str, domains: Sequence[DomainData]) -> DomainStream:
        return DomainStream(
            domains,
            batch_size,
            seed=seed,
            name=name,
            sampler=config.sampler,
            temperature=config.temperature,
            bucket=config.bucket,
        )

    streams: dict[str, BatchStream] = {"labelled": stream("labelled", corpus.labelled)}
    missing = (
        f"{config.method.replace('_', '-')} reads text of a target language; expected --unlabelled LANG=FILE"
    )
    if config.unlabelled:
        named = ", ".join(config.unlabelled)
        missing += f" of a language without labels; --unlabelled names {named}, which --train names too"
    streams["unlabelled"] = (
        stream("unlabelled", corpus.unlabelled) if corpus.unlabelled else _Missing(missing)
    )
    return streams


class _Missing:
    """A stream that nobody gave: a sentence for the first who draws from it."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence

    def draw(self) -> Any:
        raise ValueError(self._sentence)

    def next(self) -> Any:
        raise ValueError(self._sentence)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        return None


def _score(config: RunConfig, pipeline: Pipeline, language: str, data: EvalSet) -> Scores:
    tagging = pipeline.coder.task == "tagging"
    found = predict_numbers(
        pipeline.method, data.texts, tagging=tagging, source=pipeline.source_number(language)
    )
    gold = data.labels.flat if isinstance(data.labels, RaggedLabels) else data.labels
    return score_numbers(
        gold,
        found.flat,
        found.lengths,
        data.names,
        tagging=tagging,
        scheme=config.scheme,
        known=len(pipeline.coder.labels),
    )


def _dev_scores(config: RunConfig, corpus: RunCorpus, pipeline: Pipeline) -> dict[str, float]:
    scores: dict[str, float] = {}
    means: dict[str, list[float]] = {"source_dev": [], "target_dev": []}
    for language, data in corpus.dev.items():
        part = "source_dev" if language in corpus.sources else "target_dev"
        scores[f"{part}/{language}"] = _score(config, pipeline, language, data).score
        means[part].append(scores[f"{part}/{language}"])
    return {f"{part}/score": sum(v) / len(v) for part, v in means.items() if v} | scores


def _source_weights(pipeline: Pipeline, corpus: RunCorpus) -> dict[str, dict[str, float]]:
    """By language without labels: that of the tests, else of the training text."""
    texts = {k: v.texts for k, v in corpus.test.items() if k not in corpus.sources}
    if not texts and corpus.target is not None:
        texts = {corpus.target: corpus.unlabelled[-1].inputs}
    found: dict[str, dict[str, float]] = {}
    for language, inputs in texts.items():
        weights = mean_source_weights(pipeline.method, inputs)
        if weights is not None:
            found[language] = dict(zip(corpus.sources, weights.tolist(), strict=True))
    return found


def _short(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {language: {"name": s["name"], "score": s["score"]} for language, s in scores.items()}
