"""Gate-weighted pooling: sources weigh as much as the target's unlabelled texts look like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.methods.classifier import ClassifierSpec
from xferkit.methods.pooled import Pooled
from xferkit.methods.protocol import DomainBatch, NextBatch, Phase, PhaseLoss, Stage
from xferkit.models import TokenSequences

__all__ = ["GateWeightedPooling"]


class GateWeightedPooling:
    """Two stages: a classifier of the source language, then a pooled model with weighted source losses.

    After the first stage ``q = mean over unlabelled target texts of p(source | text)``; the weight of
    source s in the second is ``q_s^power / sum_r q_r^power``. Evidence is pooled over the whole target
    language, where a gate per text decides each text by itself. No label of the target is used.

    Args:
        spec: encoder, sizes and optimiser; ``target_inputs`` must be given.
        power: sharpens (above 1) or flattens (below 1) the weights.
        gate_share: steps of the first stage as a share of those of the second.

    Raises:
        ValueError: when ``spec`` has no target texts.
    """

    def __init__(self, spec: ClassifierSpec, *, power: float = 2.0, gate_share: float = 0.5) -> None:
        if spec.target_inputs is None:
            raise ValueError("GateWeightedPooling: spec.target_inputs must hold unlabelled target texts")
        self.target_inputs = spec.target_inputs
        self.power, self.gate_share = power, gate_share
        self.gate = Pooled(replace(spec, num_classes=spec.num_sources))
        self.classifier = Pooled(spec)
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
        posterior = self.gate.predict(self.target_inputs).exp().mean(0)
        self.classifier.weights = torch.softmax(self.power * posterior.log(), dim=0)

    def predict(self, inputs: TokenSequences) -> Tensor:
        """Class log-probabilities in evaluation mode."""
        return self.classifier.predict(inputs)

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """The weights the classifier was trained with."""
        return self.classifier.weights
