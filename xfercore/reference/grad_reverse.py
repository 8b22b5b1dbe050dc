"""``grad_reverse`` in plain PyTorch: the ATen composition that is right under every transform."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grad_reverse"]


def grad_reverse(x: Tensor, lam: float | Tensor = 1.0) -> Tensor:
    """See :func:`xfercore.grad_reverse`. Value x, derivative -lam; NaN where ``x`` is infinite."""
    if isinstance(lam, Tensor):
        lam = lam.detach().to(torch.promote_types(x.dtype, torch.float32))
        lam = lam.reshape(lam.shape + (1,) * (x.dim() - lam.dim()))
    constant = x.detach()
    return constant - (lam * (x - constant)).to(x.dtype)
