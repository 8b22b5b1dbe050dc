"""Texts to character numbers: lower-cased characters with an is-upper flag."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xferkit.models.inputs import TokenSequences

__all__ = ["CharVocabulary"]

_UNKNOWN = 1


class CharVocabulary:
    """The characters of a set of texts, lower-cased; rarer ones share one number.

    The case of a letter is kept beside it as a flag, so that a model can use it without learning every
    letter twice. Numbers: 0 padding, 1 unknown, from 2 on the characters in the order of their code points.

    Args:
        texts: the texts whose characters are counted.
        min_count: characters seen fewer times become the unknown character, which so gets trained as well.
    """

    def __init__(self, texts: Iterable[str], *, min_count: int = 5) -> None:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_fold(char) for char in unicodedata.normalize("NFC", text))
        self._set(sorted(char for char, count in counts.items() if count >= min_count))

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], *, min_count: int = 5) -> CharVocabulary:
        """The vocabulary of texts that come ``counts[text]`` times each, as words do."""
        chars: Counter[str] = Counter()
        for text, count in counts.items():
            for char in unicodedata.normalize("NFC", text):
                chars[_fold(char)] += count
        vocabulary = cls(())
        vocabulary._set(sorted(char for char, count in chars.items() if count >= min_count))
        return vocabulary

    def __len__(self) -> int:
        """Number of embeddings needed: padding, unknown, and the characters."""
        return _UNKNOWN + 1 + len(self._number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharVocabulary) and self._number == other._number

    def __hash__(self) -> int:
        return hash(tuple(self._number))

    def numbers(
        self, text: str, *, lowercase: bool = False, max_length: int | None = 48
    ) -> tuple[list[int], list[int]]:
        """Numbers and is-upper flags of one text, cut after ``max_length`` characters (None: never).

        Args:
            text: the text.
            lowercase: drop the case: every flag is 0.
            max_length: the cut.
        """
        chars = unicodedata.normalize("NFC", text)[:max_length]
        folded = [_fold(char) for char in chars]
        flags = [0 if lowercase else int(a != b) for a, b in zip(folded, chars, strict=True)]
        return [self._number.get(char, _UNKNOWN) for char in folded], flags

    def encode(
        self, texts: Sequence[str], *, lowercase: bool = False, max_length: int = 48
    ) -> TokenSequences:
        """Numbers and is-upper flags of ``texts``, cut after ``max_length`` characters.

        Args:
            texts: the texts; each must have at least one character.
            lowercase: drop the case, as a control: every flag is 0.
            max_length: the cut.

        Raises:
            ValueError: for an empty text.
        """
        ids, flags = [], []
        for text in texts:
            row, upper = self.numbers(text, lowercase=lowercase, max_length=max_length)
            ids.append(row)
            flags.append(upper)
        return TokenSequences.from_lists(ids, flags)

    def to_json(self) -> dict[str, Any]:
        """The characters in the order of their numbers, for :meth:`from_json`."""
        return {"kind": "characters", "characters": "".join(self._number)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CharVocabulary:
        """The vocabulary that :meth:`to_json` wrote.

        Raises:
            ValueError: when it is not one.
        """
        chars = data.get("characters")
        if data.get("kind") != "characters" or not isinstance(chars, str) or len(set(chars)) != len(chars):
            raise ValueError(
                "CharVocabulary: expected kind 'characters' and a text of different characters, got "
                f"kind {data.get('kind')!r} and characters of type {type(chars).__name__}"
            )
        vocabulary = cls(())
        vocabulary._set(chars)
        return vocabulary

    def _set(self, chars: Iterable[str]) -> None:
        self._number = {char: _UNKNOWN + 1 + i for i, char in enumerate(chars)}


def _fold(char: str) -> str:
    # Some characters lower-case to two (the Turkish dotted capital I); the first keeps rows aligned.
    return char.lower()[:1] or char
