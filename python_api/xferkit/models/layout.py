"""Where the real tokens of a padded batch stand: packing, unpacking, and the orders a recurrence walks in."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

__all__ = ["TokenLayout"]


class TokenLayout:
    """The real tokens of n texts, packed text after text, without padding.

    Sentences differ in length, so that half of a padded batch and more can be padding. Whatever works
    token by token works on packed tokens ``[num_tokens, ...]`` instead.

    Args:
        lengths: ``int64[n]``, tokens of each text.
        width: padded length.

    Attributes:
        lengths: as given.
        width: as given.
        mask: ``bool[n, width]``, True on real tokens.
    """

    def __init__(self, lengths: Tensor, width: int) -> None:
        self.lengths, self.width = lengths, width
        self.mask = torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def index(self) -> Tensor:
        """``int64[num_tokens]``, the place of each token in the flattened padded batch."""
        return self.mask.flatten().nonzero().squeeze(1)

    @property
    def num_tokens(self) -> int:
        """Number of real tokens."""
        return len(self.index)

    @cached_property
    def texts(self) -> Tensor:
        """``int64[num_tokens]``, the text of each token."""
        return self.index // max(self.width, 1)

    @cached_property
    def places(self) -> Tensor:
        """``int64[num_tokens]``, the place of each token in its text, from 0."""
        return self.index - self.texts * self.width

    @cached_property
    def starts(self) -> Tensor:
        """``int64[n]``, the first packed token of each text."""
        return self.lengths.cumsum(0) - self.lengths

    def pack(self, padded: Tensor) -> Tensor:
        """``[n, width, ...]`` -> ``[num_tokens, ...]``."""
        return padded.flatten(0, 1).index_select(0, self.index)

    def unpack(self, packed: Tensor) -> Tensor:
        """``[num_tokens, ...]`` -> ``[n, width, ...]``, 0 on padding."""
        flat = packed.new_zeros(len(self) * self.width, *packed.shape[1:])
        return flat.index_copy(0, self.index, packed).unflatten(0, (len(self), self.width))

    def select(self, rows: Tensor) -> tuple[TokenLayout, Tensor]:
        """The layout of the texts ``rows``, of the same width, and their tokens among the packed ones."""
        chosen = TokenLayout(self.lengths[rows], self.width)
        return chosen, self.starts[rows].repeat_interleave(chosen.lengths) + chosen.places

    @cached_property
    def _by_step(self) -> tuple[list[int], Tensor, Tensor, Tensor]:
        # Longest text first: at every step the texts that still have a token are the first ones.
        ordered, rows = torch.sort(self.lengths, descending=True, stable=True)
        longest = int(ordered[0]) if len(ordered) else 0
        alive = ordered.unsqueeze(0) > torch.arange(longest, device=ordered.device).unsqueeze(1)
        step, rank = alive.nonzero(as_tuple=True)
        row = rows[rank]
        first = self.starts[row]
        return alive.sum(1).tolist(), first + step, first + self.lengths[row] - 1 - step, rows

    @property
    def step_sizes(self) -> list[int]:
        """How many texts have a token at each step, falling: the sizes of a recurrence's batches."""
        return self._by_step[0]

    @property
    def forward_order(self) -> Tensor:
        """``int64[num_tokens]``, the packed token that is read at each step of each text, step after step."""
        return self._by_step[1]

    @property
    def backward_order(self) -> Tensor:
        """The same for a recurrence that reads every text from its own last token to the first."""
        return self._by_step[2]

    @property
    def by_length(self) -> Tensor:
        """``int64[n]``, the texts, longest first: the order of the texts within a step."""
        return self._by_step[3]

    @cached_property
    def inverse_orders(self) -> tuple[Tensor, Tensor]:
        """For both orders: where each packed token stands in it."""
        counting = torch.arange(self.num_tokens, device=self.lengths.device)
        found = [torch.empty_like(counting).index_copy_(0, o, counting) for o in self._by_step[1:3]]
        return found[0], found[1]

    def neighbours(self, offset: int) -> Tensor:
        """``int64[num_tokens]``, the packed token ``offset`` places on in the same text, or ``num_tokens``."""
        place = self.places + offset
        inside = (place >= 0) & (place < self.lengths[self.texts])
        here = torch.arange(self.num_tokens, device=self.lengths.device)
        return torch.where(inside, here + offset, self.num_tokens)
