"""Near-equal texts: MinHash of character shingles finds candidates, the exact Jaccard index decides."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["fold_text", "jaccard", "near_pairs", "shingles"]

Hashes = npt.NDArray[np.uint64]
_BANDS, _ROWS = 32, 4


def fold_text(text: str) -> str:
    """NFC, case folded, runs of white space as one space: what two copies of a text have in common."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def shingles(text: str, length: int) -> Hashes:
    """Sorted 64-bit hashes of all substrings of `length` characters; of a shorter text as a whole."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if codes.size == 0:
        return np.zeros(0, dtype=np.uint64)
    length = min(length, codes.size)
    hashes = np.zeros(codes.size - length + 1, dtype=np.uint64)
    for n in range(length):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[n : n + hashes.size] + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    return np.unique(_mixed(hashes))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Shared shingles over all of them, |A ∩ B| / |A ∪ B|; 0 for two empty sets."""
    both = int(np.intersect1d(a, b, assume_unique=True).size)
    union = a.size + b.size - both
    return both / union if union else 0.0


def near_pairs(
    texts: Sequence[str], *, threshold: float = 0.8, length: int = 5, seed: int = 0
) -> list[tuple[int, int, float]]:
    r"""Pairs (i < j) of texts whose shingles have a Jaccard index of at least `threshold`, with the index.

    The share of hash functions whose least value over two sets is the same estimates their Jaccard index J.
    32 bands of 4 such values make a pair a candidate with probability :math:`1 - (1 - J^4)^{32}`: 0.99999 at
    0.75, 0.988 at 0.6, 0.87 at 0.5; candidates are checked exactly, so that no pair is wrong and few near the
    lowest thresholds are missed. Time and memory grow with the square of the number of texts that are all
    alike.

    Args:
        texts: folded and different from each other.
        threshold: in [0.5, 1].
        length: of a shingle in characters, at least 1.
        seed: of the hash functions.

    Raises:
        ValueError: `threshold` or `length` out of range.

    Source: Broder (1997), On the resemblance and containment of documents; Leskovec, Rajaraman and Ullman,
    Mining of massive datasets, section 3.4, for bands.
    """
    if not 0.5 <= threshold <= 1.0:
        raise ValueError(f"near_pairs: threshold must be in [0.5, 1], got {threshold}")
    if length < 1:
        raise ValueError(f"near_pairs: length must be at least 1, got {length}")
    rng = np.random.default_rng(seed)
    factors, offsets = rng.integers(1, 2**63, size=(2, _BANDS * _ROWS, 1), dtype=np.uint64)
    factors |= np.uint64(1)
    sets = [shingles(text, length) for text in texts]
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(_BANDS)]
    for n, found in enumerate(sets):
        if found.size == 0:
            continue
        least = (factors * found[None, :] + offsets).min(1).reshape(_BANDS, _ROWS)
        for bucket, band in zip(buckets, least, strict=True):
            bucket.setdefault(band.tobytes(), []).append(n)
    candidates = {
        pair
        for bucket in buckets
        for members in bucket.values()
        if len(members) > 1
        for pair in itertools.combinations(members, 2)
    }
    checked = ((i, j, jaccard(sets[i], sets[j])) for i, j in sorted(candidates))
    return [(i, j, index) for i, j, index in checked if index >= threshold]


def _mixed(x: Hashes) -> Hashes:
    """splitmix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)
