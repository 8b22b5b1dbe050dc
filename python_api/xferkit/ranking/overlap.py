"""The retrieval that a trained encoder has to beat: texts that share words or character n-grams, by their rarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from xferkit.data.hashing import character_grams, split_words

__all__ = ["overlap_ranks", "word_grams"]

Terms = Callable[[str], list[str]]
_ROWS = 1024  # queries whose similarities are held at a time


def word_grams(text: str, sizes: Sequence[int] = (2, 3, 4)) -> list[str]:
    """The character n-grams of a text's words, with marks at their ends."""
    return [gram for word in split_words(text) for size in sizes for gram in character_grams(word, size)]


def overlap_ranks(queries: Sequence[str], keys: Sequence[str], *, terms: Terms = split_words) -> Tensor:
    r"""The rank of each query's own key by the cosine of TF-IDF vectors; key i is that of query i.

    .. math:: x_t = \mathrm{tf}_t \left( \log \frac{1 + N}{1 + \mathrm{df}_t} + 1 \right)

    with document frequencies over queries and keys together. Across languages it finds names, numbers and cognates.

    Args:
        queries: n texts.
        keys: n texts or more.
        terms: what a text consists of: its words, or :func:`word_grams`.

    Returns:
        int64 ``[n]``, 1 + the number of other keys at least as similar: a query that shares nothing with any key
        ranks last.

    Raises:
        ValueError: fewer keys than queries.
    """
    from scipy.sparse import csr_array

    if len(keys) < len(queries):
        raise ValueError(
            f"overlap_ranks: expected a key for each of {len(queries)} queries, got {len(keys)} keys"
        )
    numbers: dict[str, int] = {}
    index: list[int] = []
    offsets = [0]
    for text in (*queries, *keys):
        index += [numbers.setdefault(term, len(numbers)) for term in terms(text)]
        offsets.append(len(index))
    shape = (len(offsets) - 1, max(1, len(numbers)))
    counts = csr_array((np.ones(len(index)), np.array(index, dtype=np.int64), offsets), shape=shape)
    counts.sum_duplicates()
    frequency = np.bincount(counts.indices, minlength=shape[1])
    weights = counts.multiply(np.log((1 + shape[0]) / (1 + frequency)) + 1).tocsr()
    norms = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
    rows = weights.multiply((1 / np.where(norms > 0, norms, 1.0))[:, None]).tocsr()
    x, y = rows[: len(queries)], rows[len(queries) :].T.tocsr()
    ranks = []
    for begin in range(0, len(queries), _ROWS):
        similarity = (x[begin : begin + _ROWS] @ y).toarray()
        own = similarity[np.arange(len(similarity)), begin + np.arange(len(similarity))]
        ranks.append(
            (similarity >= own[:, None] - 1e-12).sum(1)
        )  # products in another order differ by a rounding
    return torch.from_numpy(np.concatenate(ranks)) if ranks else torch.zeros(0, dtype=torch.int64)
