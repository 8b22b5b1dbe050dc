"""The n-grams that training texts share, each with a number of its own, and texts as the numbers of theirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from xferkit.data.hashing import character_grams, split_words
from xferkit.data.ragged import Ragged

__all__ = ["GRAM", "LIMIT", "MAX_WORDS", "UNKNOWN", "NgramTable"]

#: Characters of a character n-gram.
GRAM = 4
#: Words of a text that are read.
MAX_WORDS = 256
#: N-grams of a table at most: every step updates the embeddings of all of them.
LIMIT = 2**15
#: Number of a text that has none of the n-grams; 0 is padding.
UNKNOWN = 1

_LEAST_TEXTS = 2
_CACHED_WORDS = 2**18
_WORD, _GRAM, _PAIR = range(3)


class NgramTable:
    """Numbers of words, character 4-grams of words and pairs of neighbouring words; no two n-grams share one.

    An n-gram has a number where at least two training texts have it, of whichever tasks. Of more than ``limit``, those
    with the highest share of a task's training texts stay (the highest over the tasks), so that each task keeps its own
    frequent ones; of equally frequent ones words go before 4-grams and these before pairs, each in the order of their
    characters. Tables of the same texts are the same, in whatever order the texts and tasks come.

    Args:
        tasks: training texts of each task.
        limit: n-grams at most.

    Attributes:
        numbers: by n-gram its number, above :data:`UNKNOWN`; ``"w:good"`` is a word, ``"g:<goo"`` a 4-gram, where ``<``
            and ``>`` are the ends of the word, and ``"p:good book"`` a pair.
    """

    def __init__(self, tasks: Iterable[Sequence[str]], limit: int = LIMIT) -> None:
        self.numbers: Mapping[str, int] = {
            ngram: number for number, ngram in enumerate(_shared(tasks, limit), UNKNOWN + 1)
        }

    def __len__(self) -> int:
        """Numbers in all, with those of padding and of unknown texts."""
        return UNKNOWN + 1 + len(self.numbers)

    def encode(self, texts: Iterable[str]) -> Ragged:
        """For each text the numbers of its distinct n-grams, ascending; others are dropped.

        A text with none of them has the number :data:`UNKNOWN` alone.
        """
        numbers = self.numbers

        @lru_cache(_CACHED_WORDS)
        def of_word(word: str) -> tuple[int, ...]:
            named = (f"w:{word}", *(f"g:{gram}" for gram in character_grams(word, GRAM)))
            return tuple(numbers[ngram] for ngram in named if ngram in numbers)

        rows = []
        for text in texts:
            words = split_words(text, max_words=MAX_WORDS)
            found = {number for word in set(words) for number in of_word(word)}
            pairs = (f"p:{a} {b}" for a, b in itertools.pairwise(words))
            found.update(numbers[pair] for pair in pairs if pair in numbers)
            # An array at once: as a list of Python's integers a text takes eight times as much.
            rows.append(np.array(sorted(found) or [UNKNOWN], np.int32))
        flat = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        return Ragged(torch.from_numpy(flat), torch.tensor([0, *map(len, rows)]).cumsum(0))


def _shared(tasks: Iterable[Sequence[str]], limit: int) -> list[str]:
    """The n-grams of a table, in the order of their numbers."""
    words, texts = _numbered_words(tasks)
    grams = sorted({gram for word in words for gram in character_grams(word, GRAM)})
    place = {gram: number for number, gram in enumerate(grams)}
    spelled = [np.array([place[gram] for gram in character_grams(word, GRAM)], np.int64) for word in words]
    counts: tuple[_Counts, ...] = (_Counts(), _Counts(), _Counts())
    for own in texts:
        in_words, in_grams = np.zeros(len(words), np.int64), np.zeros(len(grams), np.int64)
        in_pairs = [np.zeros(0, np.int64)]
        for row in own:
            if not len(row):
                continue
            distinct = np.unique(row)
            in_words[distinct] += 1
            in_grams[np.unique(np.concatenate([spelled[word] for word in distinct]))] += 1
            in_pairs.append(np.unique(row[:-1].astype(np.int64) * len(words) + row[1:]))
        counts[_WORD].add(np.arange(len(words)), in_words, len(own))
        counts[_GRAM].add(np.arange(len(grams)), in_grams, len(own))
        counts[_PAIR].add(*np.unique(np.concatenate(in_pairs), return_counts=True), len(own))
    frequent = [count.frequent() for count in counts]
    kinds = np.concatenate([np.full(len(codes), kind) for kind, (codes, _) in enumerate(frequent)])
    codes = np.concatenate([codes for codes, _ in frequent])
    shares = np.concatenate([shares for _, shares in frequent])
    kept = np.lexsort((codes, kinds, -shares))[:limit]
    kept = kept[np.lexsort((codes[kept], kinds[kept]))]

    def name(kind: int, code: int) -> str:
        if kind == _PAIR:
            return f"p:{words[code // len(words)]} {words[code % len(words)]}"
        return f"g:{grams[code]}" if kind == _GRAM else f"w:{words[code]}"

    return [name(kind, code) for kind, code in zip(kinds[kept].tolist(), codes[kept].tolist(), strict=True)]


def _numbered_words(tasks: Iterable[Sequence[str]]) -> tuple[list[str], list[list[NDArray[np.int32]]]]:
    """The distinct words in the order of their characters, and the texts of each task as places there."""
    met: dict[str, int] = {}
    texts = [
        [
            np.array(
                [met.setdefault(word, len(met)) for word in split_words(text, max_words=MAX_WORDS)], np.int32
            )
            for text in own
        ]
        for own in tasks
    ]
    words = sorted(met)
    place = np.empty(len(words), np.int32)
    place[[met[word] for word in words]] = np.arange(len(words), dtype=np.int32)
    return words, [[place[row] for row in own] for own in texts]


class _Counts:
    """In how many training texts each n-gram of a kind stands, and the highest share of a task's texts."""

    def __init__(self) -> None:
        self._codes: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int64]] = []
        self._shares: list[NDArray[np.float64]] = []

    def add(self, codes: NDArray[np.int64], counts: NDArray[np.int64], texts: int) -> None:
        """Count a task of so many texts."""
        some = counts > 0
        self._codes.append(codes[some])
        self._counts.append(counts[some])
        self._shares.append(counts[some] / max(texts, 1))

    def frequent(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The n-grams of enough texts, and their shares."""
        nothing = np.zeros(0, np.int64)
        codes, place = np.unique(np.concatenate([*self._codes, nothing]), return_inverse=True)
        total, share = np.zeros(len(codes), np.int64), np.zeros(len(codes))
        np.add.at(total, place, np.concatenate([*self._counts, nothing]))
        np.maximum.at(share, place, np.concatenate([*self._shares, np.zeros(0)]))
        enough = total >= _LEAST_TEXTS
        return codes[enough], share[enough]
