"""Texts of one's own files: which domains, languages or sources of labelled texts help a target?"""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xferkit.data.errors import printable, shown, shown_list
from xferkit.data.hashing import character_grams, hash_bucket, split_words
from xferkit.data.lexicon import EncodedTokens
from xferkit.data.ragged import Ragged
from xferkit.data.records import Columns
from xferkit.diagnosis.folder import Row, TaskFiles, alike_classes, read_folder
from xferkit.diagnosis.folder_files import find_files
from xferkit.diagnosis.ngrams import GRAM, LIMIT, MAX_WORDS, NgramTable
from xferkit.diagnosis.problem import Metric, Part, SplitName
from xferkit.diagnosis.recipe import Recipe, scaled
from xferkit.diagnosis.training import TaskData, TrainedProblem, known_task
from xferkit.models import Encoder, TokenSequences
from xferkit.runs.schema import checked_value, nearest, options_of

__all__ = ["BagEncoder", "TextProblem", "hashed_bag", "ngram_matrix"]

_BUCKETS = 2**15
_CACHED_WORDS = 2**18
_DIM, _HIDDEN = 32, 64
#: Classes, and groups of classes that are spelled alike, that a description names at most.
_NAMED_CLASSES, _NAMED_GROUPS = 10, 3

RECIPE = Recipe(
    steps=150,
    batch_size=32,
    learning_rate=5e-3,
    dropout=0.3,
    sizes={
        "hidden_dim": _HIDDEN,
        "private_dim": 32,
        "expert_hidden": 32,
        "predictor_hidden": _HIDDEN,
        "discriminator_hidden": _HIDDEN,
        "lambda1": 0.1,
        "lambda2": 0.1,
        "detach_gate_input": False,
    },
)


@lru_cache(_CACHED_WORDS)
def _grams(word: str, buckets: int) -> tuple[int, ...]:
    return tuple(hash_bucket(f"g:{gram}", buckets) for gram in character_grams(word, GRAM))


def hashed_bag(
    text: str, buckets: int = _BUCKETS, *, lowercase: bool = True, max_words: int = MAX_WORDS
) -> list[int]:
    """The distinct buckets, each in ``[0, buckets)``, of a text's words, pairs of words and character 4-grams."""
    words = split_words(text, lowercase=lowercase, max_words=max_words)
    found = {hash_bucket(f"w:{word}", buckets) for word in words}
    found.update(hash_bucket(f"p:{a} {b}", buckets) for a, b in itertools.pairwise(words))
    for word in set(words):
        found.update(_grams(word, buckets))
    return sorted(found)


def ngram_matrix(texts: Iterable[str], dim: int = 512, *, lowercase: bool = True) -> NDArray[np.float32]:
    """Hashed n-grams as features, ``float32[n, dim]``: rows of length 1 of log(1 + number of distinct n-grams)."""
    rows = []
    for text in texts:
        counts = np.bincount(np.array(hashed_bag(text, lowercase=lowercase), np.int64) % dim, minlength=dim)
        row = np.log1p(counts).astype(np.float32)
        rows.append(row / max(float(np.linalg.norm(row)), 1e-12))
    return np.stack(rows) if rows else np.zeros((0, dim), np.float32)


