"""Pooling: one shared encoder and one classifier on the labelled texts of all sources together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.methods.classifier import (
    ClassifierSpec,
    counts_of,
    evaluating,
    labels_of,
    make_adam,
    make_pool,
)
from xferkit.methods.protocol import NextBatch, Phase, PhaseLoss, Stage
from xferkit.models import MLPPredictor, SharedPrivateClassifier, TokenSequences, take_apart
from xferkit.objectives import classification_nll

__all__ = ["Pooled", "PooledConfig"]


@dataclass(frozen=True)
class PooledConfig:
    """Settings of pooling; the defaults are those of the other methods, so that comparisons are fair.

    Attributes:
        hidden_dim: hidden units of the predictor; 0: a linear layer.
        dropout: dropout probability outside the encoder.
        learning_rate: Adam's learning rate, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
    """

    hidden_dim: int = 128
    dropout: float = 0.5
    learning_rate: float = 1e-3
    weight_decay: float = 1e-8
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.hidden_dim < 0 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"PooledConfig: expected hidden_dim >= 0 and dropout in [0, 1), got {self.hidden_dim} and "
                f"{self.dropout}"
            )


class Pooled:
    """Pooled weight sharing, the baseline every transfer method is held against.

    The loss is the weighted mean over sources of each source's mean NLL; equal weights by default.

    Args:
        spec: encoder, sizes and optimiser.
        config: sizes of the predictor; None takes those of ``spec``. Optimiser settings are those of ``spec``.
    """

    replicable = True

    def __init__(self, spec: ClassifierSpec, config: PooledConfig | None = None) -> None:
        hidden = spec.hidden_dim if config is None else config.hidden_dim or None
        dropout = spec.dropout if config is None else config.dropout
        embedder, encoder, _ = take_apart(spec.make_encoder)
        predictor = MLPPredictor(encoder.out_dim, hidden, spec.num_classes, dropout=dropout)
        pool = make_pool(encoder, encoder.out_dim, dropout, spec.tagging)
        self.model = SharedPrivateClassifier(encoder, predictor, pool=pool, embedder=embedder)
        self.num_sources, self.tagging = spec.num_sources, spec.tagging
        self._module = nn.ModuleDict({"model": self.model})
        self._module.register_buffer("weights", torch.full((spec.num_sources,), 1.0 / spec.num_sources))
        self._optimizer = make_adam(self.model, spec)

    @property
    def module(self) -> nn.Module:
        """The classifier, and the sources' weights."""
        return self._module

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """One optimiser, ``main``."""
        return {"main": self._optimizer}

    @property
    def weights(self) -> Tensor:
        """``float[num_sources]`` summing to 1, the weights of the sources' losses."""
        return self._module.get_buffer("weights")

    def set_weights(self, weights: Tensor) -> None:
        """Weigh the sources' losses with ``weights`` (``float[num_sources]``) from now on."""
        self.weights.copy_(weights)

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
            weights=self.weights,
            counts=counts_of(batch, self.tagging),
        )
        return PhaseLoss(task, {"task": task.detach()})

    def predict(self, inputs: TokenSequences, source: int | None = None) -> Tensor:
        """Log-probabilities in evaluation mode; the same for every language."""
        with evaluating(self.model):
            log_probs: Tensor = self.model(inputs).log_probs
            return log_probs

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """None: pooling does not choose among its sources."""
        return None
