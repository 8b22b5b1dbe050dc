"""Endless batches of several domains, each domain with a generator of its own, from any position exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from xferkit.data.batches import DomainBatch
from xferkit.data.joining import join_labels, join_texts
from xferkit.data.ragged import RaggedLabels, Texts
from xferkit.data.samplers import EndlessOrder, SamplerKind, make_shares, set_generator
from xferkit.data.seeding import derive_seed

__all__ = ["BatchStream", "DomainData", "DomainStream", "Draw"]


class Draw(Protocol):
    """One batch as it was drawn, of which every process and every accumulation step takes its shard."""

    def shard(self, index: int = 0, num_shards: int = 1, replicas: int = 1) -> Any:
        """Shard ``index`` of ``num_shards``, with the counts of the whole batch divided by ``replicas``.

        A :class:`DomainBatch`, or what else the stream's method reads and has ``to(device)``.
        """
        ...


class BatchStream(Protocol):
    """An endless source of batches whose position can be kept."""

    def draw(self) -> Draw:
        """Advance by one batch."""
        ...

    def next(self) -> Any:
        """The next batch, whole."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position: tensors, numbers, texts, lists and dictionaries of these."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on where ``state`` was taken; ValueError when it was taken over other data."""
        ...


@dataclass(frozen=True)
class DomainData:
    """The texts of one domain (language).

    Attributes:
        name: the domain, for the seed of its generator and for errors.
        inputs: its n texts.
        labels: ``int64[n]``, labels of tokens (ragged, or ``int64[n, length]`` with -1 on padding), or None
            for unlabelled texts.
    """

    name: str
    inputs: Texts
    labels: Tensor | RaggedLabels | None = None


class DomainStream:
    """Batches of several domains, without end.

    Each domain is gone through in an order of its own, shuffled again at every pass, which depends on the
    seed, the stream's name and the domain, so that with the balanced sampler adding a domain or a stream
    leaves every other draw as it was.

    Args:
        domains: the domains; their place is their number in the batch.
        batch_size: texts of each domain in a batch (``"balanced"``), or of all together.
        seed: seed of all generators.
        name: the stream's name, mixed into the seeds.
        sampler: how a batch is shared out among the domains, see :func:`~xferkit.data.samplers.make_shares`.
        temperature: T of the temperature sampler.
        bucket: 0, or the number k of batches whose texts are drawn together, sorted by length and dealt out
            to the k batches in random order, so that texts of a batch are of similar lengths in all domains
            and padding is less. Each text still comes once a pass.
        device: where batches go; None leaves them where the texts are.

    Raises:
        ValueError: when no domain is given, one is empty, only some have labels, labels do not
            fit their texts, or an option is out of range.
    """

    def __init__(
        self,
        domains: Sequence[DomainData],
        batch_size: int,
        *,
        seed: int,
        name: str,
        sampler: SamplerKind = "balanced",
        temperature: float = 1.0,
        bucket: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self._where = f"DomainStream {name!r}"
        _check(domains, self._where)
        if bucket < 0:
            raise ValueError(f"{self._where}: bucket must be at least 0, got {bucket}")
        self.inputs = join_texts([domain.inputs for domain in domains])
        lengths = self.inputs.lengths
        self._lengths, self._place = lengths.cpu(), lengths.device
        self._device, self._bucket = device, bucket

        def generator(*names: str) -> torch.Generator:
            return torch.Generator().manual_seed(derive_seed(seed, name, *names))

        sizes = [len(domain.inputs) for domain in domains]
        self._offsets = [0, *torch.tensor(sizes).cumsum(0).tolist()][:-1]
        self._orders = [
            EndlessOrder(size, generator(domain.name)) for size, domain in zip(sizes, domains, strict=True)
        ]
        try:
            self.labels = join_labels([domain.labels for domain in domains])
            # Two names after the stream's, so that no domain's name gives the same seed.
            self._shares = make_shares(
                sampler, sizes, batch_size, temperature=temperature, generator=generator("", "domains")
            )
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from None
        self._dealer = generator("", "buckets")
        self._identity: dict[str, Any] = {
            "name": name,
            "seed": seed,
            "sampler": sampler,
            "temperature": float(temperature),
            "batch_size": batch_size,
            "bucket": bucket,
            "domains": [domain.name for domain in domains],
            "sizes": sizes,
        }
        self._digest: str | None = None
        self._pool: list[list[Tensor]] = []
        self._taken = 0
        self._start = self._generators()

    def draw(self) -> DomainDraw:
        """The next batch as rows of the joined texts; nothing is gathered before a shard is asked for."""
        if self._taken == len(self._pool):
            self._start = self._generators()
            self._pool, self._taken = self._deal(), 0
        self._taken += 1
        return DomainDraw(self, self._pool[self._taken - 1])

    def next(self) -> DomainBatch:
        """The next batch: the first domain's texts, then the second's, and so on."""
        return self.draw().shard()

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in; about 5 KiB a domain."""
        if self._taken == len(self._pool):
            start, taken = self._generators(), 0
        else:
            start, taken = self._start, self._taken
        return {**self._identity, "lengths": self._lengths_digest(), "start": start, "taken": taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the next draw is the one that would have come.

        Raises:
            ValueError: when it was taken over other domains, texts of other lengths, or with other options.
        """
        for key, here in (*self._identity.items(), ("lengths", self._lengths_digest())):
            there = state.get(key)
            if there != here:
                raise ValueError(
                    f"{self._where}: the saved position belongs to other data or settings: {key} was "
                    f"{there!r}, here it is {here!r}"
                )
        taken = state.get("taken")
        if not isinstance(taken, int) or not 0 <= taken <= max(1, self._bucket):
            raise ValueError(f"{self._where}: the saved position holds no valid 'taken': {taken!r}")
        before = self._generators()
        try:
            self._restore(state["start"])
        except (KeyError, TypeError, ValueError) as error:
            self._restore(before)
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{self._where}: the saved position cannot be used: {what}") from None
        self._pool, self._taken = [], 0
        if taken:
            self._start = self._generators()
            self._pool, self._taken = self._deal(), taken

    def _deal(self) -> list[list[Tensor]]:
        # A batch's number in the dealer's order is the rank of its lengths, in all domains at once: with an
        # order for each domain the longest text of the batch would pad the others all the same.
        shares = [self._shares.next() for _ in range(max(1, self._bucket))]
        ranked = torch.randperm(self._bucket, generator=self._dealer).tolist() if self._bucket else [0]
        pool: list[list[Tensor]] = [[] for _ in shares]
        for number, (order, offset) in enumerate(zip(self._orders, self._offsets, strict=True)):
            rows = order.take(sum(share[number] for share in shares)) + offset
            if self._bucket:
                rows = rows[self._lengths[rows].argsort(stable=True)]
            begin = 0
            for batch in ranked:
                end = begin + shares[batch][number]
                pool[batch].append(rows[begin:end])
                begin = end
        return pool

    def _generators(self) -> dict[str, Any]:
        return {
            "orders": [order.state_dict() for order in self._orders],
            "shares": self._shares.state_dict(),
            "dealer": self._dealer.get_state(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        for order, kept in zip(self._orders, state["orders"], strict=True):
            order.load_state_dict(kept)
        self._shares.load_state_dict(state["shares"])
        set_generator(self._dealer, state["dealer"])

    def _lengths_digest(self) -> str:
        if self._digest is None:
            self._digest = hashlib.blake2b(self._lengths.numpy().tobytes(), digest_size=16).hexdigest()
        return self._digest


class DomainDraw:
    """One batch of a :class:`DomainStream`, as rows of its joined texts.

    Args:
        stream: where the texts are.
        rows: for each domain the rows drawn, ``int64[texts of that domain]``.
    """

    def __init__(self, stream: DomainStream, rows: Sequence[Tensor]) -> None:
        self._stream, self._rows = stream, rows

    def shard(self, index: int = 0, num_shards: int = 1, replicas: int = 1) -> DomainBatch:
        """Every ``num_shards``-th text of the batch from text ``index`` on, hence also of each domain.

        Args:
            index: number of the shard, in ``[0, num_shards)``.
            num_shards: processes times accumulation steps.
            replicas: processes over which gradients are averaged; a divisor of ``num_shards``.

        Returns:
            The texts, domain after domain, with ``text_counts`` and ``token_counts`` of the whole batch
            divided by ``replicas``.

        Raises:
            ValueError: when the numbers do not go together or the batch has fewer texts than shards.
        """
        stream, where = self._stream, self._stream._where
        if not 0 <= index < num_shards:
            raise ValueError(f"{where}: shard {index} of {num_shards} shards does not exist")
        if replicas < 1 or num_shards % replicas:
            raise ValueError(
                f"{where}: num_shards must be a multiple of replicas, got {num_shards} and {replicas}"
            )
        sizes = torch.tensor([len(rows) for rows in self._rows])
        every = torch.cat(list(self._rows))
        if len(every) < num_shards:
            raise ValueError(
                f"{where}: a batch of {len(every)} texts cannot be cut into {num_shards} shards (processes "
                "times accumulation steps); a larger batch_size is needed"
            )
        domains = torch.arange(len(sizes)).repeat_interleave(sizes)
        tokens = torch.zeros(len(sizes), dtype=torch.int64).index_add_(0, domains, stream._lengths[every])
        rows, domains = every[index::num_shards], domains[index::num_shards]
        place = stream._place
        rows = rows.to(place)
        labels = stream.labels
        batch = DomainBatch(
            stream.inputs.select(rows),
            domains.to(place),
            labels.select(rows)
            if isinstance(labels, RaggedLabels)
            else None
            if labels is None
            else labels[rows],
            (sizes / replicas).to(place),
            (tokens / replicas).to(place),
        )
        return batch if stream._device is None else batch.to(stream._device)


def _check(domains: Sequence[DomainData], where: str) -> None:
    if not domains:
        raise ValueError(f"{where}: no languages given")
    for domain in domains:
        if not len(domain.inputs):
            raise ValueError(f"{where}: language {domain.name!r} has no texts")
        labels = domain.labels
        if labels is not None and len(labels) != len(domain.inputs):
            raise ValueError(
                f"{where}: language {domain.name!r} has {len(domain.inputs)} texts but labels for {len(labels)}"
            )
        if isinstance(labels, RaggedLabels):
            wrong = (labels.lengths != domain.inputs.lengths).nonzero()
            if len(wrong):
                row = int(wrong[0])
                raise ValueError(
                    f"{where}: text {row} of language {domain.name!r} has {int(domain.inputs.lengths[row])} "
                    f"tokens but {int(labels.lengths[row])} labels"
                )
    if len({domain.labels is None for domain in domains}) > 1:
        raise ValueError(f"{where}: either every language has labels or none has")
