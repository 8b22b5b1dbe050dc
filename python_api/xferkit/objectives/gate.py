"""The gate loss: a mixture's gate is taught to name the source language of its input."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from xferkit.objectives.domains import sum_of_domain_means

__all__ = ["gate_nll"]


def gate_nll(
    gate_logits: Tensor, domains: Tensor, *, mask: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """J_G = sum over source languages of the mean cross-entropy of the gate (Chen et al., ACL 2019, Eq. 5).

    Args:
        gate_logits: ``float[num_items, num_experts]`` or, for a gate per token,
            ``[num_items, length, num_experts]``; expert k belongs to source language k.
        domains: ``int64[num_items]``, the source language of each item, -1 to leave an item out.
        mask: ``bool[num_items, length]``, True on real tokens; only with a gate per token.
        counts: ``float[num_experts]``, texts (tokens with a gate per token) of each language to divide by, see
            :func:`sum_of_domain_means`.

    Returns:
        A scalar.

    Raises:
        ValueError: when shapes do not agree.
    """
    num_experts = gate_logits.shape[-1]
    if domains.shape != gate_logits.shape[:1]:
        raise ValueError(
            f"gate_nll: domains must have shape [{gate_logits.shape[0]}], got {list(domains.shape)}"
        )
    if gate_logits.dim() == 3:
        domains = domains.unsqueeze(1).expand(gate_logits.shape[:2])
        if mask is not None:
            domains = domains.masked_fill(~mask, -1)
    elif mask is not None:
        raise ValueError("gate_nll: mask goes with gate logits per token [n, length, num_experts]")
    domains = domains.reshape(-1)
    # Padding gets expert 0 here and no weight in the reduction.
    losses = cross_entropy(gate_logits.reshape(-1, num_experts), domains.clamp(min=0), reduction="none")
    return sum_of_domain_means(losses, domains, num_experts, counts=counts)
