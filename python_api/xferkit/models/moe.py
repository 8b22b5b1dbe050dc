"""A dense mixture of experts, one expert per source language, on the fused op ``moe_mlp_mix``."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot, pad

from xferkit.models.ops import OpsName, resolve_ops

__all__ = ["Bags", "MixtureOfExperts", "MixtureOutput"]

Activation = Literal["none", "relu", "tanh", "softmax", "log_softmax"]


class Bags(NamedTuple):
    """Which rows share one gate: rows of one bag are mixed with the same weights.

    Attributes:
        members: ``int64[...]``, the bag of each row; -1 (padding) counts in no bag's mean.
        num_bags: number of bags.
        logits: ``float[num_bags, num_experts]``, given logits in place of the rows' own mean, or None.
    """

    members: Tensor
    num_bags: int
    logits: Tensor | None = None


class MixtureOutput(NamedTuple):
    """What :class:`MixtureOfExperts` returns.

    Attributes:
        features: ``float[..., out_dim]``.
        gate_logits: ``float[..., num_experts]``, of each row by itself, bags or not.
        bag_logits: ``float[num_bags, num_experts]``, the logits the bags were mixed with; None without bags.
    """

    features: Tensor
    gate_logits: Tensor
    bag_logits: Tensor | None


class MixtureOfExperts(nn.Module):
    """``sum_k softmax(G x + g)_k * expert_k(x)``, every expert a two-layer perceptron.

    Chen et al., ACL 2019, section 2.2: the private features (``act2='tanh'``) and the expert predictor
    (``act2='log_softmax'`` with ``mix='logsumexp'`` for a mixture of probabilities or ``mix='sum'`` for one
    of log-probabilities). Dropout stands before each layer of an expert, with a mask per row and expert.

    Language-level gate: with :class:`Bags` the weights are ``softmax(bag_scale * mean of G x + g over the
    bag)``, one set for all rows of a bag. It is folded into the same fused op: the bag's one-hot is
    appended to x, where the experts have zero weights and the gate has the bag's logits.

    Args:
        in_dim: size of the input features.
        num_experts: number of experts, one per source language.
        hidden_dim: hidden units of each expert.
        out_dim: size of the output.
        act1: activation of the hidden layer.
        act2: activation of the output layer.
        mix: ``"sum"``, or ``"logsumexp"`` for the logarithm of the mixture of the exponentials.
        dropout: dropout probability inside the experts.
        detach_gate_input: the gate reads a detached input, so that no loss reaches the encoder through it.
        bag_scale: factor on a bag's mean logits.
        ops: ``"fused"`` (``xfercore``) or ``"reference"`` (plain PyTorch, the same numbers).

    Shape:
        ``float[..., in_dim]`` -> :class:`MixtureOutput`.
    """

    def __init__(
        self,
        in_dim: int,
        num_experts: int,
        hidden_dim: int,
        out_dim: int,
        *,
        act1: Activation = "relu",
        act2: Activation = "tanh",
        mix: Literal["sum", "logsumexp"] = "sum",
        dropout: float = 0.5,
        detach_gate_input: bool = True,
        bag_scale: float = 2.0,
        ops: OpsName = "fused",
    ) -> None:
        super().__init__()
        self.out_dim, self.num_experts = out_dim, num_experts
        self.act1, self.act2, self.mix = act1, act2, mix
        self.dropout, self.detach_gate_input, self.bag_scale = dropout, detach_gate_input, bag_scale
        self.ops = ops
        self.gate_weight = nn.Parameter(torch.empty(num_experts, in_dim))
        self.gate_bias = nn.Parameter(torch.empty(num_experts))
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden_dim, in_dim))
        self.b1 = nn.Parameter(torch.empty(num_experts, hidden_dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, out_dim, hidden_dim))
        self.b2 = nn.Parameter(torch.empty(num_experts, out_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each layer of each expert, and the gate, as ``nn.Linear`` starts: uniform in +-1/sqrt(inputs)."""
        for weight, bias in (
            (self.gate_weight, self.gate_bias),
            (self.w1, self.b1),
            (self.w2, self.b2),
        ):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor, bags: Bags | None = None) -> MixtureOutput:
        """Mixed expert outputs and gate logits."""
        dropout_p = self.dropout if self.training else 0.0
        # Drawn here and not by the op, so that fused and reference runs see the same masks.
        seed_offset = torch.randint(2**62, (2,), device=x.device) if dropout_p else None
        if bags is None:
            features, gate_logits = self._mix(
                x, self.gate_weight, self.gate_bias, self.w1, dropout_p, seed_offset
            )
            return MixtureOutput(features, gate_logits, None)
        gate_input = x.detach() if self.detach_gate_input else x
        gate_logits = linear(gate_input, self.gate_weight, self.gate_bias)
        membership = one_hot(bags.members.clamp(min=0), bags.num_bags).to(x.dtype)
        membership = membership * (bags.members >= 0).unsqueeze(-1)
        bag_logits = bags.logits
        if bag_logits is None:
            bag_logits = self.bag_scale * _bag_means(gate_logits, membership)
        features, _ = self._mix(
            torch.cat([x, membership], dim=-1),
            torch.cat([torch.zeros_like(self.gate_weight), bag_logits.t()], dim=1),
            torch.zeros_like(self.gate_bias),
            pad(self.w1, (0, bags.num_bags)),
            dropout_p,
            seed_offset,
        )
        return MixtureOutput(features, gate_logits, bag_logits)

    def _mix(
        self,
        x: Tensor,
        gate_weight: Tensor,
        gate_bias: Tensor,
        w1: Tensor,
        dropout_p: float,
        seed_offset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        features, gate_logits = resolve_ops(self.ops).moe_mlp_mix(
            x,
            gate_weight,
            gate_bias,
            w1,
            self.b1,
            self.w2,
            self.b2,
            act1=self.act1,
            act2=self.act2,
            mix=self.mix,
            dropout_p=dropout_p,
            seed_offset=seed_offset,
            detach_gate_input=self.detach_gate_input,
        )
        return features, gate_logits


def _bag_means(gate_logits: Tensor, membership: Tensor) -> Tensor:
    num_experts, num_bags = gate_logits.shape[-1], membership.shape[-1]
    # Padded rows have no membership, but 0 * nan is nan: a mask on the values costs little.
    member = membership.reshape(-1, num_bags)
    values = gate_logits.reshape(-1, num_experts).masked_fill(member.sum(1, keepdim=True) == 0, 0.0)
    return member.t() @ values / member.sum(0).clamp(min=1).unsqueeze(1)
