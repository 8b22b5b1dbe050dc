"""Pooling: one shared encoder and one classifier on the labelled texts of all sources together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.methods.classifier import ClassifierSpec, evaluating, labels_of, make_adam
from xferkit.methods.protocol import NextBatch, Phase, PhaseLoss, Stage
from xferkit.models import DotProductAttention, Encoder, MLPPredictor, SharedPrivateClassifier, TokenSequences
from xferkit.objectives import classification_nll

__all__ = ["Pooled", "make_pool"]


class Pooled:
    """Pooled weight sharing, the baseline every transfer method is held against.

    The loss is the weighted mean over sources of each source's mean NLL; equal weights by default.

    Args:
        spec: encoder, sizes and optimiser.
        source_weights: ``float[num_sources]`` summing to 1; can be set until training starts.
    """

    def __init__(self, spec: ClassifierSpec, source_weights: Tensor | None = None) -> None:
        encoder = spec.make_encoder()
        predictor = MLPPredictor(encoder.out_dim, spec.hidden_dim, spec.num_classes, dropout=spec.dropout)
        self.model = SharedPrivateClassifier(
            encoder, predictor, pool=make_pool(encoder, encoder.out_dim, spec.dropout)
        )
        self.num_sources = spec.num_sources
        if source_weights is None:
            source_weights = torch.full((spec.num_sources,), 1.0 / spec.num_sources)
        self.weights = source_weights
        self._optimizer = make_adam(self.model, spec)

    @property
    def module(self) -> nn.Module:
        """The classifier."""
        return self.model

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """One optimiser, ``main``."""
        return {"main": self._optimizer}

    def stages(self, steps: int) -> Sequence[Stage]:
        """One stage of one phase."""
        return [Stage("train", [Phase("main", self.loss, ("main",))], steps)]

    def loss(self, next_batch: NextBatch) -> PhaseLoss:
        """The task loss on a fresh labelled batch."""
        batch = next_batch("labelled")
        log_probs = self.model(batch.inputs).log_probs
        task = classification_nll(
            log_probs,
            labels_of(batch),
            batch.domains,
            self.num_sources,
            weights=self.weights.to(log_probs.device),
        )
        return PhaseLoss(task, {"task": task.detach()})

    def predict(self, inputs: TokenSequences) -> Tensor:
        """Class log-probabilities in evaluation mode."""
        with evaluating(self.model):
            log_probs: Tensor = self.model(inputs).log_probs
            return log_probs

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """None: pooling does not choose among its sources."""
        return None


def make_pool(encoder: Encoder, dim: int, dropout: float) -> DotProductAttention | None:
    """Attention pooling over features of size ``dim`` for encoders of sequences, None for the others."""
    return DotProductAttention(dim, dropout=dropout) if encoder.is_sequence else None
