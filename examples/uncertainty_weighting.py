"""A method in one file: learned weights of the source languages' losses (Kendall et al., CVPR 2018, Eq. 10).

``L = sum_s exp(-w_s) L_s + w_s / 2`` with ``w_s`` learned: sources with noisy labels come to count less.
Register it and every command, trainer option, checkpoint and report works with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from xferkit.methods import ClassifierSpec, NextBatch, Phase, PhaseLoss, Pooled, Stage, register_method
from xferkit.models import TokenSequences
from xferkit.objectives import classification_nll


@dataclass(frozen=True)
class UncertaintyConfig:
    """Settings: the weights' learning rate."""

    weight_learning_rate: float = 0.02


class UncertaintyWeighting:
    """Pooling whose sources' losses get learned weights, by an optimiser of their own."""

    replicable = True  # no loss crosses the texts of a batch: it can be cut over processes

    def __init__(self, spec: ClassifierSpec, config: UncertaintyConfig | None = None) -> None:
        config = config or UncertaintyConfig()
        self.pooled = Pooled(spec)
        self.log_variance = nn.ParameterList([torch.zeros(spec.num_sources)])
        self.module: nn.Module = nn.ModuleDict({"pooled": self.pooled.module, "weights": self.log_variance})
        self.optimizers: Mapping[str, Optimizer] = {
            **self.pooled.optimizers,
            "weights": Adam(self.log_variance.parameters(), lr=config.weight_learning_rate),
        }

    def stages(self, steps: int) -> Sequence[Stage]:
        return [Stage("train", [Phase("main", self.loss, ("main", "weights"))], steps)]

    def loss(self, next_batch: NextBatch) -> PhaseLoss:
        batch, w = next_batch("labelled"), self.log_variance[0]
        log_probs = self.pooled.model(batch.inputs).log_probs
        counts = batch.token_counts if self.pooled.tagging else batch.text_counts
        task = classification_nll(
            log_probs, batch.labels, batch.domains, len(w), weights=torch.exp(-w), counts=counts
        )
        return PhaseLoss(task + 0.5 * w.sum() * batch.share, {"task": task.detach()})

    def predict(self, inputs: TokenSequences, source: int | None = None) -> Tensor:
        return self.pooled.predict(inputs)

    def source_weights(self, inputs: TokenSequences) -> Tensor:
        return torch.softmax(-self.log_variance[0].detach(), dim=0)


register_method("uncertainty_weighting", UncertaintyWeighting, UncertaintyConfig)
