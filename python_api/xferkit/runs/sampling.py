"""Which rows of a training file become development data: one of each stretch, where a seed says."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xferkit.data.lexicon import EncodedTexts, EncodedTokens
from xferkit.data.ragged import Ragged, RaggedLabels, Texts
from xferkit.data.seeding import derive_seed

__all__ = ["HeldOut", "labels_where", "texts_where"]


class HeldOut:
    """A share of the rows of a file, told row by row, without knowing how many there are.

    The file is cut into stretches of 1 / share rows; one row of each is held out, so that the share is met within
    one row wherever the file ends, and every part of a sorted file is there.

    Args:
        share: between 0 and 1.
        seed: decides the places.
        name: mixed into the seed; the language.
    """

    def __init__(self, share: float, seed: int, name: str) -> None:
        self.share, self._seed, self._name = share, seed, name
        self._first, self._last, self._place = 0, 0, -1  # of the stretch looked at last

    def __contains__(self, row: int) -> bool:
        """Whether row `row`, counted from 0, is held out."""
        if not self._first <= row < self._last:
            stretch = int(row * self.share)
            while self._edge(stretch + 1) <= row:  # rounding may put a row just over the edge
                stretch += 1
            while self._edge(stretch) > row:
                stretch -= 1
            fraction = derive_seed(self._seed, "dev", self._name, str(stretch)) / 2**63
            self._first, self._last = self._edge(stretch), self._edge(stretch + 1)
            self._place = self._first + int(fraction * (self._last - self._first))
        return row == self._place

    def _edge(self, stretch: int) -> int:
        """First row of a stretch."""
        return math.ceil(stretch / self.share - 1e-9)


def texts_where(texts: Texts, keep: Tensor) -> Texts:
    """The texts whose place in ``keep`` (``bool[n]``) is True, as texts of the same kind.

    Raises:
        TypeError: texts of another kind than the encodings give.
    """
    if isinstance(texts, EncodedTexts):
        return EncodedTexts(_rows_where(texts.types, keep), texts.lexicon)
    if isinstance(texts, EncodedTokens):
        return EncodedTokens(_rows_where(texts.codes, keep), with_flags=texts.with_flags)
    raise TypeError(f"texts_where: expected encoded texts, got {type(texts).__name__}")


def labels_where(labels: Tensor | RaggedLabels, keep: Tensor) -> Tensor | RaggedLabels:
    """The labels of the texts whose place in ``keep`` (``bool[n]``) is True."""
    if isinstance(labels, Tensor):
        return labels[keep]
    rows = _rows_where(Ragged(labels.flat, labels.offsets), keep)
    return RaggedLabels(rows.flat, rows.offsets)


def _rows_where(rows: Ragged, keep: Tensor) -> Ragged:
    lengths = rows.lengths
    offsets = torch.zeros(int(keep.sum()) + 1, dtype=torch.int64)
    torch.cumsum(lengths[keep], 0, out=offsets[1:])
    return Ragged(rows.flat[keep.repeat_interleave(lengths)], offsets)
