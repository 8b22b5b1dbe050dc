"""Streams over texts that tell which they are, for the tests of streams."""

from __future__ import annotations

import torch

from xferkit.data.streams import DomainData, DomainStream
from xferkit.models import TokenSequences

SAMPLERS = ("balanced", "temperature", "cycling")


def data(name: str, num: int, start: int = 1, *, labels: bool = True) -> DomainData:
    """Text i repeats the token ``start + i`` one to five times, so that a batch tells which texts it has."""
    rows = [[start + i] * (1 + i % 5) for i in range(num)]
    inputs = TokenSequences.from_lists(rows, [[i % 2] * len(row) for i, row in enumerate(rows)])
    return DomainData(name, inputs, torch.arange(num) % 3 if labels else None)


def three(seed: int = 7, batch_size: int = 4, **kwargs) -> DomainStream:
    domains = [data("x", 9), data("y", 7, 20), data("z", 3, 40)]
    return DomainStream(domains, batch_size, seed=seed, name="labelled", **kwargs)


def tokens(batch) -> list[int]:
    return batch.inputs.ids[:, 0].tolist()


def same(a, b) -> bool:
    """Whether two batches are equal to the bit."""
    parts = [
        (x.inputs.ids, x.inputs.lengths, x.inputs.flags, x.domains, x.labels, x.text_counts, x.token_counts)
        for x in (a, b)
    ]
    return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(*parts, strict=True))
