"""A masked language model: a transformer encoder and a head that names the token of a place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from xferkit.models.transformer import TransformerConfig, TransformerEncoder

__all__ = ["MaskedLanguageModel", "MaskedLmOutput"]


class MaskedLmOutput(NamedTuple):
    """What the model says of the places asked for.

    Attributes:
        logits: ``float[selected, vocab_size]``.
        states: ``float[texts, length, dim]`` of the encoder, zero on padding; None where they were not asked for.
    """

    logits: Tensor
    states: Tensor | None = None


class MaskedLanguageModel(nn.Module):
    r"""Scores of every token at the places asked for, from both sides.

    .. math:: \mathrm{logits} = E\, \mathrm{LayerNorm}(\mathrm{gelu}(W h + b)) + c

    with E the encoder's own table of embeddings (``encoder.embeddings.tokens.weight``, one parameter), so that
    whoever replaces it replaces both. Devlin, Chang, Lee and Toutanova, "BERT" (NAACL 2019); the output of Conneau
    and Lample (NeurIPS 2019) is the same without W and its LayerNorm.

    Args:
        config: sizes of the encoder.

    Attributes:
        encoder: the transformer.
        transform: W and b.
        transform_norm: the LayerNorm.
        bias: ``float[vocab_size]``, c, zero at the start.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(config)
        self.transform = nn.Linear(config.dim, config.dim)
        self.transform_norm = nn.LayerNorm(config.dim)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, tokens: Tensor, lengths: Tensor, positions: Tensor, *, with_states: bool = False
    ) -> MaskedLmOutput:
        """Logits at the places ``positions`` alone, and the states of all tokens where asked for.

        Args:
            tokens: ``int64[texts, length]``.
            lengths: ``int64[texts]``.
            positions: ``int64[selected]``, places in ``tokens.view(-1)``, none of them padding; there may be none.
            with_states: compute the last layer for all tokens, and give their states.

        Raises:
            ValueError: as :class:`~xferkit.models.transformer.TransformerEncoder`.
        """
        if not with_states:
            return MaskedLmOutput(self.logits(self.encoder(tokens, lengths, positions)))
        states = self.encoder(tokens, lengths)
        return MaskedLmOutput(self.logits(states.flatten(0, 1).index_select(0, positions)), states)

    def logits(self, states: Tensor) -> Tensor:
        """``float[..., dim]`` -> ``float[..., vocab_size]``, the head alone."""
        hidden = self.transform_norm(gelu(self.transform(states)))
        return linear(hidden, self.encoder.embeddings.tokens.weight, self.bias)
