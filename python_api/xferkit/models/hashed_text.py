"""Texts as bags of words, each word known by hash buckets of itself and of its character n-grams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

__all__ = ["HashedEncoderConfig", "HashedTextEncoder", "HashedTexts", "HashedWordEmbedder", "HashedWords"]


def _ragged_rows(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the given rows in the flat numbers, row after row, and the offsets of the new rows."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    new = torch.zeros(len(rows) + 1, dtype=torch.int64, device=offsets.device)
    torch.cumsum(lengths, 0, out=new[1:])
    positions = torch.arange(int(new[-1]), device=offsets.device)
    return positions + (starts - new[:-1]).repeat_interleave(lengths), new


@dataclass(frozen=True)
class HashedWords:
    """Distinct words as numbers of hash buckets.

    Attributes:
        buckets: ``int64[num_words]``, bucket of each word as a whole.
        grams: for each size of n-gram ``int64[total]``, buckets of the n-grams of all words, word after word.
        offsets: for each size ``int64[num_words + 1]``, where the n-grams of each word begin.
    """

    buckets: Tensor
    grams: tuple[Tensor, ...]
    offsets: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.buckets)

    def select(self, index: Tensor) -> HashedWords:
        """The words ``index`` (``int64[m]``), in that order."""
        grams, offsets = [], []
        for flat, begin in zip(self.grams, self.offsets, strict=True):
            positions, new = _ragged_rows(begin, index)
            grams.append(flat[positions])
            offsets.append(new)
        return HashedWords(self.buckets[index], tuple(grams), tuple(offsets))

    def to(self, device: torch.device | str) -> HashedWords:
        """The same words on ``device``."""
        return HashedWords(
            self.buckets.to(device),
            tuple(grams.to(device) for grams in self.grams),
            tuple(offsets.to(device) for offsets in self.offsets),
        )


@dataclass(frozen=True)
class HashedTexts:
    """n texts as rows of words; each distinct word is held, and embedded, once.

    Attributes:
        words: the distinct words.
        index: ``int64[total]``, the word of each token, text after text.
        offsets: ``int64[n + 1]``, where each text begins. A text without words is an empty row.
    """

    words: HashedWords
    index: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """``int64[n]``, words of each text."""
        return self.offsets.diff()

    def select(self, rows: Tensor) -> HashedTexts:
        """The texts ``rows`` (``int64[m]``), in that order, with the words that stand in them."""
        positions, offsets = _ragged_rows(self.offsets, rows)
        present, index = torch.unique(self.index[positions], return_inverse=True)
        return HashedTexts(self.words.select(present), index, offsets)

    def to(self, device: torch.device | str) -> HashedTexts:
        """The same texts on ``device``."""
        return HashedTexts(self.words.to(device), self.index.to(device), self.offsets.to(device))


@dataclass(frozen=True)
class HashedEncoderConfig:
    """What a text is cut into, and the sizes of the encoder.

    Attributes:
        lowercase: words that differ in case alone are one.
        max_words: words of a text that are read; the rest is cut off.
        word_buckets: hash buckets of whole words, each with an embedding; words that share one share it.
        gram_sizes: sizes of the character n-grams, which are cut from a word with < before and > behind it;
            none: whole words alone.
        gram_buckets: hash buckets of the n-grams of each size.
        dim: size of the embeddings.
        gram_layer: the sum of a word's n-grams of one size goes through a tanh layer of its own (Chidambaram et
            al., 2019); false: it is added as it is.
        out_dim: size of the vector of a text, by a linear layer behind the mean; 0: the mean itself.
        init_scale: standard deviation of the embeddings at the start.
    """

    lowercase: bool = True
    max_words: int = 64
    word_buckets: int = 32768
    gram_sizes: tuple[int, ...] = (3, 4)
    gram_buckets: int = 32768
    dim: int = 128
    gram_layer: bool = True
    out_dim: int = 128
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (
            ("max_words", 1), ("word_buckets", 1), ("gram_buckets", 1), ("dim", 1), ("out_dim", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(
                    f"HashedEncoderConfig: {name} must be at least {least}, got {getattr(self, name)}"
                )
        sizes = self.gram_sizes
        if len(set(sizes)) != len(sizes) or any(size < 1 for size in sizes):
            raise ValueError(
                f"HashedEncoderConfig: gram_sizes must be different numbers, 1 or more, got {list(sizes)}"
            )
        if not self.init_scale > 0:
            raise ValueError(f"HashedEncoderConfig: init_scale must be positive, got {self.init_scale}")


class HashedWordEmbedder(nn.Module):
    """A vector for each word: ``E[h(w)] + sum_n tanh(W_n sum_{g in grams_n(w)} G_n[h(g)] + b_n)``.

    The input layer of Chidambaram et al. (2019), section 2.3, with hash buckets in place of the list of known words.

    Args:
        config: sizes.

    Shape:
        :class:`HashedWords` of m words -> ``float32[m, dim]``.
    """

    def __init__(self, config: HashedEncoderConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.word_buckets, config.dim)
        self.grams = nn.ModuleList(
            nn.EmbeddingBag(config.gram_buckets, config.dim, mode="sum", include_last_offset=True)
            for _ in config.gram_sizes
        )
        sizes = config.gram_sizes if config.gram_layer else ()
        self.layers = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in sizes)
        for table in (self.words, *self.grams):
            nn.init.normal_(table.weight, std=config.init_scale)

    def tables(self) -> list[nn.Parameter]:
        """The embedding tables, which may be given a learning rate of their own."""
        return [self.words.weight, *(table.weight for table in self.grams)]  # type: ignore[list-item]

    def forward(self, words: HashedWords) -> Tensor:
        """The vectors of the words."""
        vectors: Tensor = self.words(words.buckets)
        for number, table in enumerate(self.grams):
            part = table(words.grams[number], words.offsets[number])
            if len(self.layers):
                part = torch.tanh(self.layers[number](part))
            vectors = vectors + part
        return vectors


class HashedTextEncoder(nn.Module):
    """The mean of a text's word vectors, through a linear layer: ``P mean_t x(w_t) + c``.

    Each distinct word of a batch is embedded once. The order of words does not matter; a text without words is
    the zero mean. More layers over words (Transformers) belong between :attr:`embedder` and the mean.

    Args:
        config: sizes.

    Shape:
        :class:`HashedTexts` of n texts -> ``float32[n, out_dim]``.
    """

    def __init__(self, config: HashedEncoderConfig) -> None:
        super().__init__()
        self.embedder = HashedWordEmbedder(config)
        self.projection = nn.Linear(config.dim, config.out_dim) if config.out_dim else None
        self.out_dim = config.out_dim or config.dim

    def tables(self) -> list[nn.Parameter]:
        """The embedding tables."""
        return self.embedder.tables()

    def forward(self, texts: HashedTexts) -> Tensor:
        """The vectors of the texts."""
        vectors = self.embedder(texts.words)
        mean = embedding_bag(texts.index, vectors, texts.offsets, mode="mean", include_last_offset=True)
        return mean if self.projection is None else self.projection(mean)
