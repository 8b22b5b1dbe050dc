"""Endless batches of several languages, each language with a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xferkit.methods.protocol import DomainBatch
from xferkit.models import TokenSequences
from xferkit.trainers.seeding import derive_seed

__all__ = ["DomainData", "DomainStream", "endless_indices"]


def endless_indices(num_items: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches ``int64[batch_size]`` of a shuffled range, shuffled again at every pass, without end.

    Every item comes once per pass; a batch may span two passes. The order depends on the generator alone,
    not on the global one.

    Raises:
        ValueError: when there is nothing to draw from or a batch is empty.
    """
    if num_items < 1 or batch_size < 1:
        raise ValueError(
            f"endless_indices: num_items and batch_size must be at least 1, got {num_items} and {batch_size}"
        )
    queue = torch.randperm(num_items, generator=generator)
    while True:
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(num_items, generator=generator)])
        yield queue[:batch_size]
        queue = queue[batch_size:]


@dataclass(frozen=True)
class DomainData:
    """The texts of one language.

    Attributes:
        name: the language, for the seed of its generator and for errors.
        inputs: its texts.
        labels: ``int64[n]``, or None for unlabelled texts.
    """

    name: str
    inputs: TokenSequences
    labels: Tensor | None = None


class DomainStream:
    """Batches with the same number of texts of every language, without end.

    A language's order depends on the seed, the stream's name and the language, so that adding a language or
    a stream leaves every other draw as it was.

    Args:
        domains: the languages; their place is their number in the batch.
        batch_size: texts of each language in a batch.
        seed: seed of all generators.
        name: the stream's name, mixed into the seeds.

    Raises:
        ValueError: when no language is given, one is empty, or only some have labels.
    """

    def __init__(self, domains: Sequence[DomainData], batch_size: int, *, seed: int, name: str) -> None:
        if not domains:
            raise ValueError(f"DomainStream {name!r}: no languages given")
        for domain in domains:
            if not len(domain.inputs):
                raise ValueError(f"DomainStream {name!r}: language {domain.name!r} has no texts")
        labels = [domain.labels for domain in domains if domain.labels is not None]
        if labels and len(labels) != len(domains):
            raise ValueError(f"DomainStream {name!r}: either every language has labels or none has")
        self.inputs = TokenSequences.concat([domain.inputs for domain in domains])
        self.labels = torch.cat(labels) if labels else None
        self._offsets, self._iterators = [], []
        offset = 0
        for domain in domains:
            generator = torch.Generator().manual_seed(derive_seed(seed, name, domain.name))
            self._offsets.append(offset)
            self._iterators.append(endless_indices(len(domain.inputs), batch_size, generator))
            offset += len(domain.inputs)
        self._domains = torch.arange(len(domains)).repeat_interleave(batch_size).to(self.inputs.ids.device)

    def next(self) -> DomainBatch:
        """The next batch: the first language's texts, then the second's, and so on."""
        drawn = [next(it) + offset for it, offset in zip(self._iterators, self._offsets, strict=True)]
        index = torch.cat(drawn).to(self.inputs.ids.device)
        labels = None if self.labels is None else self.labels[index]
        return DomainBatch(self.inputs.select(index), self._domains, labels)
