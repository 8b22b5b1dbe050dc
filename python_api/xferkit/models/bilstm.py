"""Tokens to a sequence of features: a bidirectional LSTM over packed sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xferkit.models.inputs import TokenSequences

__all__ = ["BiLSTMEncoder"]


class BiLSTMEncoder(nn.Module):
    """A stack of bidirectional LSTM layers over token embeddings (Chen et al., ACL 2019, section 3).

    Padding never enters the recurrence, and its features are exactly zero.

    Args:
        embedding: table of token embeddings, row 0 padding; freeze it for fixed cross-lingual embeddings.
        out_dim: features per token, half for each direction; must be even.
        flag_dim: size of the embedding of the flag beside each token (is upper case); 0 for none.
        layers: number of layers.
        dropout: dropout on the embeddings, between layers and on the features.

    Shape:
        :class:`TokenSequences` of n texts of up to L tokens -> ``float[n, L, out_dim]``.
    """

    is_sequence = True

    def __init__(
        self,
        embedding: nn.Embedding,
        out_dim: int = 128,
        *,
        flag_dim: int = 0,
        layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if out_dim % 2:
            raise ValueError(f"BiLSTMEncoder: out_dim must be even (two directions), got {out_dim}")
        self.out_dim = out_dim
        self.embedding = embedding
        self.flag_embedding = nn.Embedding(2, flag_dim) if flag_dim else None
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            embedding.embedding_dim + flag_dim,
            out_dim // 2,
            num_layers=layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if layers > 1 else 0.0,
        )

    def forward(self, inputs: TokenSequences) -> Tensor:
        """Features ``[n, L, out_dim]``, zero on padding.

        Raises:
            ValueError: when the encoder has a flag embedding and the inputs no flags.
        """
        x = self.embedding(inputs.ids)
        if self.flag_embedding is not None:
            if inputs.flags is None:
                raise ValueError("BiLSTMEncoder: the inputs have no flags; construct it with flag_dim=0")
            x = torch.cat([x, self.flag_embedding(inputs.flags)], dim=-1)
        packed = pack_padded_sequence(
            self.dropout(x), inputs.lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        features, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=inputs.ids.shape[1]
        )
        dropped: Tensor = self.dropout(features)
        return dropped
