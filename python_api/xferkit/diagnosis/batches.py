"""Batches of several tasks whose sizes are exact, and whose examples of a task do not depend on the other tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from xferkit.data.batches import DomainBatch
from xferkit.data.ragged import RaggedLabels, Texts
from xferkit.data.samplers import EndlessOrder
from xferkit.data.seeding import derive_seed
from xferkit.data.streams import DomainData
from xferkit.models import TokenSequences
from xferkit.models.inputs import Spellings

__all__ = ["KnownTexts", "TaskStream", "equal_shares", "temperature_shares"]

# Shares are fractions, so that nothing is lost over a training; this fine at least.
_FINE = 10**6


def equal_shares(num_tasks: int) -> list[Fraction]:
    """The same share for each task."""
    return [Fraction(1, num_tasks)] * num_tasks


def temperature_shares(sizes: Sequence[int], temperature: float) -> list[Fraction]:
    """Shares in proportion to n^(1/T), summing to 1.

    Args:
        sizes: n of each task, at least 1.
        temperature: T, above 0.
    """
    logits = torch.tensor([math.log(size) / temperature for size in sizes], dtype=torch.float64)
    whole = [Fraction(share).limit_denominator(_FINE) for share in logits.softmax(0).tolist()]
    return [share / sum(whole) for share in whole]


class TaskStream:
    """Batches without end. Over n batches each task has n times its share of them, to within one or two examples.

    A task's examples come in an order of its own, shuffled again at every pass, that depends on the seed, the stream's
    name and the task's name alone.

    Args:
        domains: the tasks; their place is their number in the batch.
        batch_size: examples of all tasks together.
        shares: of each task, summing to 1.
        seed: of all generators.
        name: the stream's name.
        shared_mean: batches say that a task's loss is its sum over the batch divided by its share of all examples, so
            that with these shares as weights the loss is the mean over the batch. A mean of each task's own would
            count a rare task twice as rare, which stands in some of the batches alone.
    """

    def __init__(
        self,
        domains: Sequence[DomainData],
        batch_size: int,
        shares: Sequence[Fraction],
        *,
        seed: int,
        name: str,
        shared_mean: bool = False,
    ) -> None:
        self.domains, self._shares, self._size = list(domains), list(shares), batch_size
        self._count_by = torch.tensor([float(share) for share in shares]) if shared_mean else None
        self._orders = [
            EndlessOrder(
                len(d.inputs), torch.Generator().manual_seed(derive_seed(seed, "task", name, d.name))
            )
            for d in domains
        ]
        self._owed = [Fraction(0)] * len(self.domains)
        #: Examples of each task drawn so far.
        self.seen: dict[str, int] = {d.name: 0 for d in domains}

    def draw(self) -> TaskDraw:
        """The next batch as rows of each task."""
        rows = [order.take(count) for order, count in zip(self._orders, self._counts(), strict=True)]
        for domain, own in zip(self.domains, rows, strict=True):
            self.seen[domain.name] += len(own)
        return TaskDraw(self.domains, rows, self._count_by)

    def next(self) -> DomainBatch:
        """The next batch: the first task's examples, then the second's, and so on."""
        return self.draw().shard()

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {
            "orders": [order.state_dict() for order in self._orders],
            "owed": [str(owed) for owed in self._owed],
            "seen": dict(self.seen),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on where ``state`` was taken; ValueError where it is of other tasks."""
        if list(state["seen"]) != list(self.seen):
            raise ValueError(f"the saved position is of {list(state['seen'])}, here are {list(self.seen)}")
        for order, kept in zip(self._orders, state["orders"], strict=True):
            order.load_state_dict(kept)
        self._owed = [Fraction(owed) for owed in state["owed"]]
        self.seen = dict(state["seen"])

    def _counts(self) -> list[int]:
        """Examples of each task in the next batch: what is owed to each, rounded so that the batch is full."""
        owed = [o + self._size * share for o, share in zip(self._owed, self._shares, strict=True)]
        counts = [max(0, math.floor(o)) for o in owed]
        places = range(len(owed))
        while sum(counts) < self._size:
            counts[max(places, key=lambda i: owed[i] - counts[i])] += 1
        while sum(counts) > self._size:
            counts[min((i for i in places if counts[i]), key=lambda i: owed[i] - counts[i])] -= 1
        self._owed = [o - count for o, count in zip(owed, counts, strict=True)]
        return counts


class TaskDraw:
    """One batch of a :class:`TaskStream`."""

    def __init__(
        self, domains: Sequence[DomainData], rows: Sequence[Tensor], count_by: Tensor | None = None
    ) -> None:
        self._domains, self._rows, self._count_by = domains, rows, count_by

    def shard(self, index: int = 0, num_shards: int = 1, replicas: int = 1) -> DomainBatch:
        """The batch; ValueError where a part of it is asked for: runs are small, and one process makes each."""
        if num_shards != 1:
            raise ValueError(f"TaskStream: expected one process and no accumulation, got {num_shards} parts")
        inputs, labels, numbers = [], [], []
        for number, (domain, rows) in enumerate(zip(self._domains, self._rows, strict=True)):
            if not len(rows):
                continue
            inputs.append(domain.inputs.select(rows))
            numbers.append(torch.full((len(rows),), number))
            if domain.labels is not None:
                own = domain.labels
                labels.append(own.select(rows) if isinstance(own, RaggedLabels) else own[rows])
        batch = inputs[0] if len(inputs) == 1 else TokenSequences.concat(inputs)
        found = DomainBatch(batch, torch.cat(numbers), _stacked(labels) if labels else None)
        if self._count_by is None or found.labels is None:
            return found
        texts, tokens = len(found.domains), int((found.labels >= 0).sum())
        return replace(found, text_counts=texts * self._count_by, token_counts=tokens * self._count_by)


def _stacked(labels: Sequence[Tensor]) -> Tensor:
    if labels[0].dim() == 1:
        return torch.cat(list(labels))
    width = max(own.shape[1] for own in labels)
    return torch.cat([pad(own, (0, width - own.shape[1]), value=-1) for own in labels])


class KnownTexts:
    """Texts in which tokens that were too rare in the training texts of a run are unknown (1).

    Numbers stay those of all tasks together, so that the parameters of runs on other tasks have the same sizes and the
    same starting values; yet no token has an embedding that its own run never trained.

    Args:
        texts: the texts.
        tokens: ``int64[vocabulary]``, what becomes of each token number.
        chars: the same of the characters of words, where there are any.
    """

    def __init__(self, texts: Texts, tokens: Tensor, chars: Tensor | None = None) -> None:
        self._texts, self._tokens, self._chars = texts, tokens, chars
        self.lengths = texts.lengths

    def __len__(self) -> int:
        return len(self._texts)

    def select(self, index: Tensor) -> TokenSequences:
        """The texts ``index`` as a batch."""
        batch = self._texts.select(index)
        spellings = batch.spellings
        if spellings is not None and self._chars is not None:
            chars = spellings.chars
            known = TokenSequences(self._chars[chars.ids], chars.lengths, chars.flags)
            spellings = Spellings(known, spellings.index)
        return TokenSequences(self._tokens[batch.ids], batch.lengths, batch.flags, spellings)

    @staticmethod
    def table(counts: Tensor, min_count: int) -> Tensor:
        """For tokens met ``counts[number]`` times: their own number, or 1 below ``min_count``; 0 (padding) stays."""
        numbers = torch.arange(len(counts))
        return torch.where((counts >= min_count) | (numbers == 0), numbers, 1)
