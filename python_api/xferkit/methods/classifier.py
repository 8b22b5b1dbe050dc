"""What methods of classification and tagging share: how they are specified, and how they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam

from xferkit.methods.protocol import DomainBatch, Method
from xferkit.models import DotProductAttention, Encoder, OpsName, TokenSequences

__all__ = [
    "ClassifierMethod",
    "ClassifierSpec",
    "TargetTexts",
    "counts_of",
    "evaluating",
    "frozen",
    "in_chunks",
    "labels_of",
    "make_adam",
    "make_pool",
]

#: Texts that go through a model at once where a method reads all of the target's.
_CHUNK_TEXTS, _CHUNK_SEQUENCES = 4096, 256


class TargetTexts(Protocol):
    """Texts that batches are taken from; :class:`TokenSequences` are such texts."""

    def __len__(self) -> int: ...

    def select(self, index: Tensor, /) -> TokenSequences:
        """The texts ``index`` (``int64[m]``) as a batch."""
        ...


@dataclass(frozen=True)
class ClassifierSpec:
    """What a method is built from, whatever the method.

    Attributes:
        make_encoder: returns a new text encoder at each call; a method takes as many as it needs.
        num_classes: number of classes, or of tags.
        num_sources: number of source languages; the unlabelled target is the one more language.
        target_inputs: unlabelled texts of the target, for the methods that look at them.
        hidden_dim: hidden units of predictors (None: a linear layer) where the method has no own setting.
        dropout: dropout probability outside the encoders, where the method has no own setting.
        learning_rate: Adam's learning rate, of every optimiser.
        weight_decay: Adam's weight decay.
        ops: ``"fused"`` or ``"reference"``.
        tagging: a label for each token; False: one for each text.
        source_names: the source languages' names, for methods that are told of some by name; empty: numbers alone.
    """

    make_encoder: Callable[[], Encoder]
    num_classes: int
    num_sources: int
    target_inputs: TargetTexts | None = None
    hidden_dim: int | None = None
    dropout: float = 0.3
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    ops: OpsName = "fused"
    tagging: bool = False
    source_names: tuple[str, ...] = ()


class ClassifierMethod(Method, Protocol):
    """A method whose result is a classifier, or tagger, for texts of a language without labels.

    Attributes:
        replicable: False where a loss averages over texts of a batch, which then cannot be cut into shards.
    """

    @property
    def replicable(self) -> bool:
        """Whether batches may be cut into shards."""
        ...

    def predict(self, inputs: TokenSequences, source: int | None = None) -> Tensor:
        """Log-probabilities in evaluation mode: ``[n, num_classes]``, or ``[n, length, num_classes]`` of tags.

        Args:
            inputs: texts of one language.
            source: number of that language where it is a source; None for the target, also when its texts stand
                for the target's.
        """
        ...

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """How much each source language counts for these target texts, ``[num_sources]`` summing to 1.

        None for a method that does not choose.
        """
        ...


def make_pool(encoder: Encoder, dim: int, dropout: float, tagging: bool) -> DotProductAttention | None:
    """Attention pooling over features of size ``dim`` where an encoder of sequences classifies texts, else None.

    Raises:
        ValueError: when an encoder of whole texts is to tag tokens.
    """
    if tagging and not encoder.is_sequence:
        raise ValueError(
            "ClassifierSpec: tagging=True needs an encoder with a vector per token (EncoderConfig kind 'words'), "
            f"got {type(encoder).__name__}, which gives one vector per text"
        )
    return DotProductAttention(dim, dropout=dropout) if encoder.is_sequence and not tagging else None


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


def counts_of(batch: DomainBatch, per_token: bool) -> Tensor | None:
    """What the batch says each language's sums are to be divided by: its tokens or its texts."""
    return batch.token_counts if per_token else batch.text_counts


def in_chunks(texts: TargetTexts, *, sequences: bool, device: torch.device) -> Iterator[TokenSequences]:
    """All texts in order, in batches that fit into memory; few texts are one batch.

    Args:
        texts: the texts.
        sequences: they go through an encoder of sequences, which needs more memory for each.
        device: where the batches are put.
    """
    for index in torch.arange(len(texts)).split(_CHUNK_SEQUENCES if sequences else _CHUNK_TEXTS):
        yield texts.select(index).to(device)


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
