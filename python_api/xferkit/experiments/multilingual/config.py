"""What a multilingual table compares: languages, ways of joining their losses, seeds and settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xferkit.data.samplers import SamplerKind
from xferkit.experiments.multilingual.cell import ALONE, LOOKUP
from xferkit.experiments.tagging_settings import TaggerSettings
from xferkit.methods import method_config, method_names
from xferkit.runs.config import method_key, run_options
from xferkit.runs.files import read_config
from xferkit.runs.schema import build, flatten, nearest, options_of, plain
from xferkit.trainers import TrainerConfig

__all__ = [
    "Language",
    "MultilingualConfig",
    "MultilingualSettings",
    "Row",
    "build_options",
    "multilingual_config",
]

#: Options of methods that stand among the settings of the table, so that they are the same for all.
_SETTINGS_OF_ALL = ("hidden_dim", "dropout", "learning_rate", "weight_decay")


@dataclass(frozen=True)
class Language:
    """One language of the model.

    Attributes:
        family: languages of one family are related.
        low: counts as low-resource.
        max_train: training sentences at most, the first ones; 0: as ``files.max_train`` says.
        why: why it is there, in a few words.
    """

    family: str = ""
    low: bool = False
    max_train: int = 0
    why: str = ""

    def __post_init__(self) -> None:
        if not self.family or self.max_train < 0:
            raise ValueError(
                f"expected a family and max_train of at least 0, got {self.family!r} and {self.max_train}"
            )


@dataclass(frozen=True)
class Row:
    """One row of the table: a method with its options.

    Attributes:
        method: a name of :func:`xferkit.methods.method_names`.
        options: settings of the method, where they differ from its defaults.
        file: a configuration of ``xferkit train`` below the table's folder, which names method and options in
            their place.
        label: what the table calls it; default: its name.
        note: what it is, in a few words.
    """

    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    label: str = ""
    note: str = ""

    @property
    def options_text(self) -> str:
        """The options as JSON, for cells and hashes."""
        return json.dumps(self.options, sort_keys=True)


@dataclass(frozen=True)
class MultilingualSettings(TaggerSettings):
    """Settings of every training, the same for all methods.

    Attributes:
        sampler: how a batch is shared out among the languages.
        temperature: T of the temperature sampler: a language's share of a batch goes with n^(1/T).
        observe_every: of so many steps one is looked at for cosines and active pairs; 0: none.
        trainer: settings of the trainer, which selects nothing.
    """

    sampler: SamplerKind = "temperature"
    temperature: float = 5.0
    observe_every: int = 1
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(select="last"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or self.observe_every < 0:
            raise ValueError(
                "settings: expected temperature above 0 and observe_every of at least 0, got "
                f"{self.temperature} and {self.observe_every}"
            )
        if self.trainer.select != "last":
            raise ValueError(
                f"settings.trainer.select is {self.trainer.select!r}; expected 'last', since all methods are "
                "compared after the same steps and nothing is selected"
            )


@dataclass(frozen=True)
class MultilingualConfig:
    """A multilingual table.

    Attributes:
        title: what it compares, in a line.
        task: what is tagged with what, in a phrase.
        notes: what a reader should know of data and settings, in sentences.
        languages: by name; all are trained on with their labels and tested on.
        methods: rows by name, in the order of the table.
        baseline: the row that every other one is compared with.
        alone: whether each language is trained by itself as well, with the baseline's method.
        seeds: one run each.
        settings: the same for every run.
    """

    title: str = ""
    task: str = ""
    notes: tuple[str, ...] = ()
    languages: dict[str, Language] = field(default_factory=dict)
    methods: dict[str, Row] = field(default_factory=dict)
    baseline: str = "joint_sum"
    alone: bool = False
    seeds: tuple[int, ...] = (1, 2, 3)
    settings: MultilingualSettings = field(default_factory=MultilingualSettings)

    def __post_init__(self) -> None:
        if len(self.languages) < 2:
            raise ValueError(f"languages are {list(self.languages)}; expected two or more")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {list(self.seeds)}")
        for name in (ALONE, LOOKUP):
            if name in self.methods:
                raise ValueError(
                    f"methods has {name!r}, which the table adds by itself; expected another name"
                )
        if self.baseline not in self.methods:
            raise ValueError(
                f"baseline is {self.baseline!r}, which methods lacks{nearest(self.baseline, self.methods)}"
            )
        for name, row in self.methods.items():
            _check_row(name, row, self.languages, self.settings)

    @property
    def low(self) -> tuple[str, ...]:
        """The low-resource languages."""
        return tuple(name for name, language in self.languages.items() if language.low)

    @property
    def high(self) -> tuple[str, ...]:
        """All others."""
        return tuple(name for name, language in self.languages.items() if not language.low)

    def related(self, one: str, other: str) -> bool:
        """Whether two languages are of one family."""
        return self.languages[one].family == self.languages[other].family


def _check_row(
    name: str, row: Row, languages: Mapping[str, Language], settings: MultilingualSettings
) -> None:
    if row.method not in method_names():
        raise ValueError(
            f"methods.{name}: unknown method {row.method!r}{nearest(row.method, method_names())}"
        )
    subset = row.options.get("apply_to") or ()
    for language in subset if isinstance(subset, (list, tuple)) else ():
        if language not in languages:
            raise ValueError(
                f"methods.{name}: apply_to names {language!r}, which languages lacks"
                f"{nearest(str(language), languages)}"
            )
    for key, wanted in _common(row.method, settings).items():
        if row.options.get(key, wanted) != wanted:
            raise ValueError(
                f"methods.{name}: options.{key} is {row.options[key]!r}; expected {wanted!r}, settings.{key}, "
                "since all methods are trained alike"
            )
    try:
        build_options(row.method, row.options, settings)
    except ValueError as error:
        raise ValueError(f"methods.{name}: {error}") from None


def _common(method: str, settings: MultilingualSettings) -> dict[str, Any]:
    known = options_of(method_config(method))
    return {key: getattr(settings, key) for key in _SETTINGS_OF_ALL if key in known}


def build_options(method: str, options: Mapping[str, Any], settings: MultilingualSettings) -> Any:
    """The settings of a method: its defaults, those that the table has for all methods, and `options`.

    Raises:
        ValueError: an option that does not exist or cannot have its value.
    """
    known = options_of(method_config(method))
    return build(method_config(method), flatten(options, known, "options") | _common(method, settings))


def multilingual_config(content: dict[str, Any], where: str) -> MultilingualConfig:
    """The table that plain values describe.

    Args:
        content: what a file holds.
        where: the file, for errors, and for the files of its rows.

    Raises:
        ValueError: an unknown key, language or method (named with the nearest one), or a value that cannot be; one
            sentence with file and key.
    """
    groups = {name: content.pop(name, {}) for name in ("languages", "methods")}
    values = flatten(content, options_of(MultilingualConfig, skip=tuple(groups)), where)
    values.setdefault("settings.trainer.select", "last")
    try:
        for name, group in groups.items():
            if not isinstance(group, Mapping):
                raise ValueError(f"{name} must be a mapping of names to settings, got {group!r}")
        settings = build(MultilingualSettings, values, "settings.")
        return build(
            MultilingualConfig,
            values,
            languages={
                str(name): _language(f"{where}: languages.{name}", of)
                for name, of in groups["languages"].items()
            },
            methods={
                str(name): _row(where, str(name), of, settings) for name, of in groups["methods"].items()
            },
        )
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _language(where: str, content: Any) -> Language:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is {content!r}; expected a mapping with family, low and max_train")
    try:
        return build(Language, flatten(content, options_of(Language), where))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _row(where: str, name: str, content: Any, settings: MultilingualSettings) -> Row:
    place = f"{where}: methods.{name}"
    if isinstance(content, str):
        content = {"file": content}
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is {content!r}; expected a file, or a mapping with method and options")
    row = build(Row, flatten(content, options_of(Row), place))
    if bool(row.file) == bool(row.method):
        raise ValueError(
            f"{place} has {'both file and' if row.file else 'neither file nor'} method; expected one"
        )
    if not row.file:
        return _replaced(row, method_key(row.method), row.options)
    if row.options:
        raise ValueError(f"{place} has a file and options; expected the options in the file")
    path = os.fspath(Path(where).parent / row.file)
    tree = read_config(path)
    method = tree.pop("method", None)
    if not isinstance(method, str):
        raise ValueError(f"{path}: method is {method!r}; expected the name of one")
    found = flatten(tree, run_options(method), path)
    here = plain(settings)
    for key, value in found.items():
        if not key.startswith("options.") and (key not in here or here[key] != _simple(value)):
            known = (
                f"settings.{key} is {here[key]!r} in {where}"
                if key in here
                else f"{where} lacks settings.{key}"
            )
            raise ValueError(
                f"{path}: {key} is {value!r}, but {known}; expected the same, since all methods are trained alike"
            )
    options = {
        key.removeprefix("options."): _simple(v) for key, v in found.items() if key.startswith("options.")
    }
    return _replaced(row, method_key(method), options)


def _replaced(row: Row, method: str, options: Mapping[str, Any]) -> Row:
    return Row(method, dict(options), row.file, row.label, row.note)


def _simple(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_simple(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value
