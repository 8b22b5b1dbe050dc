"""A run on pairs of texts, from its settings to its results: every seed trained, tested, saved and summed up."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from xferkit.data.hashing import TextHasher
from xferkit.data.pair_streams import PairData, PairStream
from xferkit.data.pairs import pair_groups
from xferkit.data.seeding import derive_seed, seeded
from xferkit.methods.dual_encoder import PAIRS, DualEncoderMethod
from xferkit.metrics import Interval, interval_record, mean_reciprocal_rank, precision_at, t_interval
from xferkit.ranking import overlap_ranks, retrieval_ranks, word_grams
from xferkit.runs.folder import InputFile, RunFolder
from xferkit.runs.inputs import Watch
from xferkit.runs.pairs.config import PairRunConfig
from xferkit.runs.pairs.data import PairSet, PairTexts, plan_pair_files, read_pair_texts
from xferkit.runs.pairs.model import TextEncoder
from xferkit.runs.seed import run_identity
from xferkit.trainers import Trainer, TrainerConfig

__all__ = ["PairRunResult", "PairSummary", "run_pair_training"]

Say = Callable[[str], None]
_PASSES, _FEWEST_STEPS, _MOST_STEPS = 5, 200, 5000


@dataclass(frozen=True)
class PairSummary:
    """Retrieval on one file in one direction, over seeds.

    Attributes:
        role: ``"dev"`` or ``"test"``.
        name: the pair of languages, in the direction of retrieval: ``en-de`` finds German texts for English ones.
        per_seed: P@1 by seed.
        interval: its mean with a 95 % t-interval over seeds.
        mrr: mean reciprocal rank, mean over seeds.
        at: mean precision at other numbers of answers.
        words: P@1 of retrieval by shared words; None: not asked for.
        grams: P@1 of retrieval by shared character n-grams.
        texts: candidates.
    """

    role: str
    name: str
    per_seed: dict[int, float]
    interval: Interval
    mrr: float
    at: dict[str, float]
    words: float | None
    grams: float | None
    texts: int

    def to_json(self) -> dict[str, Any]:
        """As values that JSON holds."""
        return {**vars(self), "interval": interval_record(self.interval)}


@dataclass(frozen=True)
class PairRunResult:
    """What came out of a run.

    Attributes:
        out: its folder.
        seeds: results by seed, those of earlier sessions included.
        summaries: over seeds, by role, file and direction.
    """

    out: Path
    seeds: dict[int, dict[str, Any]]
    summaries: tuple[PairSummary, ...]


def run_pair_training(
    config: PairRunConfig, *, say: Say, warn: Say, watch: Watch | None = None
) -> PairRunResult:
    """Train all seeds of `config`, test them, and go on where an earlier call with the same settings was stopped.

    Args:
        config: the settings.
        say: told sentences on what was seen and decided.
        warn: told what should not be missed.
        watch: called with the name of a file that is about to be read.

    Raises:
        ValueError: bad input: a setting, a file (with its line), a folder of another run. Nothing was overwritten.
        Interrupted: SIGTERM or Ctrl-C, after the state was saved.
    """
    if config.out is None:
        raise ValueError("out is missing; expected the folder that the run goes to, --out DIR")
    if config.workers:
        raise ValueError(
            f"workers must be 0 for runs on pairs of texts, got {config.workers}; seeds go one by one"
        )
    files = plan_pair_files(config)
    folder = RunFolder(Path(config.out), config, files, say, warn)
    with folder.opened():
        loaded = {seed: folder.load_result(seed) for seed in folder.seeds}
        found = {seed: kept for seed, kept in loaded.items() if kept is not None}
        missing = [seed for seed in config.seeds if seed not in found]
        if found:
            say(f"Finished in {folder.path}: seeds {', '.join(map(str, found))}; left to do: {len(missing)}.")
        if missing:
            for note in config.options.notes():
                warn(note)
            texts = read_pair_texts(config, say, warn, watch)
            steps, trainer = _plan(config, texts, say)
            baselines = _baselines(texts) if config.baselines else {}
            folder.note_facts(steps=steps, train={str(part.name): len(part) for part in texts.train})
            for seed in missing:
                say(f"Seed {seed} ({len(found) + 1} of {len(found) + len(missing)}).")
                place = folder.seed_folder(seed)
                found[seed] = _train_seed(config, texts, steps, trainer, seed, place, files, baselines, warn)
        result = PairRunResult(folder.path, found, _summarise(found))
        folder.note_results({"pairs": [summary.to_json() for summary in result.summaries]})
        return result


def _plan(config: PairRunConfig, texts: PairTexts, say: Say) -> tuple[int, TrainerConfig]:
    batch = config.batch_size or config.options.batch_size
    total = sum(len(part) for part in texts.train)
    steps = config.steps or min(max(round(_PASSES * total / batch), _FEWEST_STEPS), _MOST_STEPS)
    sizes = ", ".join(f"{part.name} {len(part):,}" for part in texts.train)
    say(f"Training: {sizes}; {steps:,} steps with {batch} pairs of one pair of languages.")
    often = max(1, steps // config.evaluations)
    return steps, replace(
        config.trainer,
        eval_every=config.trainer.eval_every or often,
        checkpoint_every=config.trainer.checkpoint_every or often,
    )


def _train_seed(
    config: PairRunConfig,
    texts: PairTexts,
    steps: int,
    trainer: TrainerConfig,
    seed: int,
    folder: Path,
    files: Sequence[InputFile],
    baselines: Mapping[str, Any],
    warn: Say,
) -> dict[str, Any]:
    with seeded(derive_seed(seed, "run")):
        method = DualEncoderMethod(config.encoder, config.options)
        model = TextEncoder(method, config.encoder)
        batch = config.batch_size or config.options.batch_size
        stream = PairStream(_data(config, texts), batch, seed=seed, name=PAIRS, sampler=config.sampler)
        title = f"dual-encoder seed {seed}" if trainer.title == TrainerConfig().title else trainer.title
        history = Trainer(trainer, title=title).fit(
            method,
            {PAIRS: stream},
            steps,
            evaluate=(lambda: _dev_score(config, model, texts.dev)) if texts.dev else None,
            folder=folder,
            identity={**run_identity(config, files), "seed": str(seed)},
            warn=warn,
        )
        scores = {
            f"{role} {name}": {**found, **baselines.get(f"{role} {name}", {})}
            for role, sets in (("dev", texts.dev), ("test", texts.test))
            for part in sets
            for name, found in _scores(config, model, part).items()
        }
    result = {
        "seed": seed,
        "scores": scores,
        "steps": history.steps,
        "selected_step": history.selected_step,
        "seconds": history.seconds,
        "parameters": sum(p.numel() for p in method.module.parameters()),
    }
    model.facts = {"seed": seed, "steps": history.steps, "scores": scores}
    model.save_pretrained(folder / "model", overwrite=True)
    RunFolder.save_result(folder, result)
    return result


def _data(config: PairRunConfig, texts: PairTexts) -> list[PairData]:
    hasher = TextHasher(config.encoder)
    numbered = [
        ([hasher.number(t) for t in part.first], [hasher.number(t) for t in part.second])
        for part in texts.train
    ]
    words = hasher.words()
    return [
        PairData(
            str(part.name),
            hasher.assemble(first, words),
            hasher.assemble(second, words),
            pair_groups(part.first, part.second),
        )
        for part, (first, second) in zip(texts.train, numbered, strict=True)
    ]


def _directions(part: PairSet) -> tuple[str, str]:
    domain = f"/{part.name.domain}" if part.name.domain else ""
    return f"{part.name.pair}{domain}", f"{part.name.second}-{part.name.first}{domain}"


def _both_ways(model: TextEncoder, part: PairSet) -> tuple[Tensor, Tensor]:
    first, second = model.encode(part.first, "first"), model.encode(part.second, "second")
    return retrieval_ranks(first, second), retrieval_ranks(second, first)


def _scores(config: PairRunConfig, model: TextEncoder, part: PairSet) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "p@1": precision_at(ranks),
            **{f"p@{n}": precision_at(ranks, n) for n in config.at},
            "mrr": mean_reciprocal_rank(ranks),
            "texts": len(part),
        }
        for name, ranks in zip(_directions(part), _both_ways(model, part), strict=True)
    }


def _dev_score(config: PairRunConfig, model: TextEncoder, dev: Sequence[PairSet]) -> dict[str, float]:
    score = precision_at if config.select_by == "p@1" else mean_reciprocal_rank
    found = [score(ranks) for part in dev for ranks in _both_ways(model, part)]
    return {"source_dev/score": statistics.fmean(found)}


def _baselines(texts: PairTexts) -> dict[str, dict[str, float]]:
    """P@1 of retrieval by shared words and n-grams on the test files; it does not depend on the seed."""
    found = {}
    for part in texts.test:
        sides = ((part.first, part.second), (part.second, part.first))
        for name, (queries, keys) in zip(_directions(part), sides, strict=True):
            found[f"test {name}"] = {
                "words": precision_at(overlap_ranks(queries, keys)),
                "grams": precision_at(overlap_ranks(queries, keys, terms=word_grams)),
            }
    return found


def _summarise(seeds: Mapping[int, Mapping[str, Any]]) -> tuple[PairSummary, ...]:
    summaries = []
    for key in next(iter(seeds.values()))["scores"] if seeds else ():
        found = {seed: result["scores"][key] for seed, result in seeds.items() if key in result["scores"]}
        one = next(iter(found.values()))
        role, name = key.split(" ", 1)
        per_seed = {seed: scores["p@1"] for seed, scores in found.items()}
        numbers = [k for k in one if k.startswith("p@") and k != "p@1"]
        summaries.append(
            PairSummary(
                role,
                name,
                per_seed,
                t_interval(list(per_seed.values())),
                statistics.fmean(scores["mrr"] for scores in found.values()),
                {k: statistics.fmean(scores[k] for scores in found.values()) for k in numbers},
                one.get("words"),
                one.get("grams"),
                one["texts"],
            )
        )
    return tuple(summaries)
