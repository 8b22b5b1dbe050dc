"""What every text encoder reads: padded sequences of token numbers, with flags and spellings where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Spellings", "TokenSequences"]


@dataclass(frozen=True)
class TokenSequences:
    """A padded batch of sequences of characters or words.

    Attributes:
        ids: ``int64[num_items, length]``; 0 is padding and stands only at the end of a row, 1 is the unknown
            token where there is a vocabulary.
        lengths: ``int64[num_items]``, each at least 1.
        flags: ``int64[num_items, length]`` or None, a second small feature per token (is upper case).
        spellings: the characters of the tokens, or None.
    """

    ids: Tensor
    lengths: Tensor
    flags: Tensor | None = None
    spellings: Spellings | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def mask(self) -> Tensor:
        """``bool[num_items, length]``, True on real tokens."""
        return self.ids != 0

    def select(self, index: Tensor) -> TokenSequences:
        """The rows ``index`` (``int64[m]``), cut to the longest of them, with the words that stand in them."""
        lengths = self.lengths[index]
        width = int(lengths.max()) if len(lengths) else 0
        ids = self.ids[:, :width][index]
        flags = None if self.flags is None else self.flags[:, :width][index]
        spellings = None if self.spellings is None else self.spellings._select(index, ids != 0)
        return TokenSequences(ids, lengths, flags, spellings)

    def to(self, device: torch.device | str) -> TokenSequences:
        """The same batch on ``device``."""
        flags = None if self.flags is None else self.flags.to(device)
        spellings = None if self.spellings is None else self.spellings.to(device)
        return TokenSequences(self.ids.to(device), self.lengths.to(device), flags, spellings)

    @staticmethod
    def from_lists(
        ids: Sequence[Sequence[int]], flags: Sequence[Sequence[int]] | None = None
    ) -> TokenSequences:
        """Pad rows of token numbers (each >= 1).

        Raises:
            ValueError: for an empty row, a number below 1, or flags of another length than their row.
        """
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
        if len(ids) and int(lengths.min()) == 0:
            raise ValueError(
                f"TokenSequences: row {int(lengths.argmin())} is empty, expected at least 1 token"
            )
        if flags is not None and [len(row) for row in flags] != lengths.tolist():
            raise ValueError("TokenSequences: flags must have one entry per token of each row")
        width = int(lengths.max()) if len(ids) else 0

        def padded(rows: Sequence[Sequence[int]]) -> Tensor:
            equal = [list(row) + [0] * (width - len(row)) for row in rows]
            return torch.tensor(equal, dtype=torch.int64).reshape(len(rows), width)

        padded_ids = padded(ids)
        if bool((padded_ids.ne(0).sum(1) != lengths).any()) or bool((padded_ids < 0).any()):
            raise ValueError("TokenSequences: token numbers must be at least 1 (0 is padding)")
        return TokenSequences(padded_ids, lengths, None if flags is None else padded(flags))

    @staticmethod
    def concat(parts: Sequence[TokenSequences]) -> TokenSequences:
        """All rows of ``parts``, padded to the longest; flags and spellings are kept when every part has them.

        Raises:
            ValueError: when only some parts have flags, or only some have spellings.
        """
        flags = [part.flags for part in parts if part.flags is not None]
        spellings = [part.spellings for part in parts if part.spellings is not None]
        for name, found in (("flags", len(flags)), ("spellings", len(spellings))):
            if found not in (0, len(parts)):
                raise ValueError(f"TokenSequences.concat: either every part has {name} or none has")
        return TokenSequences(
            _join([part.ids for part in parts]),
            torch.cat([part.lengths for part in parts]),
            _join(flags) if flags else None,
            Spellings._concat(spellings, [part.mask for part in parts]) if spellings else None,
        )


@dataclass(frozen=True)
class Spellings:
    """The characters of a batch's words, each distinct word once however often it stands in the batch.

    Attributes:
        chars: ``num_words`` words as sequences of characters with is-upper flags.
        index: ``int64[num_items, length]``, for each token the row of its word in ``chars``; 0 on padding,
            which only the token numbers beside it tell from the first word.
    """

    chars: TokenSequences
    index: Tensor

    def to(self, device: torch.device | str) -> Spellings:
        """The same words on ``device``."""
        return Spellings(self.chars.to(device), self.index.to(device))

    def _select(self, rows: Tensor, mask: Tensor) -> Spellings:
        index = self.index[:, : mask.shape[1]][rows]
        words, place = torch.unique(index[mask], return_inverse=True)
        index = torch.zeros_like(index).masked_scatter_(mask, place)
        return Spellings(self.chars.select(words), index)

    @staticmethod
    def _concat(parts: Sequence[Spellings], masks: Sequence[Tensor]) -> Spellings:
        # A word of two parts keeps two rows: finding it would cost more than computing it twice.
        indices, offset = [], 0
        for part, mask in zip(parts, masks, strict=True):
            indices.append((part.index + offset) * mask)
            offset += len(part.chars)
        return Spellings(TokenSequences.concat([part.chars for part in parts]), _join(indices))


def _join(tensors: Sequence[Tensor]) -> Tensor:
    width = max((tensor.shape[1] for tensor in tensors), default=0)
    return torch.cat([pad(tensor, (0, width - tensor.shape[1])) for tensor in tensors])