class BagEncoder(nn.Module):
    """``dropout(relu(W (sum of the embeddings of a text's n-grams) / sqrt(their number) + b))``.

    Embeddings start at zero, so that n-grams that training never met add nothing.

    Args:
        num_ngrams: numbers of n-grams, with that of padding, 0.
        dim: size of the embeddings.
        out_dim: size of the features.
        dropout: on the features.

    Shape:
        :class:`~xferkit.models.TokenSequences` of n texts, tokens being n-grams -> ``float32[n, out_dim]``.
    """

    is_sequence = False

    def __init__(self, num_ngrams: int, dim: int, out_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.embedding = nn.EmbeddingBag(num_ngrams, dim, mode="sum", padding_idx=0)
        nn.init.zeros_(self.embedding.weight)
        self.hidden = nn.Linear(dim, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: TokenSequences) -> Tensor:
        """Features of the texts."""
        bag = self.embedding(inputs.ids) / inputs.lengths.sqrt().unsqueeze(1)
        return self.dropout(torch.relu(self.hidden(bag)))


class TextProblem(TrainedProblem):
    """Text classification from a folder of files, one task a file or a few files; see :mod:`xferkit.diagnosis.folder`.

    The model is a bag of words, word pairs and character 4-grams, with one classifier over the classes of all tasks; an
    answer is one of the classes that its task has in any part (a task without training rows: any). The n-grams are
    those of :class:`~xferkit.diagnosis.ngrams.NgramTable` for the training texts of all tasks, the same for every run,
    so that runs start with the same parameters. Each has an embedding of its own, which a source trains only where its
    texts have the n-gram; the layers behind are shared by all.

    Args:
        folder: where the files are.
        target: the task in question.
        tasks: those to read beside the target; None: all.
        columns: which columns hold what; also as a mapping, such as ``{"text": "review", "label": "stars"}``.
        encoding: of the files.
        recipe: how a task alone is trained.
        metric: the score: accuracy, or the unweighted mean over classes of F1.

    Attributes:
        passed_over: files of the folder that look like those of a task and hold no text.

    Raises:
        DataError: as :func:`~xferkit.diagnosis.folder.read_folder` says.
        ValueError: ``columns`` has a key that does not exist, or a value of another kind.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        target: str,
        tasks: Sequence[str] | None = None,
        *,
        columns: Columns | Mapping[str, Any] | None = None,
        encoding: str = "utf-8",
        recipe: Recipe = RECIPE,
        metric: Metric = "accuracy",
    ) -> None:
        self.files = read_folder(folder, target, tasks, _columns(columns), encoding=encoding)
        left = find_files(folder) if tasks is None else {}
        self.passed_over = tuple(
            path for name, own in left.items() if name not in self.files for path in own.values()
        )
        names = tuple(name for name, task in self.files.items() if task.labelled)
        super().__init__("texts", target, names, recipe, metric)
        self.classes = tuple(sorted({row.label for name in names for row in self.files[name].rows["train"]}))
        self.ngrams = NgramTable([self.texts(name) for name in names])
        self._encoded = {name: self._encode(task) for name, task in self.files.items()}

    @property
    def _num_classes(self) -> int:
        return len(self.classes)

    def _encode(self, task: TaskFiles) -> TaskData:
        number = {name: i for i, name in enumerate(self.classes)}

        def part(rows: Sequence[Row]) -> tuple[EncodedTokens, Tensor]:
            bags = self.ngrams.encode(row.text for row in rows)
            labels = torch.tensor([number[row.label] for row in rows], dtype=torch.int64)
            # The lowest bit is for flags, which n-grams have none of.
            return EncodedTokens(Ragged(bags.flat << 1, bags.offsets), with_flags=False), labels

        train = part(task.rows["train"]) if task.labelled else None
        # Also those that only other tasks train: what a source can teach of them is its help.
        known = {number[row.label] for rows in task.rows.values() for row in rows} if task.labelled else ()
        parts: dict[Part, tuple[EncodedTokens, Tensor]] = {
            "dev": part(task.rows["dev"]),
            "test": part(task.rows["test"]),
        }
        return TaskData(parts, train, train[0] if train else None, tuple(sorted(known)) or None)

    def _data(self, tasks: tuple[str, ...]) -> dict[str, TaskData]:
        return self._encoded

    def _encoder(self, width: float) -> Encoder:
        return BagEncoder(
            len(self.ngrams), scaled(_DIM, width), scaled(_HIDDEN, width), dropout=self.recipe.dropout
        )

    def sizes(self) -> dict[str, dict[str, int]]:
        """Rows by task and split."""
        return {
            name: {split: len(rows) for split, rows in task.rows.items()} for name, task in self.files.items()
        }

    def describe(self) -> str:
        """The problem in a few sentences."""
        named = f" ({shown_list(self.classes)})" if len(self.classes) <= _NAMED_CLASSES else ""
        found = (
            f"Texts of {len(self.everything)} tasks in {len(self.classes)} classes{named}, scored on {self.target}. "
            f"{self._warnings()}A bag of words, word pairs and character {GRAM}-grams with one hidden layer; of each "
            f"text the first {MAX_WORDS} words are read, and of the n-grams the {len(self.ngrams.numbers)} that at "
            f"least two training texts have"
            f"{' and that are the most frequent of a task' if len(self.ngrams.numbers) == LIMIT else ''}. "
            f"{self.trained()}"
        )
        dropped = [(name, task.dropped) for name, task in self.files.items() if task.dropped]
        if dropped:
            listed = shown_list(f"{count} of {name}" for name, count in dropped)
            found += (
                f" Left out are training rows of sources whose text stands in the development or test part of "
                f"{self.target}: {listed}."
            )
        return found

    def _warnings(self) -> str:
        """What a person should see before anything is trained: a space follows each sentence."""
        found = ""
        groups = alike_classes(self.files)
        for group in groups[:_NAMED_GROUPS]:
            classes = [f"{_seen(label, group)} ({shown_list(tasks)})" for label, tasks in group.items()]
            listed = f"{', '.join(classes[:-1])} and {classes[-1]}"
            found += f"{listed} differ only in spelling and are different classes here. "
        if len(groups) > _NAMED_GROUPS:
            found += f"So do {len(groups) - _NAMED_GROUPS} more groups of classes. "
        if self.passed_over:
            names = shown_list(printable(os.path.basename(path)) for path in self.passed_over)
            found += f"Passed over, as no text was found there: {names}. "
        return found

    def fingerprint(self) -> str:
        """SHA-256 over every task, split, text and class as they were read."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(self.files[name].digest().encode())
        return digest.hexdigest()

    def texts(self, task: str, split: SplitName = "train") -> tuple[str, ...]:
        """The texts."""
        return tuple(row.text for row in self._rows(task, split))

    def labels(self, task: str, split: SplitName = "train") -> tuple[str, ...]:
        """Their classes."""
        return tuple(row.label for row in self._rows(task, split))

    def _rows(self, task: str, split: SplitName) -> tuple[Row, ...]:
        return self.files[known_task(task, self.everything)].rows[split]

    def encode(self, task: str) -> NDArray[np.float32] | None:
        """Hashed n-grams of the training texts (of a target without any: the texts it is developed on)."""
        return ngram_matrix(self.texts(task) or self.texts(task, "dev"))


def _seen(label: str, group: Iterable[str]) -> str:
    """A class as it is told from others of its group: by its code points where the same characters would be shown."""
    form = unicodedata.normalize("NFC", label)
    twins = [other for other in group if unicodedata.normalize("NFC", other) == form]
    return ascii(label) if len(twins) > 1 else shown(label)


def _columns(given: Columns | Mapping[str, Any] | None) -> Columns | None:
    """Columns as :func:`read_folder` takes them."""
    if given is None or isinstance(given, Columns):
        return given
    known = options_of(Columns, skip=("tokens", "tags", "comment"))
    if not isinstance(given, Mapping):
        raise ValueError(f"columns is {given!r}; expected a mapping with keys of {', '.join(known)}")
    for key in given:
        if key not in known:
            raise ValueError(
                f"columns: unknown key {key!r}{nearest(str(key), known)}; expected keys of {', '.join(known)}"
            )
    return Columns(**{key: checked_value(known[key], value, "columns") for key, value in given.items()})
