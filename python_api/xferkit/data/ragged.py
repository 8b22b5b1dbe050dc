"""Texts and labels of any length without padding: flat numbers and where each row begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xferkit.models.inputs import TokenSequences

__all__ = ["Ragged", "RaggedLabels", "Texts"]


class Texts(Protocol):
    """Texts that batches can be taken from; :class:`~xferkit.models.TokenSequences` is one already padded."""

    def __len__(self) -> int:
        """Number of texts."""
        ...

    @property
    def lengths(self) -> Tensor:
        """``int64[n]``, tokens of each text."""
        ...

    def select(self, index: Tensor, /) -> TokenSequences:
        """The texts ``index`` (``int64[m]``), padded to the longest of them."""
        ...


@dataclass(frozen=True)
class Ragged:
    """n rows of numbers, one after the other.

    Attributes:
        flat: ``int32[total]``, all rows.
        offsets: ``int64[n + 1]``; row i is ``flat[offsets[i]:offsets[i + 1]]``.
    """

    flat: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """``int64[n]``, numbers in each row."""
        return self.offsets.diff()

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows ``index`` side by side.

        Args:
            index: ``int64[m]``.

        Returns:
            Their numbers ``int32[m, length]`` (past the end of a row those of other rows, to be masked),
            their lengths ``int64[m]`` and the mask ``bool[m, length]`` of real ones.
        """
        starts = self.offsets[index]
        lengths = self.offsets[index + 1] - starts
        place = torch.arange(int(lengths.max()) if len(lengths) else 0)
        mask = place < lengths.unsqueeze(1)
        positions = (starts.unsqueeze(1) + place).clamp_(max=max(len(self.flat) - 1, 0))
        return self.flat.index_select(0, positions.view(-1)).view(positions.shape), lengths, mask

    @staticmethod
    def from_lists(rows: Sequence[Sequence[int]]) -> Ragged:
        """Rows of numbers below 2^31."""
        flat = torch.tensor([number for row in rows for number in row], dtype=torch.int32)
        return Ragged(flat, torch.tensor([0, *(len(row) for row in rows)]).cumsum(0))

    @staticmethod
    def concat(parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts."""
        lengths = torch.cat([part.lengths for part in parts])
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        return Ragged(torch.cat([part.flat for part in parts]), offsets)


@dataclass(frozen=True)
class RaggedLabels:
    """Labels of tokens, one row a text.

    Attributes:
        flat: ``int32[total]``, labels of all tokens.
        offsets: ``int64[n + 1]``, where each text begins.
    """

    flat: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """``int64[n]``, labels of each text."""
        return self.offsets.diff()

    def select(self, index: Tensor) -> Tensor:
        """``int64[m, length]``, the labels of the texts ``index`` (``int64[m]``), -1 on padding."""
        values, _, mask = Ragged(self.flat, self.offsets).rows(index)
        return values.to(torch.int64).masked_fill_(~mask, -1)

    @staticmethod
    def from_padded(labels: Tensor) -> RaggedLabels:
        """From ``int64[n, length]`` with -1 on padding, which stands at the end of a row only."""
        mask = labels >= 0
        offsets = torch.zeros(len(labels) + 1, dtype=torch.int64)
        torch.cumsum(mask.sum(1), 0, out=offsets[1:])
        return RaggedLabels(labels[mask].to(torch.int32), offsets)

    @staticmethod
    def concat(parts: Sequence[RaggedLabels]) -> RaggedLabels:
        """The labels of the texts of all parts."""
        joined = Ragged.concat([Ragged(part.flat, part.offsets) for part in parts])
        return RaggedLabels(joined.flat, joined.offsets)
