"""The texts of several domains under one numbering, copied together where their kind allows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xferkit.data.lexicon import EncodedTexts, EncodedTokens
from xferkit.data.ragged import RaggedLabels, Texts
from xferkit.models.inputs import TokenSequences

__all__ = ["join_labels", "join_texts"]


def join_texts(parts: Sequence[Texts]) -> Texts:
    """All texts of ``parts``, numbered through; a batch of them is made at once where they are of one kind."""
    if len(parts) == 1:
        return parts[0]
    padded = [part for part in parts if isinstance(part, TokenSequences)]
    if len(padded) == len(parts):
        return TokenSequences.concat(padded)
    words = [part for part in parts if isinstance(part, EncodedTexts)]
    if len(words) == len(parts) and all(part.lexicon is words[0].lexicon for part in words):
        return EncodedTexts.concat(words)
    tokens = [part for part in parts if isinstance(part, EncodedTokens)]
    if len(tokens) == len(parts) and len({part.with_flags for part in tokens}) == 1:
        return EncodedTokens.concat(tokens)
    return _Joined(parts)


def join_labels(parts: Sequence[Tensor | RaggedLabels | None]) -> Tensor | RaggedLabels | None:
    """The labels of all texts in the same order; all of one kind, or all None.

    Raises:
        ValueError: when some parts label texts and others tokens.
    """
    labels = [
        RaggedLabels.from_padded(part) if isinstance(part, Tensor) and part.dim() == 2 else part
        for part in parts
    ]
    ragged = [part for part in labels if isinstance(part, RaggedLabels)]
    whole = [part for part in labels if isinstance(part, Tensor)]
    if ragged and whole:
        raise ValueError("labels must be of texts in every language or of tokens in every language")
    if ragged:
        return RaggedLabels.concat(ragged)
    return torch.cat(whole) if whole else None


class _Joined:
    """Texts of kinds that only meet in the padded batch."""

    def __init__(self, parts: Sequence[Texts]) -> None:
        self._parts = parts
        self._bounds = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        self.lengths = torch.cat([part.lengths for part in parts])

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, index: Tensor) -> TokenSequences:
        owner = torch.bucketize(index, self._bounds[1:], right=True)
        batches, places = [], []
        for number, part in enumerate(self._parts):
            place = (owner == number).nonzero().squeeze(1)
            if len(place):
                batches.append(part.select(index[place] - self._bounds[number]))
                places.append(place)
        if len(batches) == 1:
            return batches[0]
        return TokenSequences.concat(batches).select(torch.cat(places).argsort())
