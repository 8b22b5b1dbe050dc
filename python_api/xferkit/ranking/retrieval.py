"""Ranks of the right answers among all keys, without the matrix of similarities."""

from __future__ import annotations

import torch
from torch import Tensor

import xfercore

__all__ = ["retrieval_ranks"]


@torch.no_grad()
def retrieval_ranks(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None = None,
    *,
    normalize: bool = False,
    workspace_bytes: int | None = None,
) -> Tensor:
    """The rank of each query's own key among all keys by inner product, in blocks, without the whole matrix.

    Args:
        queries: ``[num_queries, dim]``.
        keys: ``[num_keys, dim]``, same dtype.
        targets: int64 ``[num_queries]``, the right keys; None: key i is that of query i.
        normalize: by cosine.
        workspace_bytes: memory for a block of similarities.

    Returns:
        int64 ``[num_queries]``: 1 + the number of other keys that are at least as similar. Ties count against the right
        answer, or embeddings that are all alike would score 100 %.

    Raises:
        ValueError: as :func:`xfercore.inbatch_softmax_loss`.
    """
    found = xfercore.inbatch_softmax_loss(
        queries.detach(),
        keys.detach(),
        targets=targets,
        normalize=normalize,
        reduction="sum",
        workspace_bytes=workspace_bytes,
        return_stats=True,
    )
    ranks: Tensor = found.rank  # type: ignore[union-attr]
    return ranks
