"""Which files a run reads, as which task and in which roles; checked before anything is read whole or written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xferkit.data.corpus import fingerprint, parse_named_files
from xferkit.data.errors import printable
from xferkit.data.records import MAX_TOKENS, OnProgress, RecordReader, read_records
from xferkit.runs.config import RunConfig
from xferkit.runs.detect import detect_task
from xferkit.runs.folder import InputFile

__all__ = ["Inputs", "plan_inputs"]

Say = Callable[[str], None]
Watch = Callable[[str], OnProgress | None]

_ROLES = ("train", "unlabelled", "dev", "test", "vectors")


@dataclass(frozen=True)
class Inputs:
    """The files of a run, by role and language.

    Attributes:
        task: what the labels are of.
        train: labelled files of the sources, whose order numbers them.
        unlabelled: text of the target and of sources.
        dev: labelled files that weights are chosen on.
        test: labelled files of the final test.
        vectors: word vectors by language.
        target: the language without labels; None when there is none.
    """

    task: Literal["tagging", "classification"]
    train: Mapping[str, str]
    unlabelled: Mapping[str, str]
    dev: Mapping[str, str]
    test: Mapping[str, str]
    vectors: Mapping[str, str]
    target: str | None

    @property
    def sources(self) -> tuple[str, ...]:
        """The languages with labels, in their order."""
        return tuple(self.train)

    def reader(
        self,
        role: str,
        language: str,
        config: RunConfig,
        *,
        labelled: bool = True,
        allowed_labels: Sequence[str] | None = None,
        watch: Watch | None = None,
    ) -> RecordReader:
        """The records of a file, read as the settings say."""
        path = getattr(self, role)[language]
        plain_text = not labelled and path.lower().removesuffix(".gz").endswith(".txt")
        return read_records(
            path,
            format="auto" if plain_text else config.format,
            task=self.task,
            mode=config.mode,
            labelled=labelled,
            columns=config.columns,
            allowed_labels=allowed_labels,
            encoding=config.encoding,
            max_tokens=config.max_tokens or MAX_TOKENS if self.task == "tagging" else MAX_TOKENS,
            on_progress=watch(path) if watch is not None else None,
        )


def plan_inputs(config: RunConfig, say: Say, warn: Say) -> tuple[Inputs, tuple[InputFile, ...]]:
    """Check the files of a run and see what they are; the second result identifies their content.

    Raises:
        ValueError: no source, several targets, a file that is missing or named twice, or an unclear task.
    """
    named = {role: _named(role, getattr(config, role)) for role in _ROLES}
    if not named["train"]:
        raise ValueError(
            "train names no file; expected labelled files of source languages, --train en=en.tsv ..."
        )
    sources = tuple(named["train"])
    target = _target(sources, named["unlabelled"])
    _check_roles(config, named, sources, target, warn)
    task = _task(config, named["train"], say)
    inputs = Inputs(
        task,
        named["train"],
        named["unlabelled"],
        named["dev"],
        named["test"],
        named["vectors"],
        target,
    )
    files = [
        InputFile(role, language, path, fingerprint(path))
        for role in _ROLES
        for language, path in named[role].items()
    ]
    if config.encoder.vectors is not None:
        files.append(InputFile("vectors", "", config.encoder.vectors, fingerprint(config.encoder.vectors)))
    _warn_of_overlap(files, warn)
    return inputs, tuple(files)


def _named(role: str, files: Mapping[str, str]) -> dict[str, str]:
    arguments = [f"{name}={path}" for name, path in files.items()]
    parsed = parse_named_files(arguments, argument=f"--{role}")
    for key in parsed:
        if key.task:
            raise ValueError(
                f"--{role}: {str(key)!r} names a task; expected a language such as {key.language!r}"
            )
    return {str(key): path for key, path in parsed.items()}


def _target(sources: Sequence[str], unlabelled: Mapping[str, str]) -> str | None:
    targets = [language for language in unlabelled if language not in sources]
    if len(targets) > 1:
        raise ValueError(
            f"--unlabelled names {len(targets)} languages without labels ({', '.join(targets)}); expected one target, "
            "and a training for each"
        )
    return targets[0] if targets else None


def _check_roles(
    config: RunConfig,
    named: Mapping[str, Mapping[str, str]],
    sources: Sequence[str],
    target: str | None,
    warn: Say,
) -> None:
    known = {*sources, *([target] if target else [])}
    for language in named["dev"]:
        if language not in known and target is not None:
            raise ValueError(
                f"--dev names {language!r}, which is neither a source ({', '.join(sources)}) nor the target {target!r}"
            )
    others = [language for language in named["dev"] if language not in sources]
    select = config.trainer.select
    if select == "target_dev":
        if not others:
            raise ValueError(
                "select is target_dev, but --dev names no file of the target; expected one, or select source_dev"
            )
        warn(
            f"labels of {', '.join(others)} choose the weights (select target_dev): this is not zero-resource, and "
            "its scores are not to be compared with those of methods that see no label of the target."
        )
    elif others:
        warn(
            f"the development file of {', '.join(others)} is scored along the way and chooses nothing; weights are "
            f"chosen by {select}."
        )
    if named["vectors"]:
        if config.encoder.vectors is not None:
            raise ValueError("vectors and encoder.vectors are both given; expected one of them")
        lacking = sorted({*known, *named["dev"], *named["test"]} - set(named["vectors"]))
        if lacking:
            raise ValueError(
                f"--vectors names no file for {', '.join(lacking)}; expected one for every language"
            )
    if config.encoder.vectors is not None and not os.path.exists(config.encoder.vectors):
        raise ValueError(
            f"encoder.vectors: {printable(config.encoder.vectors)} does not exist; expected a file"
        )
    if not named["test"]:
        warn("no --test file is given: the run ends with scores on development data alone.")


def _task(config: RunConfig, train: Mapping[str, str], say: Say) -> Literal["tagging", "classification"]:
    if config.task != "auto":
        return config.task
    found = {lang: detect_task(path, config.columns, config.format) for lang, path in train.items()}
    tasks = {task for task, _ in found.values()}
    if len(tasks) > 1:
        seen = ", ".join(f"{train[lang]} {task} ({why})" for lang, (task, why) in found.items())
        raise ValueError(f"the training files look like different tasks: {seen}; expected one, or --task")
    task, why = next(iter(found.values()))
    say(f"Task: {task} ({why} in {next(iter(train.values()))}).")
    return task


def _warn_of_overlap(files: Sequence[InputFile], warn: Say) -> None:
    seen = {f.sha256: f for f in files if f.role == "train"}
    for file in files:
        same = seen.get(file.sha256)
        if same is not None and file.role in ("dev", "test"):
            warn(
                f"{file.describe()} has the content of {same.describe()}: its scores say nothing about new text."
            )
