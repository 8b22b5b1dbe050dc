"""``moe_mlp_mix`` in plain PyTorch, laid out as eager PyTorch runs it fastest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from xfercore.reference.philox import dropout_mask

__all__ = ["moe_mlp_mix"]

_ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softmax": lambda z: torch.softmax(z, dim=-1),
    "log_softmax": lambda z: torch.log_softmax(z, dim=-1),
}


def _dropout(values: Tensor, seed_offset: Tensor, stream: int, p: float) -> Tensor:
    """Inverted dropout of ``values[num_tokens, num_experts, units]``, a mask of its own per element."""
    tokens, experts, units = values.shape
    keep = dropout_mask(seed_offset, tokens * experts, units, stream, p)
    return values * (keep.view(tokens, experts, units).to(values.dtype) / (1.0 - p))


def moe_mlp_mix(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    act1: str = "relu",
    act2: str = "tanh",
    mix: str = "sum",
    dropout_p: float = 0.0,
    seed_offset: Tensor | None = None,
    detach_gate_input: bool = False,
    recompute: str = "auto",
) -> tuple[Tensor, Tensor]:
    """See :func:`xfercore.moe_mlp_mix`."""
    del recompute  # a matter of memory only
    num_experts, hidden_dim, _ = w1.shape
    out_dim = w2.shape[1]
    tokens = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)  # reshape(-1, 0) is ambiguous
    gate_input = tokens.detach() if detach_gate_input else tokens
    gate_logits = linear(gate_input, gate_weight, gate_bias)
    if dropout_p > 0.0:
        if seed_offset is None:
            seed_offset = torch.randint(2**62, (2,), device=x.device)
        per_expert = tokens.unsqueeze(1).expand(-1, num_experts, -1)
        per_expert = _dropout(per_expert, seed_offset, 0, dropout_p).transpose(0, 1)
        hidden = torch.baddbmm(b1.unsqueeze(1), per_expert, w1.transpose(1, 2))
        hidden = _ACTIVATIONS[act1](hidden).transpose(0, 1)
        hidden = _dropout(hidden, seed_offset, 1, dropout_p)
    else:
        hidden = linear(tokens, w1.flatten(0, 1), b1.flatten())
        hidden = _ACTIVATIONS[act1](hidden).view(tokens.shape[0], num_experts, hidden_dim)
    z = torch.baddbmm(b2.unsqueeze(1), hidden.transpose(0, 1), w2.transpose(1, 2))
    compute = torch.promote_types(x.dtype, torch.float32)  # softmax and mix never run below float32
    y = _ACTIVATIONS[act2](z.to(compute))  # [num_experts, num_tokens, out_dim]
    log_alpha = torch.log_softmax(gate_logits.to(compute), dim=-1).t().unsqueeze(-1)
    out = torch.logsumexp(log_alpha + y, dim=0) if mix == "logsumexp" else (log_alpha.exp() * y).sum(0)
    out = out.to(x.dtype)
    return out.reshape(*x.shape[:-1], out_dim), gate_logits.reshape(*x.shape[:-1], num_experts)
