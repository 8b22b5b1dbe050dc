"""Masked language modelling: endless batches of one language each, and development sets with fixed masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xferkit.data.masked_batches import (
    FIRST_PIECE,
    MaskedTextBatch,
    MaskedTextDraw,
    Masking,
    ShareMeasure,
    TokenCorpus,
    temperature_shares,
)
from xferkit.data.samplers import EndlessOrder, make_shares, set_generator
from xferkit.data.seeding import derive_seed

__all__ = [
    "FIRST_PIECE",
    "LanguageSampler",
    "MaskedTextBatch",
    "MaskedTextDraw",
    "MaskedTextStream",
    "Masking",
    "ShareMeasure",
    "TokenCorpus",
    "fixed_batches",
    "temperature_shares",
]

LanguageSampler = Literal["temperature", "cycling"]
"""Whose turn a batch is: a language drawn by :func:`temperature_shares`, or each in turn."""


class MaskedTextStream:
    """Batches without end, each of one language; every text of a language comes once a pass.

    The order of a language and its masks depend on the seed, the stream's name and the language's name alone.

    Args:
        corpora: the languages; their places are the numbers in batches.
        batch_size: texts in a batch.
        masking: which tokens are masked, and how.
        max_length: texts are cut behind so many tokens.
        seed: seed of all generators.
        name: the stream's name, mixed into the seeds.
        sampler: whose turn a batch is.
        temperature: T of :func:`temperature_shares`.
        by: what L is there.
        bucket: 0, or the number k of batches of a language that are drawn together, sorted by length and dealt out in
            random order: less padding, but batches of long texts and of short ones rather than each of all lengths.
        only: the one language that batches are of, with the number that it has among all.

    Raises:
        ValueError: no language, one name twice, a language without texts, a text without tokens or with a number that
            is no token's, or an option out of range.
    """

    def __init__(
        self,
        corpora: Sequence[TokenCorpus],
        batch_size: int,
        masking: Masking,
        *,
        max_length: int,
        seed: int,
        name: str = "masked",
        sampler: LanguageSampler = "temperature",
        temperature: float = 5.0,
        by: ShareMeasure = "tokens",
        bucket: int = 0,
        only: str | None = None,
    ) -> None:
        self._where = f"MaskedTextStream {name!r}"
        self.names = tuple(corpus.name for corpus in corpora)
        _check(corpora, masking, self._where)
        if max_length < 1 or bucket < 0 or by not in get_args(ShareMeasure):
            raise ValueError(
                f"{self._where}: expected max_length of 1 or more, bucket of 0 or more and by one of "
                f"{', '.join(get_args(ShareMeasure))}, got {max_length}, {bucket} and {by!r}"
            )
        if sampler not in get_args(LanguageSampler):
            raise ValueError(
                f"{self._where}: sampler must be one of {', '.join(get_args(LanguageSampler))}, got {sampler!r}"
            )

        def generator(*names: str) -> torch.Generator:
            return torch.Generator().manual_seed(derive_seed(seed, name, *names))

        self._corpora, self._masking, self._max_length = tuple(corpora), masking, max_length
        try:
            self._shares = make_shares(
                sampler,
                [corpus.size(by) for corpus in corpora],
                1,
                temperature=temperature,
                generator=generator("", "languages"),
            )
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from None
        self._only = None if only is None else self.number_of(only)
        self._decks = [
            _Deck(
                corpus.texts.lengths.clamp(max=max_length),
                batch_size,
                bucket,
                generator(corpus.name, "order"),
                generator(corpus.name, "buckets"),
            )
            for corpus in corpora
        ]
        self._masks = [generator(corpus.name, "masks") for corpus in corpora]
        self._identity: dict[str, Any] = {
            "name": name,
            "seed": seed,
            "sampler": sampler,
            "temperature": float(temperature),
            "by": by,
            "only": only,
            "batch_size": batch_size,
            "bucket": bucket,
            "max_length": max_length,
            "masking": [masking.vocab_size, masking.share, *masking.split],
            "languages": list(self.names),
            "content": [corpus.digest() for corpus in corpora],
        }

    def number_of(self, language: str) -> int:
        """The number of a language; ValueError when it is none of the stream's."""
        if language not in self.names:
            raise ValueError(
                f"{self._where}: expected one of the languages {', '.join(self.names)}, got {language!r}"
            )
        return self.names.index(language)

    def draw(self, language: str | None = None) -> MaskedTextDraw:
        """The next batch.

        Args:
            language: draw the next one of this language, and leave whose turn it is as it is.
        """
        if language is not None:
            number = self.number_of(language)
        else:
            number = self._shares.next().index(1) if self._only is None else self._only
        return MaskedTextDraw.of(
            self._corpora[number],
            self._decks[number].take(),
            number,
            self._masking,
            self._max_length,
            self._masks[number],
        )

    def next(self, language: str | None = None) -> MaskedTextBatch:
        """The next batch, whole."""
        return self.draw(language).shard()

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in; about 15 KiB a language."""
        return {
            **self._identity,
            "shares": self._shares.state_dict(),
            "decks": [deck.state_dict() for deck in self._decks],
            "masks": [generator.get_state() for generator in self._masks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the next draw is the one that would have come.

        Raises:
            ValueError: when it was taken over other data or with other options; the stream stays where it was.
        """
        for key, here in self._identity.items():
            if state.get(key) != here:
                raise ValueError(
                    f"{self._where}: the saved position belongs to other data or settings: {key} was "
                    f"{state.get(key)!r}, here it is {here!r}"
                )
        before = self.state_dict()
        try:
            self._restore(state)
        except (KeyError, TypeError, ValueError) as error:
            self._restore(before)
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{self._where}: the saved position cannot be used: {what}") from None

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._shares.load_state_dict(state["shares"])
        for deck, kept in zip(self._decks, state["decks"], strict=True):
            deck.load_state_dict(kept)
        for generator, kept in zip(self._masks, state["masks"], strict=True):
            set_generator(generator, kept)


