"""Precision at N and mean reciprocal rank, from the ranks of the right answers: 1, 2, ... of shape ``[num_queries]``.

:func:`xferkit.ranking.retrieval_ranks` counts them, with ties against the right answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["mean_reciprocal_rank", "precision_at"]


def precision_at(ranks: ArrayLike, n: int = 1) -> float:
    r"""The share of queries whose right answer is among the first n, :math:`\frac1B \sum_i [\mathrm{rank}_i \le n]`.

    Args:
        ranks: ``[num_queries]``, from 1 on.
        n: 1 or more.

    Raises:
        ValueError: for no ranks, a rank below 1 or an n below 1.
    """
    if n < 1:
        raise ValueError(f"precision_at: n must be 1 or more, got {n}")
    return float((_checked("precision_at", ranks) <= n).mean())


def mean_reciprocal_rank(ranks: ArrayLike) -> float:
    r""":math:`\frac1B \sum_i 1 / \mathrm{rank}_i`.

    Args:
        ranks: ``[num_queries]``, from 1 on.

    Raises:
        ValueError: for no ranks, or a rank below 1.
    """
    return float((1.0 / _checked("mean_reciprocal_rank", ranks)).mean())


def _checked(name: str, ranks: ArrayLike) -> NDArray[Any]:
    values = np.asarray(ranks.cpu() if hasattr(ranks, "cpu") else ranks)  # a tensor on a GPU comes over first
    if values.size == 0:
        raise ValueError(f"{name}: ranks is empty, expected one rank a query")
    if (values < 1).any():
        raise ValueError(f"{name}: ranks start at 1, got {values.min()}")
    return values
