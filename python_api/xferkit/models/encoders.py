"""Text encoders from a configuration: words with characters, or characters alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from xferkit.models.bilstm import BiLSTM, BiLSTMEncoder
from xferkit.models.char_cnn import CharCNNEncoder
from xferkit.models.embedder import BiLSTMBody, WordEmbedder, WordEncoder
from xferkit.models.ops import OpsName
from xferkit.models.shared_private import Encoder

__all__ = ["EncoderConfig", "EncoderKind", "make_encoder", "take_apart"]

EncoderKind = Literal["words", "char_cnn", "char_bilstm"]


@dataclass(frozen=True)
class EncoderConfig:
    """Every choice of a text encoder; the defaults are those of Chen et al., ACL 2019, where it states one.

    Attributes:
        kind: ``"words"``: word embeddings beside a CharCNN of each word, then a BiLSTM over words, for tagging and
            classification. ``"char_cnn"``: one vector per text from its characters. ``"char_bilstm"``: a BiLSTM
            over characters, one vector per character.
        feature_dim: size of the features.
        layers: layers of the BiLSTM.
        dropout: dropout on what the BiLSTM reads and between its layers, and inside a CharCNN.
        word_dim: size of word embeddings that are learned; given vectors have a size of their own; 0: words are
            read by their characters alone.
        vectors: file of given word vectors, read by whoever builds the encoder.
        freeze_vectors: given vectors stay as they are.
        word_dropout: probability that a word counts as unknown in training; its characters stay.
        char_dim: size of a character's embedding; 0: words without characters.
        char_flag_dim: size of the embedding of a character's case; 0: none.
        char_channels: units of each convolution over characters.
        char_widths: widths of these convolutions.
        char_out: size of what the CharCNN says of a word.
        freeze_char_embedding: character embeddings stay as they were drawn, the convolutions learn (as in the
            authors' code).
    """

    kind: EncoderKind = "words"
    feature_dim: int = 128
    layers: int = 2
    dropout: float = 0.5
    word_dim: int = 100
    vectors: str | None = None
    freeze_vectors: bool = True
    word_dropout: float = 0.0
    char_dim: int = 32
    char_flag_dim: int = 8
    char_channels: int = 200
    char_widths: tuple[int, ...] = (3, 4, 5)
    char_out: int = 128
    freeze_char_embedding: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("words", "char_cnn", "char_bilstm"):
            raise ValueError(
                f"EncoderConfig: kind must be 'words', 'char_cnn' or 'char_bilstm', got {self.kind!r}"
            )
        for name, least in (
            ("feature_dim", 1), ("layers", 1), ("word_dim", 0), ("char_dim", 0 if self.kind == "words" else 1),
            ("char_flag_dim", 0), ("char_channels", 1), ("char_out", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"EncoderConfig: {name} must be at least {least}, got {getattr(self, name)}")
        if self.feature_dim % 2 and self.kind != "char_cnn":
            raise ValueError(
                f"EncoderConfig: feature_dim must be even (two directions), got {self.feature_dim}"
            )
        for name in ("dropout", "word_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"EncoderConfig: {name} must be in [0, 1), got {getattr(self, name)}")
        if not self.char_widths or min(self.char_widths) < 1:
            raise ValueError(
                f"EncoderConfig: char_widths must be at least one width, each at least 1, got {self.char_widths}"
            )
        if self.kind == "words" and not (self.word_dim or self.vectors or self.char_dim):
            raise ValueError(
                "EncoderConfig: word_dim and char_dim are both 0; expected word embeddings, characters or both"
            )


def make_encoder(
    config: EncoderConfig,
    num_words: int,
    num_chars: int,
    vectors: Tensor | None = None,
    *,
    ops: OpsName = "fused",
) -> Encoder:
    """A new encoder.

    Args:
        config: the choices.
        num_words: size of the vocabulary of words, padding (0) and unknown (1) included; read by ``"words"``.
        num_chars: size of the vocabulary of characters.
        vectors: ``float[num_words, dim]``, given word embeddings, row 0 zero; copied. None learns them, unless
            ``config.vectors`` names a file: then they are zero, of size ``config.word_dim``, until a state is
            loaded, so that a saved model is rebuilt without the file.
        ops: ``"fused"`` or ``"reference"``.

    Returns:
        An :class:`~xferkit.models.Encoder`; of kind ``"words"`` a :class:`WordEncoder`.

    Raises:
        ValueError: for vectors of another number of rows.
    """
    chars: CharCNNEncoder | None = None
    if config.kind == "char_bilstm":
        embedding = nn.Embedding(num_chars, config.char_dim, padding_idx=0)
        embedding.weight.requires_grad_(not config.freeze_char_embedding)
        return BiLSTMEncoder(
            embedding,
            config.feature_dim,
            flag_dim=config.char_flag_dim,
            layers=config.layers,
            dropout=config.dropout,
            ops=ops,
        )
    if config.char_dim:
        chars = CharCNNEncoder(
            num_chars,
            config.char_out if config.kind == "words" else config.feature_dim,
            token_dim=config.char_dim,
            flag_dim=config.char_flag_dim,
            channels=config.char_channels,
            widths=config.char_widths,
            dropout=config.dropout,
            fast=config.kind == "words",
        )
        chars.token_embedding.weight.requires_grad_(not config.freeze_char_embedding)
    if config.kind == "char_cnn":
        assert chars is not None
        return chars
    embedder = WordEmbedder(_word_table(config, num_words, vectors), chars, word_dropout=config.word_dropout)
    lstm = BiLSTM(embedder.out_dim, config.feature_dim, layers=config.layers, dropout=config.dropout, ops=ops)
    return WordEncoder(embedder, BiLSTMBody(lstm))


def _word_table(config: EncoderConfig, num_words: int, vectors: Tensor | None) -> nn.Embedding | None:
    if vectors is None and config.vectors is not None and config.word_dim:
        vectors = torch.zeros(num_words, config.word_dim)
    if vectors is None:
        return nn.Embedding(num_words, config.word_dim, padding_idx=0) if config.word_dim else None
    if vectors.dim() != 2 or vectors.shape[0] != num_words:
        raise ValueError(
            f"make_encoder: vectors must have shape [{num_words}, dim], a row for each word of the vocabulary, "
            f"got {list(vectors.shape)}"
        )
    return nn.Embedding.from_pretrained(
        vectors.detach().clone().float(), freeze=config.freeze_vectors, padding_idx=0
    )


def take_apart(
    make: Callable[[], Encoder],
) -> tuple[WordEmbedder | None, Encoder, Callable[[], Encoder]]:
    """The parts of a model with several encoders: what they share, the first, and how to make more.

    Encoders of words share word embeddings and CharCNN, as in the authors' code of MAN-MoE: fixed vectors
    are held once, and a batch's words are embedded once for all extractors. Others share nothing.

    Args:
        make: returns a new encoder at each call.

    Returns:
        The embedder or None; the first encoder; a function that makes another like it.
    """
    first = make()
    if isinstance(first, WordEncoder):
        return first.embedder, first.body, first.body.another
    return None, first, make
