"""Gate-weighted pooling: sources weigh as much as the target's unlabelled texts look like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.methods.classifier import ClassifierSpec, in_chunks
from xferkit.methods.pooled import Pooled, PooledConfig
from xferkit.methods.protocol import DomainBatch, NextBatch, Phase, PhaseLoss, Stage
from xferkit.models import TokenSequences

__all__ = ["GateWeightedConfig", "GateWeightedPooling"]


@dataclass(frozen=True)
class GateWeightedConfig(PooledConfig):
    """Settings of gate-weighted pooling.

    Attributes:
        hidden_dim: hidden units of the predictor; 0: a linear layer.
        dropout: dropout probability outside the encoder.
        learning_rate: Adam's learning rate, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
        power: sharpens (above 1) or flattens (below 1) the weights.
        gate_share: steps of the first stage as a share of those of the second.
    """

    power: float = 2.0
    gate_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.power >= 0 and self.gate_share > 0):
            raise ValueError(
                f"GateWeightedConfig: expected power >= 0 and gate_share > 0, got {self.power} and {self.gate_share}"
            )


class GateWeightedPooling:
    """Two stages: a classifier of the source language, then a pooled model with weighted source losses.

    After the first stage ``q = mean over unlabelled target texts of p(source | text)``; the weight of
    source s in the second is ``q_s^power / sum_r q_r^power``. Evidence is pooled over the whole target
    language, where a gate per text decides each text by itself. No label of the target is used. The first
    stage classifies whole texts in tagging too.

    Args:
        spec: encoder, sizes and optimiser; ``target_inputs`` must be given.
        config: the settings; None takes sizes from ``spec`` and defaults for the rest.

    Raises:
        ValueError: when ``spec`` has no target texts.
    """

    replicable = True

    def __init__(self, spec: ClassifierSpec, config: GateWeightedConfig | None = None) -> None:
        if spec.target_inputs is None:
            raise ValueError("GateWeightedPooling: spec.target_inputs must hold unlabelled target texts")
        self.target_inputs = spec.target_inputs
        settings = config or GateWeightedConfig()
        self.power, self.gate_share = settings.power, settings.gate_share
        self.gate = Pooled(replace(spec, num_classes=spec.num_sources, tagging=False), config)
        self.classifier = Pooled(spec, config)
        self._module = nn.ModuleDict({"gate": self.gate.module, "classifier": self.classifier.module})

    @property
    def module(self) -> nn.Module:
        """Gate and classifier."""
        return self._module

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """``gate`` and ``main``."""
        return {"gate": self.gate.optimizers["main"], "main": self.classifier.optimizers["main"]}

    def stages(self, steps: int) -> Sequence[Stage]:
        """The gate's stage, at whose end the weights are set, and the classifier's."""
        gate = Stage(
            "gate",
            [Phase("gate", self._gate_loss, ("gate",))],
            round(self.gate_share * steps),
            on_end=self._set_weights,
        )
        return [gate, *self.classifier.stages(steps)]

    def _gate_loss(self, next_batch: NextBatch) -> PhaseLoss:
        def languages_as_labels(stream: str) -> DomainBatch:
            batch = next_batch(stream)
            return replace(batch, labels=batch.domains)

        loss = self.gate.loss(languages_as_labels)
        return PhaseLoss(loss.total, {"nll": loss.metrics["task"]})

    def _set_weights(self) -> None:
        model, posterior = self.gate.model, torch.zeros_like(self.classifier.weights)
        sequences, device = model.shared.is_sequence, posterior.device
        for texts in in_chunks(self.target_inputs, sequences=sequences, device=device):
            # A single chunk has a share of exactly 1.
            posterior += len(texts) / len(self.target_inputs) * self.gate.predict(texts).exp().mean(0)
        self.classifier.set_weights(torch.softmax(self.power * posterior.log(), dim=0))

    def predict(self, inputs: TokenSequences, source: int | None = None) -> Tensor:
        """Log-probabilities in evaluation mode; the same for every language."""
        return self.classifier.predict(inputs)

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """The weights the classifier was trained with."""
        return self.classifier.weights.clone()
