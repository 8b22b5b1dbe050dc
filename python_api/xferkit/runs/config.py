"""All settings of a run on a person's own files, each with a default, and where they come from.

One table of options (:func:`run_options`) serves the command line, YAML files, ``run.json`` and the help; what the
method brings stands under ``options.``, as it is the method that knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from xferkit.data.records import Columns
from xferkit.methods import method_config, method_names
from xferkit.models.encoders import EncoderConfig
from xferkit.runs.pairs.config import PAIR_METHODS, PairRunConfig, check_numbers
from xferkit.runs.schema import Option, build, flat_values, nearest, run_table
from xferkit.trainers import TrainerConfig

__all__ = [
    "IGNORED_BY_IDENTITY",
    "AnyRunConfig",
    "PairRunConfig",
    "RunConfig",
    "VocabularyConfig",
    "make_run_config",
    "method_key",
    "run_options",
]

Task = Literal["auto", "tagging", "classification"]
Format = Literal["auto", "tsv", "csv", "jsonl", "conll", "conllu", "text", "hf"]

#: Pooling under the names of the sources that the demo gives it; here the files name the sources.
_NAMES_OF_SOURCES = ("same_convention", "own")

#: Settings that change neither the model nor its scores; a run may go on with others.
IGNORED_BY_IDENTITY = frozenset(
    {
        "out",
        "workers",
        "seeds",
        "train",  # the files count by their content
        "unlabelled",
        "dev",
        "test",
        "vectors",
        "encoder.vectors",
        "trainer.progress",
        "trainer.title",
        "trainer.trackers",
        "trainer.keep_checkpoints",
    }
)


@dataclass(frozen=True)
class VocabularyConfig:
    """Which words and characters a model knows.

    Attributes:
        min_count: words seen fewer times in all texts together count as unknown; word vectors that are given
            make a word known however rare it is.
        lowercase: words that differ in case alone are one; the characters of a word keep its case.
        max_size: most words that are kept, the frequent ones first; null: all. With pieces, their number (null:
            8000).
        pieces: "bpe" or "unigram": classified texts are read as pieces of words that are learnt from the training
            texts (needs the package tokenizers), in place of words with their characters.
        min_char_count: characters seen fewer times count as unknown.
        max_chars: characters of a word that are read.
    """

    min_count: int = 2
    lowercase: bool = True
    max_size: int | None = None
    pieces: Literal["none", "bpe", "unigram"] = "none"
    min_char_count: int = 2
    max_chars: int = 24

    def __post_init__(self) -> None:
        for name in ("min_count", "min_char_count", "max_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"vocabulary.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_size is not None and self.max_size < 1:
            raise ValueError(f"vocabulary.max_size must be at least 1 or null, got {self.max_size}")


@dataclass(frozen=True)
class RunConfig:
    """What is trained, on which files, and how.

    Attributes:
        method: name of the method; `-` counts as `_`.
        train: labelled files of the source languages, language: file.
        unlabelled: text of the target language, and more text of source languages, language: file. Labels in
            these files are not read.
        dev: labelled files that choose weights; sources without one give a share of their training file.
        test: labelled files that are tested on at the end, once.
        vectors: word vectors, language: file, for vectors of each language in one space; `encoder.vectors` is one
            file for all.
        out: folder of the run; null: nothing is kept.
        task: "tagging" (a label per word) or "classification" (one per text); "auto": seen from the files.
        format: format of all files; "auto": seen from the name and content of each.
        mode: "strict": a malformed row ends the run; "skip": it is left out and counted.
        encoding: character encoding of the files.
        columns: which columns of a table hold what.
        unknown_labels: "error": a label in dev or test that the training files lack ends the run; "count": it
            counts as one that is never predicted.
        scheme: which spans BIO tags stand for where they break the scheme: "conlleval" or "strict".
        max_tokens: words (or characters, or pieces) of a text that are read at most. Longer texts are malformed
            when tagging (null: more than 10000), and cut otherwise (null: at 512).
        dev_share: share of a source's training file that becomes its development set where `dev` has none.
        dev_seed: seed of that choice, the same for all seeds of training.
        vocabulary: which words and characters are known.
        encoder: the text encoder.
        options: settings of the method, another set for each.
        trainer: how training runs.
        seeds: seeds of training, one model each.
        steps: training steps; null: from the size of the training files.
        batch_size: texts per language in a batch; null: as the method says.
        evaluations: how often development data are scored, evenly spread, where `trainer.eval_every` is 0; a
            checkpoint is written each time where `trainer.checkpoint_every` is 0.
        sampler: "balanced" (the same number of texts of every language), "temperature" or "cycling".
        temperature: T of the temperature sampler, p proportional to n^(1/T).
        bucket: batches of a pool within which texts of like length go together; 0: none.
        ops: "fused" kernels, or their plain-PyTorch "reference".
        workers: seeds trained at once in processes of one thread each; 0: one after the other, in this one.
    """

    method: str = ""
    train: dict[str, str] = field(default_factory=dict)
    unlabelled: dict[str, str] = field(default_factory=dict)
    dev: dict[str, str] = field(default_factory=dict)
    test: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, str] = field(default_factory=dict)
    out: str | None = None
    task: Task = "auto"
    format: Format = "auto"
    mode: Literal["strict", "skip"] = "strict"
    encoding: str = "utf-8"
    columns: Columns = field(default_factory=Columns)
    unknown_labels: Literal["error", "count"] = "error"
    scheme: Literal["conlleval", "strict"] = "conlleval"
    max_tokens: int | None = None
    dev_share: float = 0.1
    dev_seed: int = 0
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    options: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seeds: tuple[int, ...] = (1,)
    steps: int | None = None
    batch_size: int | None = None
    evaluations: int = 20
    sampler: Literal["balanced", "temperature", "cycling"] = "balanced"
    temperature: float = 1.0
    bucket: int = 0
    ops: Literal["fused", "reference"] = "fused"
    workers: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, steps=1, batch_size=1, workers=0, bucket=0, max_tokens=1)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def values(self) -> dict[str, Any]:
        """All settings, flat, as values that JSON and YAML hold."""
        return flat_values(self)


#: Settings of a run, whatever its kind.
AnyRunConfig = RunConfig | PairRunConfig


def method_key(name: str) -> str:
    """The registered name of a method that a person wrote with `-` or `_`.

    Raises:
        ValueError: there is no such method; the sentence has the nearest one and all others.
    """
    key = name.replace("-", "_")
    known = [known for known in (*method_names(), *PAIR_METHODS) if known not in _NAMES_OF_SOURCES]
    if key not in known:
        listed = ", ".join(n.replace("_", "-") for n in known)
        if not name:
            raise ValueError(f"no method is given; methods are {listed}")
        raise ValueError(f"unknown method {name!r}{nearest(name, known)}; methods are {listed}")
    return key


def _kinds(key: str) -> tuple[type[AnyRunConfig], type]:
    """The dataclasses of a run of the method, and of the method's own settings."""
    if key in PAIR_METHODS:
        return PairRunConfig, PAIR_METHODS[key]
    return RunConfig, method_config(key)


def run_options(method: str) -> dict[str, Option]:
    """All options of a run of `method`, by key; those of the method itself under ``options.``.

    Raises:
        ValueError: there is no such method.
    """
    return run_table(*_kinds(method_key(method)))


def make_run_config(values: Mapping[str, Any]) -> AnyRunConfig:
    """A configuration from flat values (see :func:`run_options`); what is missing takes its default.

    Returns:
        A :class:`RunConfig`, or for methods of pairs of texts a :class:`PairRunConfig`.

    Raises:
        ValueError: a value out of its range, or no such method.
    """
    method = method_key(str(values.get("method", "")))
    kind, own = _kinds(method)
    options: Any = build(own, values, "options.")
    return build(kind, {**values, "method": method}, options=options)
