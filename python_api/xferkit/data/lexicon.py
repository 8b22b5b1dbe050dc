"""The distinct words of texts, each looked up and spelled once, and texts as numbers of such words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xferkit.data.ragged import Ragged
from xferkit.data.vocabulary import WordVocabulary
from xferkit.models.characters import CharVocabulary
from xferkit.models.inputs import Spellings, TokenSequences

__all__ = ["EncodedTexts", "EncodedTokens", "Lexicon"]


class Lexicon:
    """Every distinct word met so far as a *type*: its number among the words, its case and its characters.

    Texts are kept as numbers of types, four bytes a token, and what a model reads of them is put together in
    the batch. A word met after the vocabularies were made becomes a type too: unknown as a word, spelled all
    the same. The lexicon grows with every new word and forgets none; whoever reads texts without end makes a
    new one from time to time, which costs as much as the words it meets again.

    Args:
        words: numbers of the words.
        chars: numbers of their characters.
        max_chars: characters of a word that are read.
        prefix: put before every word when its number is looked up, such as ``"de:"``, where the words of
            several languages have embeddings of their own in one vocabulary.

    Raises:
        ValueError: when ``max_chars`` is below 1.
    """

    def __init__(
        self, words: WordVocabulary, chars: CharVocabulary, *, max_chars: int = 32, prefix: str = ""
    ) -> None:
        if max_chars < 1:
            raise ValueError(f"Lexicon: max_chars must be at least 1, got {max_chars}")
        self.words, self.chars, self.max_chars, self.prefix = words, chars, max_chars, prefix
        self._types = _Types(self._add)
        self._numbers = _Growing(np.int32)
        self._upper = _Growing(np.int8)
        self._codes = _Growing(np.int32)
        self._offsets = _Growing(np.int64)
        self._offsets.extend([0])

    def __len__(self) -> int:
        """Number of types."""
        return len(self._types)

    def types(self, words: Sequence[str]) -> list[int]:
        """The type of each word; words not met before become types.

        Raises:
            ValueError: for an empty word.
        """
        return list(map(self._types.__getitem__, words))

    def numbers(self, types: Tensor) -> Tensor:
        """``int64``, the number of each type (``int64[...]``) among the words; 1 is unknown."""
        return self._numbers.view()[types].to(torch.int64)

    def upper(self, types: Tensor) -> Tensor:
        """``int64``, 1 for each type that begins with an upper-case letter, else 0."""
        return self._upper.view()[types].to(torch.int64)

    def spell(self, types: Tensor) -> TokenSequences:
        """The characters of the types (``int64[m]``) with their is-upper flags."""
        codes, lengths, mask = Ragged(self._codes.view(), self._offsets.view()).rows(types)
        return _decoded(codes, lengths, mask)

    def to_json(self) -> dict[str, Any]:
        """The vocabularies and settings, without the words met, for :meth:`from_json`."""
        return {
            "kind": "lexicon",
            "words": self.words.to_json(),
            "chars": self.chars.to_json(),
            "max_chars": self.max_chars,
            "prefix": self.prefix,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Lexicon:
        """A new lexicon as :meth:`to_json` wrote it; ValueError when it is none."""
        parts = [data.get(key) for key in ("kind", "words", "chars", "max_chars", "prefix")]
        kind, words, chars, max_chars, prefix = parts
        if (
            kind != "lexicon"
            or not (isinstance(words, dict) and isinstance(chars, dict))
            or not (isinstance(max_chars, int) and isinstance(prefix, str))
        ):
            raise ValueError(
                "Lexicon: expected kind 'lexicon' with words, chars, max_chars and prefix, got "
                f"kind {kind!r} and the keys {sorted(data)}"
            )
        return cls(
            WordVocabulary.from_json(words),
            CharVocabulary.from_json(chars),
            max_chars=max_chars,
            prefix=prefix,
        )

    def _add(self, word: str) -> int:
        ids, flags = self.chars.numbers(word, max_length=self.max_chars)
        if not ids:
            raise ValueError("a word is empty")
        self._codes.extend([2 * number + flag for number, flag in zip(ids, flags, strict=True)])
        self._offsets.extend([self._codes.size])
        self._upper.extend(flags[:1])
        self._numbers.extend([self.words.number(self.prefix + word)])
        return self._numbers.size - 1


class EncodedTexts:
    """Texts as numbers of the types of a :class:`Lexicon`; batches hold words, case and spellings.

    In a batch ``ids`` are numbers of words, ``flags`` say which words begin with an upper-case letter and
    ``spellings`` hold the characters of the batch's distinct words.

    Args:
        types: for each text the types of its tokens, at least one.
        lexicon: what the types are.
    """

    def __init__(self, types: Ragged, lexicon: Lexicon) -> None:
        self.types, self.lexicon = types, lexicon

    def __len__(self) -> int:
        return len(self.types)

    @property
    def lengths(self) -> Tensor:
        """``int64[n]``, tokens of each text."""
        return self.types.lengths

    def select(self, index: Tensor) -> TokenSequences:
        """The texts ``index`` (``int64[m]``), padded to the longest of them."""
        values, lengths, mask = self.types.rows(index)
        distinct, place = torch.unique(values[mask].to(torch.int64), return_inverse=True)
        rows = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter_(mask, place)
        spellings = Spellings(self.lexicon.spell(distinct), rows)
        if not len(distinct):
            return TokenSequences(rows, lengths, rows.clone(), spellings)
        ids = self.lexicon.numbers(distinct)[rows].mul_(mask)
        return TokenSequences(ids, lengths, self.lexicon.upper(distinct)[rows].mul_(mask), spellings)

    @staticmethod
    def concat(parts: Sequence[EncodedTexts]) -> EncodedTexts:
        """The texts of all parts.

        Raises:
            ValueError: when they do not share one lexicon.
        """
        lexicon = parts[0].lexicon
        if any(part.lexicon is not lexicon for part in parts):
            raise ValueError("EncodedTexts.concat: all parts must share one lexicon")
        return EncodedTexts(Ragged.concat([part.types for part in parts]), lexicon)


class EncodedTokens:
    """Texts as sequences of characters with case, or of the pieces of a tokenizer; batches have no spellings.

    Args:
        codes: for each text ``2 * number + flag`` of its tokens, at least one.
        with_flags: whether the flags mean anything; without, batches have none.
    """

    def __init__(self, codes: Ragged, *, with_flags: bool) -> None:
        self.codes, self.with_flags = codes, with_flags

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def lengths(self) -> Tensor:
        """``int64[n]``, tokens of each text."""
        return self.codes.lengths

    def select(self, index: Tensor) -> TokenSequences:
        """The texts ``index`` (``int64[m]``), padded to the longest of them."""
        batch = _decoded(*self.codes.rows(index))
        return batch if self.with_flags else TokenSequences(batch.ids, batch.lengths)

    @staticmethod
    def concat(parts: Sequence[EncodedTokens]) -> EncodedTokens:
        """The texts of all parts.

        Raises:
            ValueError: when only some have flags.
        """
        if len({part.with_flags for part in parts}) > 1:
            raise ValueError("EncodedTokens.concat: either every part has flags or none has")
        return EncodedTokens(Ragged.concat([part.codes for part in parts]), with_flags=parts[0].with_flags)


def _decoded(codes: Tensor, lengths: Tensor, mask: Tensor) -> TokenSequences:
    codes = codes.to(torch.int64).mul_(mask)
    return TokenSequences(codes >> 1, lengths, codes & 1)


class _Types(dict[str, int]):
    """Numbers of words; a missing one is made, so that a row of known words is looked up without a loop."""

    def __init__(self, add: Callable[[str], int]) -> None:
        super().__init__()
        self._add = add

    def __missing__(self, word: str) -> int:
        number = self[word] = self._add(word)
        return number


class _Growing:
    """An array that grows at its end; views taken before stay valid, as nothing written ever changes."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._values = np.empty(16, dtype)
        self.size = 0

    def extend(self, values: Sequence[int]) -> None:
        end = self.size + len(values)
        if end > len(self._values):
            grown = np.empty(max(end, 2 * len(self._values)), self._values.dtype)
            grown[: self.size] = self._values[: self.size]
            self._values = grown
        self._values[self.size : end] = values
        self.size = end

    def view(self) -> Tensor:
        return torch.from_numpy(self._values[: self.size])
