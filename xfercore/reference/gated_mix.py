"""``gated_mix`` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gated_mix"]


def gated_mix(
    logits: Tensor,
    experts: Tensor | Sequence[Tensor],
    *,
    targets: Tensor | None = None,
    ignore_index: int = -1,
) -> tuple[Tensor, Tensor]:
    """See :func:`xfercore.gated_mix`."""
    stacked = experts if isinstance(experts, Tensor) else torch.stack(list(experts), dim=1)
    compute = torch.promote_types(logits.dtype, torch.float32)
    log_alpha = torch.log_softmax(logits.to(compute), dim=-1)
    mixed = torch.einsum("nk,nkd->nd", log_alpha.exp(), stacked.to(compute)).to(stacked.dtype)
    if targets is None:
        return mixed, log_alpha.new_zeros(logits.shape[0])
    ignored = targets == ignore_index
    picked = log_alpha.gather(1, targets.masked_fill(ignored, 0).unsqueeze(1)).squeeze(1)
    return mixed, (-picked).masked_fill(ignored, 0.0)