class _Deck:
    """The rows of one language's batches: in order, or some batches at once, sorted by length and shuffled."""

    def __init__(
        self, lengths: Tensor, batch_size: int, bucket: int, order: torch.Generator, dealer: torch.Generator
    ) -> None:
        self._lengths, self._batch_size, self._bucket, self._dealer = lengths, batch_size, bucket, dealer
        self._order = EndlessOrder(len(lengths), order)
        self._pool: list[Tensor] = []
        self._taken = 0
        self._start = self._position()

    def take(self) -> Tensor:
        """``int64[batch_size]``, the next batch."""
        if self._taken == len(self._pool):
            self._start = self._position()
            self._pool, self._taken = self._deal(), 0
        self._taken += 1
        return self._pool[self._taken - 1]

    def state_dict(self) -> dict[str, Any]:
        """Where the batches that were drawn together began, and how many of them are gone."""
        if self._taken == len(self._pool):
            return {**self._position(), "taken": 0}
        return {**self._start, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; ValueError when it does not fit."""
        taken = state["taken"]
        if not isinstance(taken, int) or not 0 <= taken <= max(1, self._bucket):
            raise ValueError(f"'taken' must be between 0 and {max(1, self._bucket)}, got {taken!r}")
        self._order.load_state_dict(state["order"])
        set_generator(self._dealer, state["dealer"])
        self._pool, self._taken, self._start = [], 0, self._position()
        if taken:
            self._pool, self._taken = self._deal(), taken

    def _deal(self) -> list[Tensor]:
        rows = self._order.take(self._batch_size * max(1, self._bucket))
        if not self._bucket:
            return [rows]
        batches = rows[self._lengths[rows].argsort(stable=True)].split(self._batch_size)
        return [batches[i] for i in torch.randperm(self._bucket, generator=self._dealer).tolist()]

    def _position(self) -> dict[str, Any]:
        return {"order": self._order.state_dict(), "dealer": self._dealer.get_state()}


def fixed_batches(
    corpus: TokenCorpus,
    masking: Masking,
    *,
    max_length: int,
    batch_size: int = 64,
    seed: int = 0,
    language: int = 0,
) -> list[MaskedTextBatch]:
    """All texts of a development set once, in batches of similar length, always with the same masks.

    The masks depend on the seed, the corpus (its name and texts) and ``max_length``, not on the size of batches.

    Args:
        corpus: the texts.
        masking: which tokens are masked, and how.
        max_length: texts are cut behind so many tokens.
        batch_size: texts in a batch.
        seed: of the masks.
        language: number of the language.

    Raises:
        ValueError: a corpus without texts, a text without tokens or with a number that is no token's.
    """
    _check([corpus], masking, "fixed_batches")
    generator = torch.Generator().manual_seed(derive_seed(seed, "fixed masks", corpus.name))
    draw = MaskedTextDraw.of(corpus, torch.arange(len(corpus)), language, masking, max_length, generator)
    return [draw.select(rows) for rows in draw.lengths.argsort(stable=True).split(batch_size)]


def _check(corpora: Sequence[TokenCorpus], masking: Masking, where: str) -> None:
    names = [corpus.name for corpus in corpora]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{where}: expected at least one language, each with a name of its own, got {names}")
    for corpus in corpora:
        if not len(corpus):
            raise ValueError(f"{where}: language {corpus.name!r} has no texts")
        empty = (corpus.texts.lengths == 0).nonzero()
        if len(empty):
            raise ValueError(
                f"{where}: text {int(empty[0])} of language {corpus.name!r} has no tokens; expected at least 1"
            )
        least, most = int(corpus.texts.flat.min()), int(corpus.texts.flat.max())
        if least < 1 or most >= masking.mask:
            raise ValueError(
                f"{where}: language {corpus.name!r} holds the numbers {least} to {most}; expected 1 to "
                f"{masking.mask - 1}, as 0 is padding and {masking.mask} the mask"
            )
