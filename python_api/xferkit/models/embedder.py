"""Words to vectors: word embeddings beside what a convolution reads in their characters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xferkit.models.bilstm import BiLSTM
from xferkit.models.char_cnn import CharCNNEncoder
from xferkit.models.eager import eager
from xferkit.models.inputs import TokenSequences
from xferkit.models.layout import TokenLayout

__all__ = ["BiLSTMBody", "EmbeddedTokens", "WordEmbedder", "WordEncoder"]

_UNKNOWN = 1


@dataclass(frozen=True)
class EmbeddedTokens:
    """The vectors of a batch's words, packed: what the encoders of several parts of a model read.

    Attributes:
        parts: ``float[num_tokens, dim]`` each, text after text without padding; side by side they are the vectors.
            Fixed word vectors are a part of their own, so that nobody computes gradients for them.
        layout: which token belongs to which text.
    """

    parts: tuple[Tensor, ...]
    layout: TokenLayout

    def __len__(self) -> int:
        return len(self.layout)

    @property
    def values(self) -> Tensor:
        """The vectors whole, ``float[num_tokens, dim]``."""
        return torch.cat(self.parts, dim=1)

    def select(self, rows: Tensor) -> EmbeddedTokens:
        """The texts ``rows``, of the same padded length."""
        layout, tokens = self.layout.select(rows)
        return EmbeddedTokens(tuple(part.index_select(0, tokens) for part in self.parts), layout)


class WordEmbedder(nn.Module):
    """``[word embedding; CharCNN of its characters]`` of each token (Chen et al., ACL 2019, section 3).

    The CharCNN reads each distinct word of the batch once, and all tokens of the word share the outcome,
    dropout included.

    Args:
        words: table of word embeddings, row 0 padding, row 1 unknown words; frozen for fixed vectors. None
            reads words by their characters alone.
        chars: reads characters; None for none.
        word_dropout: probability that a token's word embedding is that of the unknown word in training, so
            that the model learns to do without; its characters stay.

    Shape:
        :class:`TokenSequences` of n texts -> :class:`EmbeddedTokens`.

    Raises:
        ValueError: with neither table nor CharCNN, or a word dropout outside [0, 1).
    """

    def __init__(
        self, words: nn.Embedding | None, chars: CharCNNEncoder | None = None, *, word_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if words is None and chars is None:
            raise ValueError(
                "WordEmbedder: expected a table of word embeddings, a CharCNN or both, got neither"
            )
        if not 0.0 <= word_dropout < 1.0:
            raise ValueError(f"WordEmbedder: word_dropout must be in [0, 1), got {word_dropout}")
        self.words, self.chars, self.word_dropout = words, chars, word_dropout
        self.out_dim = (words.embedding_dim if words else 0) + (chars.out_dim if chars else 0)

    def forward(self, inputs: TokenSequences) -> EmbeddedTokens:
        """The vectors of all real tokens.

        Raises:
            ValueError: when there is a CharCNN and the inputs have no spellings.
        """
        layout = TokenLayout(inputs.lengths, inputs.ids.shape[1])
        parts = []
        if self.words is not None:
            ids = layout.pack(inputs.ids)
            if self.training and self.word_dropout:
                dropped = torch.rand(ids.shape, device=ids.device) < self.word_dropout
                ids = ids.masked_fill(dropped, _UNKNOWN)
            parts.append(self.words(ids))
        if self.chars is not None:
            if inputs.spellings is None:
                raise ValueError(
                    "WordEmbedder: the inputs have no spellings, which its CharCNN reads; expected texts encoded "
                    "with characters, or an encoder with char_dim=0"
                )
            rows = self.chars(inputs.spellings.chars)
            parts.append(rows.index_select(0, layout.pack(inputs.spellings.index)))
        return EmbeddedTokens(tuple(parts), layout)


class BiLSTMBody(nn.Module):
    """A :class:`BiLSTM` over embedded words: a feature extractor without word embeddings of its own.

    Args:
        lstm: the layers.

    Shape:
        :class:`EmbeddedTokens` of n texts of up to L words -> ``float[n, L, out_dim]``, 0 on padding.
    """

    is_sequence = True

    def __init__(self, lstm: BiLSTM) -> None:
        super().__init__()
        self.lstm, self.out_dim = lstm, lstm.out_dim

    def forward(self, inputs: EmbeddedTokens) -> Tensor:
        """Features ``[n, L, out_dim]``."""
        return inputs.layout.unpack(self.lstm(inputs.parts, inputs.layout))

    def another(self) -> BiLSTMBody:
        """A new one of the same sizes with parameters of its own."""
        return BiLSTMBody(self.lstm.another())


class WordEncoder(nn.Module):
    """Words to features: a :class:`WordEmbedder` and a :class:`BiLSTMBody`.

    A model with several extractors takes the two apart: all its bodies read one embedder (see
    :func:`take_apart`), as MAN-MoE's do.

    Shape:
        :class:`TokenSequences` of n texts of up to L words -> ``float[n, L, out_dim]``, 0 on padding.
    """

    is_sequence = True

    def __init__(self, embedder: WordEmbedder, body: BiLSTMBody) -> None:
        super().__init__()
        self.embedder, self.body, self.out_dim = embedder, body, body.out_dim

    @eager
    def forward(self, inputs: TokenSequences) -> Tensor:
        """Features ``[n, L, out_dim]``."""
        features: Tensor = self.body(self.embedder(inputs))
        return features
