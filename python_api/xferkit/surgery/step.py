"""What passes between a step of surgery and the method that decides its coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Solution", "Step"]


@dataclass(frozen=True)
class Step:
    """What a method decides from: t tasks are there, in the order in which they were declared.

    Attributes:
        numbers: their numbers among all T tasks.
        index: the same as ``int64[t]``; None where all are there.
        gram: ``float64[K, t, t]``, without the loss scale.
        losses: ``float64[t]``.
        finite: 0-dim bool, whether all gradients and losses are.
    """

    numbers: tuple[int, ...]
    index: Tensor | None
    gram: Tensor
    losses: Tensor
    finite: Tensor

    def take(self, values: Tensor, *dims: int) -> Tensor:
        """The entries of the tasks that are there, along ``dims``, which run over all tasks."""
        if self.index is not None:
            for dim in dims:
                values = values.index_select(dim, self.index)
        return values

    def keep(self, state: Tensor, values: Tensor, *dims: int) -> None:
        """Write ``values`` where these tasks stand in ``state`` along one or two ``dims``; nothing, if not finite."""
        values = torch.where(self.finite, values, self.take(state, *dims))
        if self.index is None:
            state.copy_(values)
        elif len(dims) == 1:
            state.index_copy_(dims[0], self.index, values)
        else:
            rows = state.index_select(dims[0], self.index).index_copy_(dims[1], self.index, values)
            state.index_copy_(dims[0], self.index, rows)


@dataclass(frozen=True)
class Solution:
    """What a method decided.

    Attributes:
        weights: ``float64[K, t]``.
        cosine: as in :class:`SurgeryInfo`, of methods that go through pairs.
        moved: likewise.
    """

    weights: Tensor
    cosine: Tensor | None = None
    moved: Tensor | None = None
