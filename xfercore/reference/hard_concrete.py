"""``hard_concrete`` and ``hard_concrete_eval`` in plain PyTorch: the definition and the oracle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xfercore.reference.philox import counter_words, draw_seed_offset

__all__ = ["hard_concrete", "hard_concrete_eval", "hard_concrete_uniform"]


def hard_concrete_uniform(seed_offset: Tensor, count: int) -> Tensor:
    """``float32[count]`` in (0, 1): u_i = (k + 0.5) 2^-23, k the high 23 bits of word i % 4 of Philox counter i // 4.

    24 bits would round to 1; with 23, u and 1 - u are exact in float32.
    """
    words = counter_words(seed_offset, torch.arange((count + 3) // 4, device=seed_offset.device))
    bits = torch.stack(words, dim=-1).flatten()[:count]
    return ((bits >> 9) * 2 + 1).to(torch.float32) * 2.0**-24


def hard_concrete(
    log_alpha: Tensor,
    theta: Tensor | None = None,
    *,
    beta: float = 2 / 3,
    gamma: float = -0.1,
    zeta: float = 1.1,
    seed_offset: Tensor | torch.Generator | None = None,
    group_dims: tuple[int, ...] | None = None,
    count: str = "elements",
) -> tuple[Tensor, Tensor]:
    """See :func:`xfercore.hard_concrete`."""
    if not isinstance(seed_offset, Tensor):
        seed_offset = draw_seed_offset(log_alpha.device, seed_offset)
    compute = torch.promote_types(log_alpha.dtype, torch.float32)
    logits = log_alpha.to(compute)
    u = hard_concrete_uniform(seed_offset, log_alpha.numel()).to(compute).view(log_alpha.shape)
    s = torch.sigmoid((u.log() - (1 - u).log() + logits) / beta)
    kept = torch.sigmoid(logits - beta * math.log(-gamma / zeta))
    size = 1
    if theta is not None and count == "elements" and log_alpha.numel():
        size = theta.numel() // log_alpha.numel()
    return _apply(log_alpha, theta, s, gamma, zeta, group_dims), kept.sum() * size


def hard_concrete_eval(
    log_alpha: Tensor,
    theta: Tensor | None = None,
    *,
    gamma: float = -0.1,
    zeta: float = 1.1,
    group_dims: tuple[int, ...] | None = None,
) -> Tensor:
    """See :func:`xfercore.hard_concrete_eval`."""
    s = torch.sigmoid(log_alpha.to(torch.promote_types(log_alpha.dtype, torch.float32)))
    return _apply(log_alpha, theta, s, gamma, zeta, group_dims)


def _apply(
    log_alpha: Tensor,
    theta: Tensor | None,
    s: Tensor,
    gamma: float,
    zeta: float,
    group_dims: tuple[int, ...] | None,
) -> Tensor:
    stretched = s * (zeta - gamma) + gamma
    # Not clamp: its derivative is 1 on the bounds themselves, and the gate's is 0 there.
    inside = (stretched > 0) & (stretched < 1)
    z = torch.where(inside, stretched, (stretched >= 1).to(stretched.dtype))
    z = torch.where(stretched.isnan(), stretched, z)
    if theta is None:
        return z.to(log_alpha.dtype)
    grouped = sorted(dim % theta.dim() for dim in group_dims or ())
    z = z.reshape([1 if dim in grouped else size for dim, size in enumerate(theta.shape)])
    return (theta.to(z.dtype) * z).to(theta.dtype)
