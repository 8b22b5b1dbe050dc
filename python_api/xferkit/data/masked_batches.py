"""Texts of one language with tokens to name: numbered corpora, masks, batches and their shards."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from xferkit.data.ragged import Ragged

__all__ = [
    "FIRST_PIECE",
    "MaskedTextBatch",
    "MaskedTextDraw",
    "Masking",
    "ShareMeasure",
    "TokenCorpus",
    "temperature_shares",
]

ShareMeasure = Literal["tokens", "texts"]
"""What a language's size is, for its share."""

#: Number of the first piece of a vocabulary; 0 is padding and 1 unknown.
FIRST_PIECE = 2


class _Vocabulary(Protocol):
    def __len__(self) -> int: ...

    def numbers(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class TokenCorpus:
    """The numbered texts of one language.

    Attributes:
        name: the language, for seeds and errors.
        texts: numbers of its n texts.
    """

    name: str
    texts: Ragged

    @staticmethod
    def encode(name: str, texts: Iterable[str], vocabulary: _Vocabulary) -> TokenCorpus:
        """Number the texts with one vocabulary, shared by all languages.

        Args:
            name: the language.
            texts: gone through once.
            vocabulary: a :class:`~xferkit.data.tokenization.TokenizerVocabulary`, or what numbers texts alike.
        """
        flat, offsets = array("i"), array("q", [0])
        for text in texts:
            flat.extend(vocabulary.numbers(text))
            offsets.append(len(flat))
        return TokenCorpus(
            name,
            Ragged(torch.from_numpy(np.array(flat, np.int32)), torch.from_numpy(np.array(offsets, np.int64))),
        )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return len(self.texts.flat)

    def size(self, by: ShareMeasure) -> int:
        """Tokens or texts."""
        return self.num_tokens if by == "tokens" else len(self)

    def digest(self) -> str:
        """A short hash of all numbers and of where texts begin."""
        digest = hashlib.blake2b(self.texts.offsets.numpy().tobytes(), digest_size=16)
        digest.update(self.texts.flat.numpy().tobytes())
        return digest.hexdigest()


def temperature_shares(sizes: Sequence[int], temperature: float) -> Tensor:
    r"""``float64[languages]``, how often each language is drawn.

    .. math:: P_i = \frac{(L_i / \sum_k L_k)^{1/T}}{\sum_j (L_j / \sum_k L_k)^{1/T}}

    The same as :func:`~xferkit.data.samplers.make_shares` draws by. XLM (Conneau and Lample, 2019) has 1/T = 0.5 and
    writes it alpha.

    Args:
        sizes: L, tokens or texts of each language, above 0.
        temperature: T, above 0; 1: in proportion, towards infinity: alike.

    Raises:
        ValueError: a size or T that is not above 0.
    """
    if not temperature > 0 or not all(size > 0 for size in sizes):
        raise ValueError(
            f"temperature_shares: sizes and temperature must be above 0, got {list(sizes)} and {temperature}"
        )
    return (torch.tensor(list(sizes), dtype=torch.float64).log() / temperature).softmax(0)


@dataclass(frozen=True)
class Masking:
    """Which tokens a model has to name, and what stands in their place.

    Each token is selected with probability ``share``, by itself; where none of a batch is, one is drawn. In the place
    of a selected one stands the mask, any piece, or the token itself. Devlin et al. (2019); Conneau and Lample (2019).

    Attributes:
        vocab_size: ``len(vocabulary) + 1``. A vocabulary's numbers are 0 padding, 1 unknown and from 2 on the
            pieces; the last one, ``len(vocabulary)``, is the mask, which no text holds.
        share: of the tokens that are selected.
        split: probabilities of the mask, of a piece drawn evenly from all (neither padding, unknown nor mask),
            and of the token itself.
    """

    vocab_size: int
    share: float = 0.15
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)

    def __post_init__(self) -> None:
        if self.vocab_size < FIRST_PIECE + 2:
            raise ValueError(
                f"Masking: vocab_size must be at least {FIRST_PIECE + 2} (padding, unknown, a piece, the mask), got "
                f"{self.vocab_size}"
            )
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"Masking: share must be in (0, 1], got {self.share}")
        if len(self.split) != 3 or min(self.split) < 0 or abs(sum(self.split) - 1.0) > 1e-9:
            raise ValueError(f"Masking: split must be three probabilities that sum to 1, got {self.split}")

    @property
    def mask(self) -> int:
        """The mask's number."""
        return self.vocab_size - 1

    def apply(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Select tokens and put others in their place.

        Args:
            tokens: ``int64[total]``, real tokens without padding, at least one.
            generator: draws everything.

        Returns:
            The tokens that a model reads, ``int64[total]``, and which are selected, ``bool[total]``.
        """
        selected = torch.rand(len(tokens), generator=generator) < self.share
        if not selected.any():
            selected[torch.randint(len(tokens), (1,), generator=generator)] = True
        places = selected.nonzero().squeeze(1)
        kind = torch.rand(len(places), generator=generator, dtype=torch.float64)
        pieces = torch.randint(FIRST_PIECE, self.mask, (len(places),), generator=generator)
        masked, piece = self.split[0], self.split[0] + self.split[1]
        found = tokens[places]
        found = found.where(kind >= piece, pieces).masked_fill_(kind < masked, self.mask)
        return tokens.index_copy(0, places, found), selected


@dataclass(frozen=True)
class MaskedTextBatch:
    """Texts of one language with some tokens to name, or one shard of such a batch.

    Attributes:
        tokens: ``int64[texts, length]``, what the model reads, 0 on padding.
        lengths: ``int64[texts]``.
        positions: ``int64[selected]``, places of the selected tokens in ``tokens.view(-1)``.
        labels: ``int64[selected]``, the tokens that stood there.
        language: number of the language.
        token_count: ``float[]``, selected tokens of the whole batch divided by the number of replicas, which losses
            divide by; None: those of this batch.
    """

    tokens: Tensor
    lengths: Tensor
    positions: Tensor
    labels: Tensor
    language: int
    token_count: Tensor | None = None

    @property
    def share(self) -> Tensor | float:
        """This shard's part of the batch's selected tokens, see :class:`~xferkit.data.batches.DomainBatch`."""
        return 1.0 if self.token_count is None else len(self.labels) / self.token_count

    def to(self, device: torch.device | str) -> MaskedTextBatch:
        """The same batch on ``device``; this one where it is there already."""
        if self.tokens.device == torch.device(device):
            return self
        count = None if self.token_count is None else self.token_count.to(device)
        return MaskedTextBatch(
            self.tokens.to(device),
            self.lengths.to(device),
            self.positions.to(device),
            self.labels.to(device),
            self.language,
            count,
        )


@dataclass(frozen=True)
class MaskedTextDraw:
    """A batch as it was drawn: masked once, for all its shards.

    Attributes:
        labels: ``int64[texts, length]``, the texts as they are, 0 on padding.
        tokens: ``int64[texts, length]``, what the model reads.
        selected: ``bool[texts, length]``.
        lengths: ``int64[texts]``.
        language: number of the language.
    """

    labels: Tensor
    tokens: Tensor
    selected: Tensor
    lengths: Tensor
    language: int

    @staticmethod
    def of(
        corpus: TokenCorpus,
        rows: Tensor,
        language: int,
        masking: Masking,
        max_length: int,
        generator: torch.Generator,
    ) -> MaskedTextDraw:
        """The texts ``rows`` (``int64[m]``), cut behind ``max_length`` tokens and masked."""
        lengths = (corpus.texts.offsets[rows + 1] - corpus.texts.offsets[rows]).clamp_(max=max_length)
        place = torch.arange(int(lengths.max()))
        real = place < lengths.unsqueeze(1)
        flat = corpus.texts.flat[(corpus.texts.offsets[rows].unsqueeze(1) + place)[real]].long()
        masked, chosen = masking.apply(flat, generator)
        padding = torch.zeros(real.shape, dtype=torch.int64)
        return MaskedTextDraw(
            padding.masked_scatter(real, flat),
            padding.masked_scatter(real, masked),
            torch.zeros_like(real).masked_scatter_(real, chosen),
            lengths,
            language,
        )

    def select(self, rows: Tensor | slice, token_count: Tensor | None = None) -> MaskedTextBatch:
        """Some of the texts, padded to the longest of them."""
        lengths = self.lengths[rows]
        longest = int(lengths.max()) if len(lengths) else 0
        selected = self.selected[rows, :longest]
        return MaskedTextBatch(
            self.tokens[rows, :longest].contiguous(),
            lengths,
            selected.flatten().nonzero().squeeze(1),
            self.labels[rows, :longest][selected],
            self.language,
            token_count,
        )

    def shard(self, index: int = 0, num_shards: int = 1, replicas: int = 1) -> MaskedTextBatch:
        """Every ``num_shards``-th text from text ``index`` on, see :class:`~xferkit.data.streams.Draw`.

        A shard may hold no selected token, but the whole batch holds one.

        Raises:
            ValueError: when the numbers do not go together or the batch has fewer texts than shards.
        """
        if not 0 <= index < num_shards or replicas < 1 or num_shards % replicas:
            raise ValueError(
                f"MaskedTextStream: expected a shard in [0, num_shards) and num_shards a multiple of replicas, got "
                f"shard {index} of {num_shards} and {replicas} replicas"
            )
        if len(self.lengths) < num_shards:
            raise ValueError(
                f"MaskedTextStream: a batch of {len(self.lengths)} texts cannot be cut into {num_shards} shards "
                "(processes times accumulation steps); a larger batch_size is needed"
            )
        return self.select(slice(index, None, num_shards), self.selected.sum() / replicas)
