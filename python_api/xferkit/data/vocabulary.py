"""Numbers of words and of labels, the same for the same counts, written to JSON and read again."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xferkit.data.errors import DataError, close_name, shown, shown_list
from xferkit.models.characters import CharVocabulary

__all__ = ["UNKNOWN", "CharVocabulary", "LabelSet", "WordVocabulary", "count_words"]

#: Number of every word that the vocabulary lacks; 0 is padding.
UNKNOWN = 1


def count_words(sentences: Iterable[Sequence[str]]) -> Counter[str]:
    """How often each word comes, from which the vocabularies of words and of characters are made."""
    counts: Counter[str] = Counter()
    for words in sentences:
        counts.update(words)
    return counts


class WordVocabulary:
    """Words with numbers: 0 padding, 1 unknown, from 2 on the words. Words are compared in NFC.

    Args:
        words: different words in the order of their numbers.
        lowercase: look words up in lower case; the words themselves are then lower-cased already.

    Raises:
        ValueError: when a word is empty, comes twice or is not in the form in which words are looked up.
    """

    def __init__(self, words: Iterable[str], *, lowercase: bool = False) -> None:
        self.lowercase = lowercase
        self.words = tuple(words)
        self._number = {word: UNKNOWN + 1 + i for i, word in enumerate(self.words)}
        for number, word in enumerate(self.words, UNKNOWN + 1):
            if self._number[word] != number:
                raise ValueError(f"WordVocabulary: the word {shown(word)} comes twice")
            if not word or self.normal(word) != word:
                form = "lower case and NFC" if lowercase else "NFC"
                raise ValueError(f"WordVocabulary: the word {shown(word)} is empty or not in {form}")

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        *,
        min_count: int = 1,
        max_size: int | None = None,
        lowercase: bool = False,
    ) -> WordVocabulary:
        """The words of a corpus, the most frequent first and those of one count in alphabetical order.

        Args:
            counts: how often each word comes, see :func:`count_words`.
            min_count: words that come fewer times are unknown, which so gets trained as well.
            max_size: most words kept (padding and unknown come on top), the most frequent ones.
            lowercase: count and look up words in lower case.

        Raises:
            ValueError: when ``max_size`` is negative.
        """
        if max_size is not None and max_size < 0:
            raise ValueError(f"WordVocabulary: max_size must be at least 0, got {max_size}")
        merged: Counter[str] = Counter()
        for word, count in counts.items():
            merged[_normal(word, lowercase)] += count
        kept = [(word, count) for word, count in merged.items() if word and count >= min_count]
        kept.sort(key=lambda item: (-item[1], item[0]))
        return cls((word for word, _ in kept[:max_size]), lowercase=lowercase)

    def __len__(self) -> int:
        """Number of embeddings needed: padding, unknown, and the words."""
        return UNKNOWN + 1 + len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordVocabulary) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.words, self.lowercase))

    def normal(self, word: str) -> str:
        """The form in which a word is looked up."""
        return _normal(word, self.lowercase)

    def number(self, word: str) -> int:
        """The word's number, 1 when it is unknown."""
        return self._number.get(_normal(word, self.lowercase), UNKNOWN)

    def to_json(self) -> dict[str, Any]:
        """The words in the order of their numbers, for :meth:`from_json`."""
        return {"kind": "words", "lowercase": self.lowercase, "words": list(self.words)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WordVocabulary:
        """The vocabulary that :meth:`to_json` wrote; ValueError when it is not one."""
        lowercase = data.get("lowercase")
        if not isinstance(lowercase, bool):
            raise ValueError(f"WordVocabulary: lowercase must be true or false, got {lowercase!r}")
        return cls(_strings(data, "WordVocabulary", "words"), lowercase=lowercase)


class LabelSet:
    """Names of classes or tags in the order of their numbers, from 0 on.

    Args:
        names: different names, at least one.

    Raises:
        ValueError: when there is none, one is empty or one comes twice.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._number = {name: i for i, name in enumerate(self.names)}
        if not self.names:
            raise ValueError("LabelSet: expected at least one label, got none")
        if "" in self._number:
            raise ValueError("LabelSet: a label is empty")
        if len(self._number) != len(self.names):
            twice = next(name for i, name in enumerate(self.names) if self._number[name] != i)
            raise ValueError(f"LabelSet: the label {shown(twice)} comes twice")

    @classmethod
    def collect(cls, labels: Iterable[Sequence[str] | str]) -> LabelSet:
        """The labels that come in records, in alphabetical order.

        Args:
            labels: for each record its class, or the tags of its tokens.
        """
        found: set[str] = set()
        for label in labels:
            if isinstance(label, str):
                found.add(label)
            else:
                found.update(label)
        return cls(sorted(found))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSet) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def number(self, name: str) -> int:
        """The label's number.

        Raises:
            DataError: for an unknown label.
        """
        number = self._number.get(name)
        if number is None:
            wrong, expected = self.unknown(name)
            raise DataError(f"{wrong}; expected {expected}", reason="unknown label")
        return number

    def numbers(self, names: Sequence[str]) -> list[int]:
        """The labels' numbers; DataError for the first unknown one."""
        try:
            return list(map(self._number.__getitem__, names))
        except KeyError:
            return [self.number(name) for name in names]

    def unknown(self, name: str) -> tuple[str, str]:
        """What is wrong with a label that is not among these, and what was expected, for an error."""
        return (
            f"unknown label {shown(name)}{close_name(name, self.names)}",
            f"one of {shown_list(self.names)}",
        )

    def to_json(self) -> dict[str, Any]:
        """The names in the order of their numbers, for :meth:`from_json`."""
        return {"kind": "labels", "labels": list(self.names)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelSet:
        """The labels that :meth:`to_json` wrote; ValueError when it is none."""
        return cls(_strings(data, "LabelSet", "labels"))


def _normal(word: str, lowercase: bool) -> str:
    # Lower case first: the lower case of a composed letter may be one that can be composed further.
    return unicodedata.normalize("NFC", word.lower() if lowercase else word)


def _strings(data: Mapping[str, Any], what: str, kind: str) -> list[str]:
    found = data.get(kind)
    if data.get("kind") != kind or not isinstance(found, list) or not all(isinstance(s, str) for s in found):
        raise ValueError(
            f"{what}: expected kind {kind!r} and a list of texts under {kind!r}, got kind "
            f"{data.get('kind')!r} and {type(found).__name__}"
        )
    return found
