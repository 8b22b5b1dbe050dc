"""Attention pooling: a sequence of features to one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DotProductAttention"]


class DotProductAttention(nn.Module):
    """``sum_t softmax_t(w . x_t) x_t`` over real tokens, ``w`` learned (Chen et al., ACL 2019, section 3).

    Args:
        dim: size of the features.
        dropout: dropout on the pooled vector.

    Shape:
        ``float[n, length, dim]`` with ``bool[n, length]`` -> ``float[n, dim]``; every row of the mask needs
        at least one True.
    """

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """The pooled features ``[n, dim]``."""
        scores = (features @ self.weight).masked_fill(~mask, float("-inf"))
        # Padding has weight zero, yet 0 * inf is NaN: its features are cleared as well.
        clean = features.masked_fill(~mask.unsqueeze(-1), 0.0)
        pooled = torch.einsum("nl,nld->nd", torch.softmax(scores, dim=-1), clean)
        dropped: Tensor = self.dropout(pooled)
        return dropped
