"""Endless batches of pairs, each batch of one pair of languages, from any position exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from xferkit.data.samplers import EndlessOrder, set_generator
from xferkit.data.seeding import derive_seed
from xferkit.models.hashed_text import HashedTexts

__all__ = ["PairBatch", "PairData", "PairSampler", "PairStream"]

PairSampler = Literal["cycling", "proportional"]
"""Whose turn a step is: each pair of languages in turn, or drawn in proportion to how many pairs of texts it has."""


@dataclass(frozen=True)
class PairData:
    """The pairs of texts of two languages.

    Attributes:
        name: of the languages, for the seed and for errors.
        first: n texts.
        second: n texts; row i belongs to row i.
        groups: ``int64[n]``, see :func:`~xferkit.data.pairs.pair_groups`.
    """

    name: str
    first: HashedTexts
    second: HashedTexts
    groups: Tensor


@dataclass(frozen=True)
class PairBatch:
    """Pairs of texts of two languages.

    Attributes:
        first: n texts.
        second: n texts.
        groups: ``int64[n]``; pairs of one number are no negatives for each other.
        pair: number of the pair of languages.
    """

    first: HashedTexts
    second: HashedTexts
    groups: Tensor
    pair: int

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on ``device``; this one where it is there already."""
        if self.groups.device == torch.device(device):
            return self
        return PairBatch(self.first.to(device), self.second.to(device), self.groups.to(device), self.pair)


class PairStream:
    """Batches without end; every pair of texts comes once a pass.

    The order of each pair of languages depends on the seed, the stream's name and its own name alone.

    Args:
        pairs: the data; places are the numbers in batches.
        batch_size: pairs of texts in a batch.
        seed: seed of all generators.
        name: the stream's name, mixed into the seeds.
        sampler: which pair of languages a batch is of.

    Raises:
        ValueError: no data, empty data, or sides of different sizes.
    """

    def __init__(
        self,
        pairs: Sequence[PairData],
        batch_size: int,
        *,
        seed: int,
        name: str,
        sampler: PairSampler = "cycling",
    ) -> None:
        self._where = f"PairStream {name!r}"
        if not pairs or batch_size < 1:
            raise ValueError(
                f"{self._where}: expected at least one pair of languages and a batch size of 1 or more"
            )
        for data in pairs:
            if not len(data.first) == len(data.second) == len(data.groups) > 0:
                raise ValueError(
                    f"{self._where}: {data.name!r} has {len(data.first)} and {len(data.second)} texts and "
                    f"{len(data.groups)} groups; expected the same number, at least 1"
                )

        def generator(*names: str) -> torch.Generator:
            return torch.Generator().manual_seed(derive_seed(seed, name, *names))

        self._pairs, self._batch_size, self._turn = tuple(pairs), batch_size, 0
        self._orders = [EndlessOrder(len(data.first), generator(data.name)) for data in pairs]
        self._sampler, self._drawer = sampler, generator("", "pairs")
        self._shares = torch.tensor([len(data.first) for data in pairs], dtype=torch.float64)
        self._identity: dict[str, Any] = {
            "name": name,
            "seed": seed,
            "sampler": sampler,
            "batch_size": batch_size,
            "pairs": [data.name for data in pairs],
            "content": [_digest(data) for data in pairs],
        }

    def draw(self) -> PairDraw:
        """The next batch; nothing is gathered before its shard is asked for."""
        if self._sampler == "cycling":
            number = self._turn
            self._turn = (self._turn + 1) % len(self._pairs)
        else:
            number = int(torch.multinomial(self._shares, 1, generator=self._drawer))
        return PairDraw(self._pairs[number], self._orders[number].take(self._batch_size), number)

    def next(self) -> PairBatch:
        """The next batch."""
        return self.draw().shard()

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in; about 5 KiB a pair of languages."""
        return {
            **self._identity,
            "turn": self._turn,
            "drawer": self._drawer.get_state(),
            "orders": [order.state_dict() for order in self._orders],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: when it was taken over other data or with other options.
        """
        for key, here in self._identity.items():
            if state.get(key) != here:
                raise ValueError(
                    f"{self._where}: the saved position belongs to other data or settings: {key} was "
                    f"{state.get(key)!r}, here it is {here!r}"
                )
        turn = state.get("turn")
        if not isinstance(turn, int) or not 0 <= turn < len(self._pairs):
            raise ValueError(f"{self._where}: the saved position holds no valid 'turn': {turn!r}")
        set_generator(self._drawer, state["drawer"])
        for order, kept in zip(self._orders, state["orders"], strict=True):
            order.load_state_dict(kept)
        self._turn = turn


@dataclass(frozen=True)
class PairDraw:
    """One batch as rows.

    Attributes:
        data: whose rows.
        rows: ``int64[batch_size]``.
        number: of the pair of languages.
    """

    data: PairData
    rows: Tensor
    number: int

    def shard(self, index: int = 0, num_shards: int = 1, replicas: int = 1) -> PairBatch:
        """The batch, which is whole or nothing: its texts are each other's negatives.

        Raises:
            ValueError: for more shards than one.
        """
        if (index, num_shards, replicas) != (0, 1, 1):
            raise ValueError(
                f"PairStream: a batch of pairs cannot be cut into {num_shards} shards, as its texts are each other's "
                "negatives; expected one process and accumulation 1"
            )
        data, rows = self.data, self.rows
        return PairBatch(data.first.select(rows), data.second.select(rows), data.groups[rows], self.number)


def _digest(data: PairData) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for texts in (data.first, data.second):
        digest.update(texts.offsets.numpy().tobytes())
    return digest.hexdigest()
