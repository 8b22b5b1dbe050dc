"""``topk_similarity`` in plain PyTorch: the whole matrix of similarities, sorted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

__all__ = ["topk_similarity"]


def topk_similarity(
    queries: Tensor,
    keys: Tensor,
    k: int,
    *,
    csls: int | None = None,
    normalize: bool = False,
    workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`xfercore.topk_similarity`; ``workspace_bytes`` means nothing here."""
    compute = torch.promote_types(queries.dtype, torch.float32)
    queries, keys = queries.to(compute), keys.to(compute)
    if normalize:
        queries, keys = unit(queries, dim=-1), unit(keys, dim=-1)
    sim = queries @ keys.T
    if csls is not None:
        key_mean = sim.topk(csls, dim=0).values.mean(0)
        query_mean = sim.topk(csls, dim=1).values.mean(1)
        sim = 2 * sim - key_mean - query_mean.unsqueeze(1)
    values, indices = torch.sort(sim, dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()
