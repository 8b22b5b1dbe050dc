"""What every text encoder reads: padded sequences of token numbers, with an optional flag per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TokenSequences"]


@dataclass(frozen=True)
class TokenSequences:
    """A padded batch of sequences of characters or words.

    Attributes:
        ids: ``int64[num_items, length]``; 0 is padding and stands only at the end of a row.
        lengths: ``int64[num_items]``, each at least 1.
        flags: ``int64[num_items, length]`` or None, a second small feature per token (is upper case).
    """

    ids: Tensor
    lengths: Tensor
    flags: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def mask(self) -> Tensor:
        """``bool[num_items, length]``, True on real tokens."""
        return self.ids != 0

    def select(self, index: Tensor) -> TokenSequences:
        """The rows ``index`` (``int64[m]``), cut to the longest of them."""
        lengths = self.lengths[index]
        width = int(lengths.max()) if len(lengths) else 0
        flags = None if self.flags is None else self.flags[:, :width][index]
        return TokenSequences(self.ids[:, :width][index], lengths, flags)

    def to(self, device: torch.device | str) -> TokenSequences:
        """The same batch on ``device``."""
        flags = None if self.flags is None else self.flags.to(device)
        return TokenSequences(self.ids.to(device), self.lengths.to(device), flags)

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

        def pad(rows: Sequence[Sequence[int]]) -> Tensor:
            padded = [list(row) + [0] * (width - len(row)) for row in rows]
            return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width)

        padded_ids = pad(ids)
        if bool((padded_ids.ne(0).sum(1) != lengths).any()) or bool((padded_ids < 0).any()):
            raise ValueError("TokenSequences: token numbers must be at least 1 (0 is padding)")
        return TokenSequences(padded_ids, lengths, None if flags is None else pad(flags))

    @staticmethod
    def concat(parts: Sequence[TokenSequences]) -> TokenSequences:
        """All rows of ``parts``, padded to the longest; flags are kept when every part has them.

        Raises:
            ValueError: when some parts have flags and others do not.
        """
        with_flags = [part.flags is not None for part in parts]
        if any(with_flags) != all(with_flags):
            raise ValueError("TokenSequences.concat: either every part has flags or none has")
        width = max((part.ids.shape[1] for part in parts), default=0)

        def join(tensors: list[Tensor]) -> Tensor:
            return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in tensors])

        flags = [part.flags for part in parts if part.flags is not None]
        return TokenSequences(
            join([part.ids for part in parts]),
            torch.cat([part.lengths for part in parts]),
            join(flags) if flags else None,
        )
