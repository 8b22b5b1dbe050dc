"""What the classification methods share: how they are specified, and how they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam

from xferkit.methods.protocol import DomainBatch, Method
from xferkit.models import Encoder, OpsName, TokenSequences

__all__ = ["ClassifierMethod", "ClassifierSpec", "evaluating", "frozen", "labels_of", "make_adam"]


@dataclass(frozen=True)
class ClassifierSpec:
    """What a classification method is built from, whatever the method.

    Attributes:
        make_encoder: returns a new text encoder at each call; a method takes as many as it needs.
        num_classes: number of classes.
        num_sources: number of source languages; the unlabelled target is the one more language.
        target_inputs: unlabelled texts of the target, for the methods that look at them.
        hidden_dim: hidden units of predictors (None: a linear layer) where the method has no own setting.
        dropout: dropout probability outside the encoders.
        learning_rate: Adam's learning rate, of every optimiser.
        weight_decay: Adam's weight decay.
        ops: ``"fused"`` or ``"reference"``.
    """

    make_encoder: Callable[[], Encoder]
    num_classes: int
    num_sources: int
    target_inputs: TokenSequences | None = None
    hidden_dim: int | None = None
    dropout: float = 0.3
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    ops: OpsName = "fused"


class ClassifierMethod(Method, Protocol):
    """A method whose result is a classifier for texts of a language without labels."""

    def predict(self, inputs: TokenSequences) -> Tensor:
        """Class log-probabilities ``[n, num_classes]`` of target texts, in evaluation mode."""
        ...

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """How much each source language counts for these target texts, ``[num_sources]`` summing to 1.

        None for a method that does not choose.
        """
        ...


def make_adam(module: nn.Module, spec: ClassifierSpec) -> Adam:
    """Adam over the module's trainable parameters."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return Adam(trainable, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)


def labels_of(batch: DomainBatch) -> Tensor:
    """The labels of a batch that must have them.

    Raises:
        ValueError: when it has none.
    """
    if batch.labels is None:
        raise ValueError("the 'labelled' stream gave a batch without labels")
    return batch.labels


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients, and the former mode afterwards."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients flow through the module and leave none on its parameters."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
