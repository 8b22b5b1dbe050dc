"""What a diagnosis is of: a problem of a configuration file or of a folder, seeds, budget and fixes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from xferkit.diagnosis.images import DigitProblem
from xferkit.diagnosis.names import NameProblem
from xferkit.diagnosis.plans import DiagnoseBudget
from xferkit.diagnosis.problem import Metric, Problem
from xferkit.diagnosis.recipe import Recipe
from xferkit.diagnosis.tagging import TagProblem
from xferkit.diagnosis.texts import TextProblem
from xferkit.diagnosis.training import TrainedProblem
from xferkit.runs.files import read_config
from xferkit.runs.schema import Option, build, checked_value, flatten, nearest, options_of

__all__ = ["DiagnosisConfig", "ProblemKind", "data_folder", "diagnosis_config", "open_problem"]

ProblemKind = Literal["texts", "names", "tagging", "digits"]
"""A folder of labelled texts; the names of CLDR; sentences with tags; images of digits."""

_KINDS: dict[str, type[TrainedProblem]] = {
    "texts": TextProblem,
    "names": NameProblem,
    "tagging": TagProblem,
    "digits": DigitProblem,
}
# Arguments of the problems that a configuration has keys for.
_KEYS = {
    "target": "target",
    "sources": "sources",
    "tasks": "sources",
    "data": "data",
    "folder": "data",
    "metric": "metric",
}
# Arguments that are objects; a recipe may be given by those of its fields that differ.
_OBJECTS = ("recipe", "settings")


@dataclass(frozen=True)
class DiagnosisConfig:
    """A diagnosis.

    Attributes:
        title: in a line.
        problem: what kind of data it is about.
        target: the task in question.
        sources: the others, each once; empty: all that there are. Tagging has to name them.
        options: further settings of the problem, by the names of its class's arguments; "recipe" by those fields of
            :class:`~xferkit.diagnosis.recipe.Recipe` that differ from the problem's own ("steps", say).
        metric: the score, "accuracy" or "macro_f1" (unweighted mean over classes of F1).
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
    metric: Metric = "accuracy"
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
        if twice := [name for i, name in enumerate(self.sources) if name in self.sources[:i]]:
            raise ValueError(f"sources names {twice[0]!r} twice; expected each task once")
        for name, known in (("problem", ProblemKind), ("metric", Metric), ("budget", DiagnoseBudget)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}{nearest(str(getattr(self, name)), get_args(known))}; expected "
                    f"one of {', '.join(get_args(known))}"
                )
        if self.problem == "names" and self.data:
            raise ValueError(f"data is {self.data!r}; expected none, since the names come with Babel")
        if self.problem == "tagging" and not self.sources:
            raise ValueError("sources is missing; expected the names of the other languages, for tagging")
        _checked_options(self.problem, self.options)


def diagnosis_config(
    path: str | os.PathLike[str], changed: Mapping[str, Any] | None = None
) -> DiagnosisConfig:
    """The diagnosis of a YAML file.

    Args:
        path: the file.
        changed: values of the command line, which go before those of the file.

    Raises:
        ValueError: the file cannot be read, an unknown key or option (named with the nearest one), or a value that
            cannot be.
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


def data_folder(config: DiagnosisConfig, data: str | os.PathLike[str] | None = None) -> Path:
    """Where the data lie: ``config.data`` below ``data``, the variable XFER_DATA or the current folder."""
    base = Path(data) if data is not None else Path(os.environ.get("XFER_DATA", "."))
    return base / config.data if config.data else base


def open_problem(config: DiagnosisConfig, data: str | os.PathLike[str] | None = None) -> Problem:
    """The problem of a diagnosis, with its data read.

    Args:
        config: the diagnosis.
        data: folder of the data; None: the variable XFER_DATA, or where the command was started.

    Raises:
        ValueError: a file is missing or malformed (with its line), a task is unknown, or an option cannot be.
    """
    folder = data_folder(config, data)
    options = _checked_options(config.problem, config.options)
    options["metric"] = config.metric
    if config.problem == "names":
        return NameProblem(config.target, config.sources or None, **options)
    if config.problem == "texts":
        return TextProblem(folder, config.target, config.sources or None, **options)
    if config.problem == "tagging":
        return TagProblem(folder, config.target, config.sources, **options)
    return DigitProblem(folder, config.target, config.sources or None, **options)


def _checked_options(problem: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the problem's class wants them."""
    kinds = get_type_hints(_KINDS[problem].__init__)
    objects = [name for name in _OBJECTS if name in kinds]
    known = [name for name in kinds if name not in (*_KEYS, *_OBJECTS, "return")]
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in _KEYS:
            raise ValueError(f"options names {name!r}; expected the key {_KEYS[name]!r} beside options")
        if name not in (*known, *objects):
            raise ValueError(
                f"options: unknown option {name!r}{nearest(str(name), known)}; expected some of {', '.join(known)}"
            )
        if name == "recipe" and isinstance(value, Mapping):
            value = _changed_recipe(problem, value)
        if name in objects:
            wanted = next(kind for kind in (*get_args(kinds[name]), kinds[name]) if isinstance(kind, type))
            if not isinstance(value, wanted):
                raise ValueError(
                    f"options: {name} is {value!r}; expected an object of {wanted.__name__}, which no file can hold"
                )
        # The columns of texts are read by the problem itself.
        plain = name not in objects and name != "columns"
        options[name] = checked_value(Option(name, kinds[name], None), value, "options") if plain else value
    return options


def _changed_recipe(problem: str, given: Mapping[str, Any]) -> Recipe:
    """The problem's own recipe with some fields changed."""
    own: Recipe = inspect.signature(_KINDS[problem].__init__).parameters["recipe"].default
    kinds = get_type_hints(Recipe)
    known = [name for name in kinds if name != "sizes"]
    for name in given:
        if name not in known:
            raise ValueError(
                f"options: unknown key {name!r} of recipe{nearest(str(name), known)}; expected some of "
                f"{', '.join(known)}"
            )
    values = {
        name: checked_value(Option(name, kinds[name], None), v, "options: recipe")
        for name, v in given.items()
    }
    try:
        return replace(own, **values)
    except ValueError as error:
        raise ValueError(f"options: recipe: {error}") from None
