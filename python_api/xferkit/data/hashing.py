"""Texts to numbers of hash buckets, the same on every machine and in every process.

A word's bucket is the CRC-32 (IEEE 802.3, as :func:`zlib.crc32`) of its UTF-8 bytes modulo the number of buckets, and
so is an n-gram's: no seed, no dependence on ``PYTHONHASHSEED``, byte order or version.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable

import torch

from xferkit.models.hashed_text import HashedEncoderConfig, HashedTexts, HashedWords

__all__ = ["TextHasher", "character_grams", "hash_bucket", "split_words"]

# Letters and digits with the marks that belong to them (vowel signs are no letters to Python); else one sign.
_WORD = re.compile(r"[\w\u0300-\u036f\u0900-\u0dff\u0e00-\u0eff]+|[^\w\s]")
#: Of a longer word, no n-grams are cut from the rest: it is no word but data.
_MAX_WORD = 64


def hash_bucket(text: str, buckets: int) -> int:
    """The bucket of a text, in ``[0, buckets)``."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % buckets


def split_words(text: str, *, lowercase: bool = True, max_words: int | None = None) -> list[str]:
    """Runs of letters and digits, and every other sign by itself, in Unicode form NFC.

    Args:
        text: any text; one of white space alone has no words.
        lowercase: lower-case it first.
        max_words: words that are kept.
    """
    plain = unicodedata.normalize("NFC", text.lower() if lowercase else text)
    return _WORD.findall(plain)[:max_words]


def character_grams(word: str, size: int) -> list[str]:
    """The n-grams of ``<word>``, or ``<word>`` itself where it is shorter than ``size``."""
    marked = f"<{word[:_MAX_WORD]}>"
    return [marked[i : i + size] for i in range(max(1, len(marked) - size + 1))]


class TextHasher:
    """Encodes texts; what a word becomes is worked out once.

    All texts of a call share their words with those of earlier calls, so that a corpus of many files has one
    table of words. :meth:`clear` forgets them.

    Args:
        config: how texts are cut and how many buckets there are.
    """

    def __init__(self, config: HashedEncoderConfig) -> None:
        self.config = config
        self.clear()

    def __len__(self) -> int:
        """Distinct words met."""
        return len(self._numbers)

    def clear(self) -> None:
        """Forget all words."""
        self._numbers: dict[str, int] = {}
        self._buckets: list[int] = []
        self._grams: tuple[list[int], ...] = tuple([] for _ in self.config.gram_sizes)
        self._offsets: tuple[list[int], ...] = tuple([0] for _ in self.config.gram_sizes)

    def number(self, text: str) -> list[int]:
        """The words of a text by their numbers, which count distinct words from 0."""
        config, numbers = self.config, self._numbers
        found = []
        for word in split_words(text, lowercase=config.lowercase, max_words=config.max_words):
            number = numbers.get(word)
            found.append(self._add(word) if number is None else number)
        return found

    def words(self) -> HashedWords:
        """All words met, by their numbers."""
        return HashedWords(
            torch.tensor(self._buckets, dtype=torch.int64),
            tuple(torch.tensor(grams, dtype=torch.int64) for grams in self._grams),
            tuple(torch.tensor(offsets, dtype=torch.int64) for offsets in self._offsets),
        )

    def __call__(self, texts: Iterable[str]) -> HashedTexts:
        """The texts; white space alone makes an empty row."""
        return self.assemble([self.number(text) for text in texts])

    def assemble(self, rows: list[list[int]], words: HashedWords | None = None) -> HashedTexts:
        """Texts whose words :meth:`number` gave.

        Args:
            rows: numbers of the words of each text.
            words: the words, where several sets of texts are to share one table; None: :meth:`words`.
        """
        index = torch.tensor([number for row in rows for number in row], dtype=torch.int64)
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
        return HashedTexts(self.words() if words is None else words, index, offsets)

    def _add(self, word: str) -> int:
        number = self._numbers[word] = len(self._buckets)
        self._buckets.append(hash_bucket(word, self.config.word_buckets))
        for size, grams, offsets in zip(self.config.gram_sizes, self._grams, self._offsets, strict=True):
            grams += [hash_bucket(gram, self.config.gram_buckets) for gram in character_grams(word, size)]
            offsets.append(len(grams))
        return number
