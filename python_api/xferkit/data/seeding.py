"""Seeds: derived ones, one for a run, several runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["derive_seed", "over_seeds", "seeded"]

T = TypeVar("T")


def derive_seed(seed: int, *names: str) -> int:
    """A seed in ``[0, 2^63)`` for a part of a run, the same in every process and version of Python."""
    digest = hashlib.blake2b("\0".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators inside; the CPU generator continues afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def over_seeds(run: Callable[[int], T], seeds: Iterable[int]) -> dict[int, T]:
    """``run(seed)`` for each seed, each under its own seed of torch's generator; results by seed."""
    results: dict[int, T] = {}
    for seed in seeds:
        with seeded(seed):
            results[seed] = run(seed)
    return results
