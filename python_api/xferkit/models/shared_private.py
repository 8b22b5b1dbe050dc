"""Shared and private features into one classifier: the model of MAN, MAN-MoE and plain pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xferkit.models.attention import DotProductAttention
from xferkit.models.eager import eager
from xferkit.models.embedder import EmbeddedTokens, WordEmbedder
from xferkit.models.inputs import TokenSequences
from xferkit.models.layout import TokenLayout
from xferkit.models.moe import Bags, MixtureOfExperts

__all__ = [
    "ClassifierOutput",
    "Encoder",
    "MLPPredictor",
    "PrivateExperts",
    "PrivatePerDomain",
    "SharedPrivateClassifier",
]


class Encoder(Protocol):
    """A text encoder: one vector per text, or one per token when ``is_sequence``.

    It reads :class:`TokenSequences`, or the :class:`EmbeddedTokens` of a model whose encoders share an embedder.
    """

    out_dim: int
    is_sequence: bool

    def __call__(self, inputs: Any) -> Tensor:
        """Features ``[n, out_dim]`` or ``[n, length, out_dim]``."""
        ...


class MLPPredictor(nn.Module):
    """Class log-probabilities by a perceptron: ``[..., in_dim]`` -> ``[..., num_classes]``.

    Args:
        in_dim: size of the features.
        hidden_dim: units of the hidden layer, dropout before each layer; None for a linear layer alone.
        num_classes: number of classes.
        dropout: dropout probability around the hidden layer.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int | None, num_classes: int, *, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.layers: nn.Module
        if hidden_dim is None:
            self.layers = nn.Linear(in_dim, num_classes)
        else:
            self.layers = nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(in_dim, hidden_dim),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_dim, num_classes),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities over classes."""
        return torch.log_softmax(self.layers(x), dim=-1)


class PrivateExperts(nn.Module):
    """Private features of MAN-MoE: an own encoder, then a mixture of one expert per source language."""

    def __init__(self, encoder: Encoder, experts: MixtureOfExperts) -> None:
        super().__init__()
        self.encoder = encoder
        self.experts = experts
        self.out_dim = experts.out_dim


class PrivatePerDomain(nn.Module):
    """Private features of MAN: one encoder per source language; a language without one gets zeros.

    Args:
        make_encoder: returns a new encoder at each call.
        num_sources: number of source languages.
    """

    def __init__(self, make_encoder: Callable[[], Encoder], num_sources: int) -> None:
        super().__init__()
        encoders = [make_encoder() for _ in range(num_sources)]
        self.encoders = nn.ModuleList(e for e in encoders if isinstance(e, nn.Module))
        self.out_dim = encoders[0].out_dim
        self.is_sequence = encoders[0].is_sequence

    def forward(self, inputs: TokenSequences | EmbeddedTokens, domains: Tensor | None) -> Tensor:
        """Features of each row by the encoder of its language; zero where ``domains`` is -1 or None."""
        if isinstance(inputs, EmbeddedTokens):
            width, device = inputs.layout.width, inputs.parts[0].device
        else:
            width, device = inputs.ids.shape[1], inputs.ids.device
        shape = [len(inputs), width, self.out_dim] if self.is_sequence else [len(inputs), self.out_dim]
        features = torch.zeros(shape, device=device, dtype=next(self.parameters()).dtype)
        if domains is None:
            return features
        for domain, encoder in enumerate(self.encoders):
            rows = torch.nonzero(domains == domain).squeeze(1)
            if len(rows):
                encoded = encoder(inputs.select(rows))
                if self.is_sequence:
                    encoded = nn.functional.pad(encoded, (0, 0, 0, width - encoded.shape[1]))
                features = features.index_copy(0, rows, encoded.to(features.dtype))
        return features


@dataclass(frozen=True)
class ClassifierOutput:
    """What the classifier computed.

    Attributes:
        log_probs: ``float[n, num_classes]``, or per token ``[n, length, num_classes]`` without a pool, 0 on
            padding.
        shared: the shared features, what the discriminator reads.
        gate_logits: logits of each gate by name (``"private"``, ``"predictor"``): ``[n, num_experts]``, or
            ``[n, length, num_experts]`` of a gate per token, 0 on padding.
        bag_logits: logits each gate mixed its bags with, ``[num_bags, num_experts]``; empty without bags.
    """

    log_probs: Tensor
    shared: Tensor
    gate_logits: Mapping[str, Tensor] = field(default_factory=dict)
    bag_logits: Mapping[str, Tensor] = field(default_factory=dict)


class SharedPrivateClassifier(nn.Module):
    """``predictor([f_s; f_p])``, Chen et al., ACL 2019, Figure 1.

    Args:
        shared: the shared encoder F_s.
        predictor: C: log-probabilities from the concatenated features; a mixture must end in
            ``act2='log_softmax'``.
        private: F_p: a mixture over an own encoder (MAN-MoE), an encoder per language (MAN), or None.
        pool: for encoders of sequences: pools tokens before the predictor (classification); None leaves a
            prediction per token (tagging).
        embedder: what all encoders read in common, see :func:`take_apart`; None: each reads the texts themselves.

    Raises:
        ValueError: when shared and private encoder do not both give sequences or both vectors, or vectors
            come with a pool.
    """

    def __init__(
        self,
        shared: Encoder,
        predictor: MixtureOfExperts | MLPPredictor,
        private: PrivateExperts | PrivatePerDomain | None = None,
        pool: DotProductAttention | None = None,
        embedder: WordEmbedder | None = None,
    ) -> None:
        super().__init__()
        if isinstance(private, PrivateExperts):
            private_sequence = private.encoder.is_sequence
        else:
            private_sequence = shared.is_sequence if private is None else private.is_sequence
        if private_sequence != shared.is_sequence or (pool is not None and not shared.is_sequence):
            raise ValueError(
                "SharedPrivateClassifier: shared and private encoder must both give sequences or both one "
                "vector per text, and only sequences can be pooled"
            )
        if isinstance(predictor, MixtureOfExperts) and predictor.act2 != "log_softmax":
            raise ValueError(
                "SharedPrivateClassifier: the predictor's experts must end in log_softmax, "
                f"got {predictor.act2!r}"
            )
        self.embedder = embedder
        self.shared = shared
        self.private = private
        self.predictor = predictor
        self.pool = pool

    def discriminator_inputs(self, inputs: TokenSequences) -> tuple[Tensor, Tensor | None]:
        """Shared features and, for sequences, their mask: what a discriminator reads."""
        read = inputs if self.embedder is None else self.embedder(inputs)
        return self.shared(read), inputs.mask if self.shared.is_sequence else None

    def forward(
        self,
        inputs: TokenSequences,
        *,
        domains: Tensor | None = None,
        bags: Tensor | None = None,
        num_bags: int = 1,
        bag_logits: Mapping[str, Tensor] | None = None,
    ) -> ClassifierOutput:
        """Classify a batch.

        Args:
            inputs: n texts.
            domains: ``int64[n]``, source language of each text; read by private encoders per language
                alone, -1 or None for a language without one.
            bags: ``int64[n]``, switches both gates to the language level: texts of one bag are mixed with
                the same weights.
            num_bags: number of bags.
            bag_logits: the gates' logits of each bag, by gate, from an earlier output; a gate without an entry
                takes the means over this batch.
        """
        # Loops over lengths are nothing for a compiler; vectors of whole texts are.
        classify = eager(self._classify) if self.shared.is_sequence else self._classify
        return classify(inputs, domains, bags, num_bags, bag_logits)

    def _classify(
        self,
        inputs: TokenSequences,
        domains: Tensor | None,
        bags: Tensor | None,
        num_bags: int,
        bag_logits: Mapping[str, Tensor] | None,
    ) -> ClassifierOutput:
        gates: dict[str, Tensor] = {}
        mixed: dict[str, Tensor] = {}
        # Sequences go through the mixtures token by token, packed: padding costs nothing there.
        layout: TokenLayout | None = None
        read: TokenSequences | EmbeddedTokens = inputs
        if self.embedder is not None:
            read = embedded = self.embedder(inputs)
            layout = embedded.layout
        elif self.shared.is_sequence:
            layout = TokenLayout(inputs.lengths, inputs.ids.shape[1])

        def mixture(name: str, experts: MixtureOfExperts, x: Tensor, per_token: TokenLayout | None) -> Tensor:
            group: Bags | None = None
            if bags is not None:
                members = bags if per_token is None else bags[per_token.texts]
                group = Bags(members, num_bags, None if bag_logits is None else bag_logits.get(name))
            output = experts(x, group)
            logits = output.gate_logits
            gates[name] = logits if per_token is None else per_token.unpack(logits)
            if output.bag_logits is not None:
                mixed[name] = output.bag_logits
            features: Tensor = output.features
            return features

        def packed(x: Tensor) -> Tensor:
            return x if layout is None else layout.pack(x)

        shared = self.shared(read)
        features = packed(shared)
        if isinstance(self.private, PrivateExperts):
            own = packed(self.private.encoder(read))
            features = torch.cat([features, mixture("private", self.private.experts, own, layout)], dim=-1)
        elif self.private is not None:
            features = torch.cat([features, packed(self.private(read, domains))], dim=-1)
        if self.pool is not None:
            assert layout is not None
            features, layout = self.pool(layout.unpack(features), layout.mask), None
        if isinstance(self.predictor, MixtureOfExperts):
            log_probs = mixture("predictor", self.predictor, features, layout)
        else:
            log_probs = self.predictor(features)
        return ClassifierOutput(
            log_probs if layout is None else layout.unpack(log_probs), shared, gates, mixed
        )
