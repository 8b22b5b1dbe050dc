"""A run from its settings to its results: files checked, read, seeds trained, tested, saved and summed up."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xferkit.runs.config import RunConfig, make_run_config
from xferkit.runs.corpus import RunCorpus, read_corpus
from xferkit.runs.folder import InputFile, RunFolder
from xferkit.runs.inputs import Inputs, Watch, plan_inputs
from xferkit.runs.seed import SeedResult, make_plan, run_identity, train_seed
from xferkit.runs.summary import SetSummary, summarise, summary_json
from xferkit.runs.workers import train_in_processes

__all__ = ["RunResult", "run_training"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What came out of a run.

    Attributes:
        out: its folder, or None.
        seeds: results by seed, those of earlier sessions included.
        summaries: over seeds, by role and language.
    """

    out: Path | None
    seeds: dict[int, SeedResult]
    summaries: tuple[SetSummary, ...]


def run_training(
    config: RunConfig, *, say: Say | None = None, warn: Say | None = None, watch: Watch | None = None
) -> RunResult:
    """Train all seeds of `config`, test them, and go on where an earlier call with the same settings was stopped.

    Everything is checked before anything is written. With the same settings, files and machine a seed comes out
    the same to the bit, however often the run was killed. Works in spawned processes.

    Args:
        config: the settings.
        say: told sentences on what was seen and decided; None: nobody.
        warn: told what should not be missed; None: written to stderr.
        watch: called with the name of a file that is about to be read; gives a function that is told bytes read
            and bytes in all, or None.

    Raises:
        ValueError: bad input: a setting, a file (with its line), a folder of another run. Nothing was overwritten.
        RunError: a process failed.
        Interrupted: SIGTERM or Ctrl-C, after the state was saved.
        NonFiniteError: a loss or gradient is not finite.
    """
    rank = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
    say = (say or _silent) if rank == 0 else _silent
    warn = (warn or _to_stderr) if rank == 0 else _silent
    if config.workers and config.out is None:
        raise ValueError(
            "workers need a folder to leave their results in; expected --out DIR, or --workers 0"
        )
    inputs, files = plan_inputs(config, say, warn)
    if config.out is None:
        return _result(None, _train(config, inputs, files, None, {}, config.seeds, say, warn, watch))
    folder = RunFolder(Path(config.out), config, files, say, warn)
    with folder.opened() if rank == 0 else contextlib.nullcontext():
        seeds = folder.seeds if rank == 0 else config.seeds
        found = _finished(folder, seeds, repair=rank == 0)
        missing = tuple(seed for seed in config.seeds if seed not in found)
        if found and missing:
            say(f"Seeds {_listed(found)} are finished in {folder.path}; left to do: {_listed(missing)}.")
        elif found:
            say(f"All seeds are finished in {folder.path}; nothing is left to train.")
        if missing:
            found |= _train(
                config, inputs, files, folder if rank == 0 else None, found, missing, say, warn, watch
            )
        result = _result(folder.path, {seed: found[seed] for seed in seeds if seed in found})
        if rank == 0:
            folder.note_results(summary_json(result.summaries))
        return result


def _train(
    config: RunConfig,
    inputs: Inputs,
    files: Sequence[InputFile],
    folder: RunFolder | None,
    found: Mapping[int, SeedResult],
    seeds: Sequence[int],
    say: Say,
    warn: Say,
    watch: Watch | None,
) -> dict[int, SeedResult]:
    corpus = read_corpus(config, inputs, say, warn, watch)
    plan = make_plan(config, corpus)
    _say_what(config, corpus, say)
    say(f"Training: {plan.why}; development data every {plan.trainer.eval_every} steps.")
    if folder is not None:
        folder.note_facts(
            **corpus.facts,
            steps=plan.steps,
            batch_size=plan.batch_size,
            eval_every=plan.trainer.eval_every,
            checkpoint_every=plan.trainer.checkpoint_every,
        )
    identity = run_identity(config, files)
    workers = min(config.workers, len(seeds))
    if workers and folder is not None:
        train_in_processes(_train_alone, config.values(), seeds, workers, say)
        return _finished(folder, seeds)
    done: dict[int, SeedResult] = {}
    for seed in seeds:
        place = None if config.out is None else Path(config.out) / f"seed-{seed}"
        if len(seeds) > 1:
            say(f"Seed {seed} ({len(found) + len(done) + 1} of {len(found) + len(seeds)}).")
        done[seed] = train_seed(
            config,
            corpus,
            seed,
            folder=place,
            identity=identity,
            warn=warn,
            writes=folder is not None,
        )
    return done


def _train_alone(settings: Mapping[str, Any], seed: int) -> None:
    """One seed in a process of its own, in a folder that another process holds."""
    import torch

    torch.set_num_threads(1)
    config = make_run_config(settings)
    assert isinstance(config, RunConfig)  # the settings are those of one
    if config.trainer.progress == "auto":  # bars of several processes would overwrite each other
        config = replace(config, trainer=replace(config.trainer, progress="plain"))
    inputs, files = plan_inputs(config, _silent, _silent)
    corpus = read_corpus(config, inputs, _silent, _silent)
    assert config.out is not None
    train_seed(
        config,
        corpus,
        seed,
        folder=Path(config.out) / f"seed-{seed}",
        identity=run_identity(config, files),
        warn=_to_stderr,
    )


def _finished(folder: RunFolder, seeds: Sequence[int], repair: bool = True) -> dict[int, SeedResult]:
    loaded = {seed: folder.load_result(seed, repair=repair) for seed in seeds}
    return {seed: SeedResult.from_json(data) for seed, data in loaded.items() if data is not None}


def _result(out: Path | None, seeds: dict[int, SeedResult]) -> RunResult:
    return RunResult(out, seeds, summarise(seeds))


def _say_what(config: RunConfig, corpus: RunCorpus, say: Say) -> None:
    rows = ", ".join(f"{d.name} {len(d.inputs):,}" for d in corpus.labelled)
    target = f"; target {corpus.target}" if corpus.target else ""
    kind = corpus.coder.reads
    size = len(corpus.coder.chars) if corpus.coder.reads == "characters" else corpus.coder.num_words
    labels = len(corpus.coder.labels)
    say(f"{config.method.replace('_', '-')}: sources {rows}{target}; {labels} labels, {size:,} {kind}.")


def _listed(seeds: Mapping[int, Any] | Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _silent(text: str) -> None:
    """Nobody is listening."""


def _to_stderr(text: str) -> None:
    print(f"Warning: {text}", file=sys.stderr, flush=True)
