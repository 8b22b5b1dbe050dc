"""Texts to character numbers: lower-cased characters with an is-upper flag."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from xferkit.models.inputs import TokenSequences

__all__ = ["CharVocabulary"]

_UNKNOWN = 1


class CharVocabulary:
    """The characters of a set of texts, lower-cased; rarer ones share one number.

    The case of a letter is kept beside it as a flag, so that a model can use it without learning every
    letter twice.

    Args:
        texts: the texts whose characters are counted.
        min_count: characters seen fewer times become the unknown character, which so gets trained as well.
    """

    def __init__(self, texts: Iterable[str], *, min_count: int = 5) -> None:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_fold(char) for char in unicodedata.normalize("NFC", text))
        kept = sorted(char for char, count in counts.items() if count >= min_count)
        self._number = {char: _UNKNOWN + 1 + i for i, char in enumerate(kept)}

    def __len__(self) -> int:
        """Number of embeddings needed: padding, unknown, and the characters."""
        return _UNKNOWN + 1 + len(self._number)

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
            chars = unicodedata.normalize("NFC", text)[:max_length]
            ids.append([self._number.get(_fold(char), _UNKNOWN) for char in chars])
            flags.append([0 if lowercase else int(_fold(char) != char) for char in chars])
        return TokenSequences.from_lists(ids, flags)


def _fold(char: str) -> str:
    # Some characters lower-case to two (the Turkish dotted capital I); the first keeps rows aligned.
    return char.lower()[:1] or char
