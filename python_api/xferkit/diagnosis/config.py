"""What a diagnosis is of: a problem of a configuration file or of a folder, seeds, budget and fixes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from xferkit.diagnosis.plans import DiagnoseBudget
from xferkit.diagnosis.problem import Problem
from xferkit.runs.files import read_config
from xferkit.runs.schema import build, flatten, nearest, options_of

__all__ = ["DiagnosisConfig", "ProblemKind", "diagnosis_config", "open_problem"]

ProblemKind = Literal["texts", "names", "tagging", "digits"]
"""A folder of labelled texts; the names of CLDR; sentences with tags; images of digits."""


@dataclass(frozen=True)
class DiagnosisConfig:
    """A diagnosis.

    Attributes:
        title: in a line.
        problem: what kind of data it is about.
        target: the task in question.
        sources: the others; empty: all that there are.
        options: further settings of the problem.
        data: folder of the data, below the one of the command line or the variable XFER_DATA where it is relative.
        seeds: one training each of every task set.
        budget: "quick", "pairs" or "full".
        try_fixes: whether remedies are tried.
        race_seeds: of the race of remedies on development data.
        fresh_seeds: of the measurement of the winner on test data.
        notes: what a reader should know of the data, in sentences.
    """

    title: str = "Which tasks help the target, and which hurt it?"
    problem: ProblemKind = "texts"
    target: str = ""
    sources: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    budget: DiagnoseBudget = "quick"
    try_fixes: bool = False
    race_seeds: tuple[int, ...] = (101, 102, 103)
    fresh_seeds: tuple[int, ...] = (201, 202, 203, 204, 205)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("target is missing; expected the name of the task in question")
        for name in ("seeds", "race_seeds", "fresh_seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be different numbers, at least one, got {list(values)}")
        both = sorted(set(self.fresh_seeds) & {*self.seeds, *self.race_seeds})
        if both:
            raise ValueError(
                f"fresh_seeds must be seeds that nothing was chosen with, but {both[0]} is among the others"
            )
        if self.target in self.sources:
            raise ValueError(f"sources names the target {self.target!r}")
        for name, known in (("problem", ProblemKind), ("budget", DiagnoseBudget)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}{nearest(str(getattr(self, name)), get_args(known))}; expected "
                    f"one of {', '.join(get_args(known))}"
                )


def diagnosis_config(
    path: str | os.PathLike[str], changed: Mapping[str, Any] | None = None
) -> DiagnosisConfig:
    """The diagnosis of a YAML file.

    Args:
        path: the file.
        changed: values of the command line, which go before those of the file.

    Raises:
        ValueError: the file cannot be read, an unknown key (named with the nearest one), or a value that cannot be.
    """
    where = os.fspath(path)
    content = read_config(where)
    options = content.pop("options", {})
    if not isinstance(options, Mapping):
        raise ValueError(f"{where}: options must be a mapping, got {options!r}")
    values = flatten(content, options_of(DiagnosisConfig, skip=("options",)), where)
    try:
        return build(DiagnosisConfig, {**values, **(changed or {})}, options=dict(options))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def open_problem(config: DiagnosisConfig, data: str | os.PathLike[str] | None = None) -> Problem:
    """The problem of a diagnosis, with its data read.

    Args:
        config: the diagnosis.
        data: folder of the data; None: the variable XFER_DATA, or where the command was started.

    Raises:
        ValueError: a file is missing or malformed (with its line), a task is unknown, or an option does not exist.
    """
    base = Path(data) if data is not None else Path(os.environ.get("XFER_DATA", "."))
    folder = base / config.data if config.data else base
    options, sources = dict(config.options), config.sources or None
    try:
        if config.problem == "names":
            from xferkit.diagnosis.names import NameProblem

            return NameProblem(config.target, sources, **options)
        if config.problem == "texts":
            from xferkit.diagnosis.texts import TextProblem

            return TextProblem(folder, config.target, sources, **options)
        if config.problem == "tagging":
            from xferkit.diagnosis.tagging import TagProblem

            return TagProblem(folder, config.target, sources or (), **options)
        from xferkit.diagnosis.images import DigitProblem

        return DigitProblem(folder, config.target, **options)
    except TypeError as error:
        raise ValueError(f"options: {error}") from None
