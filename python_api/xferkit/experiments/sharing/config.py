"""What the study of sharing is made of: languages with their texts, the model, its training and its masks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from xferkit.data.plain_text import TextFile
from xferkit.masks import Granularity, MaskTrainingConfig
from xferkit.methods.masked_lm import MaskedLmConfig
from xferkit.models import TransformerConfig
from xferkit.runs.files import read_config
from xferkit.runs.schema import build, flatten, nearest, options_of

__all__ = ["ModelSizes", "SharingConfig", "SharingSettings", "StudyLanguage", "sharing_config"]


@dataclass(frozen=True)
class StudyLanguage:
    """One language.

    Attributes:
        files: what its texts are read from, below the data folder.
        family: languages of one family stand beside each other in figures.
        why: why it is there, in a few words.
    """

    files: tuple[TextFile, ...] = ()
    family: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files is empty; expected at least one file")


@dataclass(frozen=True)
class ModelSizes:
    """The encoder, without the vocabulary, which the texts give.

    Attributes:
        dim: size of the states, a multiple of ``heads``. The thesis has 512 with 12 heads, which cannot be.
        layers: number of layers; the thesis has 8.
        heads: attention heads of a layer.
        feed_forward: hidden units of a layer's feed-forward part.
        max_length: texts are cut behind so many tokens.
        dropout: in training.
        norm: "post", the paper's, or "pre".
    """

    dim: int = 128
    layers: int = 4
    heads: int = 8
    feed_forward: int = 512
    max_length: int = 48
    dropout: float = 0.1
    norm: str = "post"

    def encoder(self, vocab_size: int) -> TransformerConfig:
        """The encoder's configuration.

        Raises:
            ValueError: sizes that no encoder has.
        """
        return TransformerConfig(
            vocab_size,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            feed_forward=self.feed_forward,
            max_length=self.max_length,
            dropout=self.dropout,
            norm=self.norm,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class SharingSettings:
    """Settings of every run.

    Attributes:
        vocabulary: numbers of the shared BPE vocabulary.
        vocabulary_texts: texts of each language that it is learnt from, at most, so that none has it for itself.
        max_texts: texts of a language at most, the first ones; 0: all.
        max_dev: held-out texts of a language at most; one text in twenty is held out, by a hash of it.
        steps: training steps of the model.
        cosine_every: steps between two looks at the gradients.
        cosine_texts: texts of each of the two batches of a language that are looked at.
        model: sizes of the model.
        lm: its training.
        granularity: what a gate stands for, see :func:`xferkit.masks.find_sites`. The thesis names "parameter
            groups"; heads and hidden units are the ones that can be taken out.
        masks: training of the masks.
    """

    vocabulary: int = 4000
    vocabulary_texts: int = 10_000
    max_texts: int = 0
    max_dev: int = 500
    steps: int = 2000
    cosine_every: int = 100
    cosine_texts: int = 512
    model: ModelSizes = field(default_factory=ModelSizes)
    lm: MaskedLmConfig = field(default_factory=MaskedLmConfig)
    granularity: tuple[str, ...] = ("head", "ffn_unit")
    masks: MaskTrainingConfig = field(default_factory=lambda: MaskTrainingConfig(steps=300))

    def __post_init__(self) -> None:
        least = {"vocabulary": 16, "vocabulary_texts": 1, "max_texts": 0, "max_dev": 1, "steps": 1}
        least |= {"cosine_every": 1, "cosine_texts": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"settings.{name} must be at least {low}, got {getattr(self, name)}")
        if not self.granularity:
            raise ValueError("settings.granularity is empty; expected at least one")
        known = get_args(Granularity)
        for name in self.granularity:
            if name not in known:
                raise ValueError(
                    f"settings.granularity names {name!r}{nearest(name, known)}; expected some of {', '.join(known)}"
                )
        self.model.encoder(self.vocabulary)  # checks the sizes


@dataclass(frozen=True)
class SharingConfig:
    """The study.

    Attributes:
        title: in a line.
        notes: what a reader should know of data and settings, in sentences.
        languages: by name, two or more.
        seeds: one model each.
        settings: the same for every run.
    """

    title: str = "Which parameters do the languages share?"
    notes: tuple[str, ...] = ()
    languages: dict[str, StudyLanguage] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2)
    settings: SharingSettings = field(default_factory=SharingSettings)

    def __post_init__(self) -> None:
        if len(self.languages) < 2:
            raise ValueError(f"languages are {list(self.languages)}; expected two or more")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {list(self.seeds)}")

    @property
    def order(self) -> tuple[str, ...]:
        """The languages, those of a family together."""
        families = list(dict.fromkeys(language.family for language in self.languages.values()))
        return tuple(sorted(self.languages, key=lambda name: families.index(self.languages[name].family)))


def sharing_config(path: str | os.PathLike[str]) -> SharingConfig:
    """The study of a YAML file.

    Raises:
        ValueError: the file cannot be read, an unknown key (named with the nearest one), or a value that cannot be; one
            sentence with file and key.
    """
    where = os.fspath(path)
    content = read_config(where)
    languages = content.pop("languages", {})
    values = flatten(content, options_of(SharingConfig, skip=("languages",)), where)
    try:
        if not isinstance(languages, Mapping):
            raise ValueError(f"languages must be a mapping of names to files, got {languages!r}")
        found = {str(name): _language(f"{where}: languages.{name}", of) for name, of in languages.items()}
        return build(SharingConfig, values, languages=found)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _language(where: str, content: Any) -> StudyLanguage:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is {content!r}; expected a mapping with files")
    content = dict(content)
    files = content.pop("files", ())
    if not isinstance(files, list):
        raise ValueError(f"{where}.files is {files!r}; expected a list of files")
    values = flatten(content, options_of(StudyLanguage, skip=("files",)), where)
    listed = tuple(_file(f"{where}.files[{number}]", of) for number, of in enumerate(files))
    try:
        return build(StudyLanguage, values, files=listed)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _file(where: str, content: Any) -> TextFile:
    if isinstance(content, str):
        content = {"path": content}
    if not isinstance(content, Mapping) or not isinstance(content.get("path"), str):
        raise ValueError(f"{where} is {content!r}; expected a path, or a mapping with path, column and kind")
    for key in content:
        if key not in ("path", "column", "kind"):
            raise ValueError(f"{where}: unknown key {key!r}{nearest(str(key), ('path', 'column', 'kind'))}")
    try:
        return TextFile(content["path"], content.get("column"), content.get("kind", "auto"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
