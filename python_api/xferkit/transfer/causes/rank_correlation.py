"""Spearman's rank correlation with an exact p-value, ties included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from xferkit.transfer.causes.cause import finite

__all__ = ["RankCorrelation", "rank_correlation"]

_MOST_EXACT = 12
_DRAWS = 20_000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of n pairs.

    Attributes:
        rho: in [-1, 1]; NaN where one side does not vary.
        p_value: two-sided, of pairs dealt at random; 1 where rho is NaN.
        n: number of pairs.
        exact: whether all n! orders were counted (up to 12 pairs), not 20,000 random ones.
    """

    rho: float
    p_value: float
    n: int
    exact: bool


def rank_correlation(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> RankCorrelation:
    r"""Correlation of the ranks (means of tied ones), and the share of all n! pairings with one as far from
    0.

    With centred ranks a and b, :math:`\rho = \sum a_i b_i / \sqrt{\sum a_i^2 \sum b_i^2}`. The number of
    orders with each value of :math:`\sum a_i b_{\pi(i)}` is counted over subsets: those of k + 1 of the b
    from those of k.

    Args:
        x: ``[n]``, at least 2 values.
        y: ``[n]``.
        seed: of the random orders of more than 12 pairs.

    Raises:
        ValueError: other lengths, or a value that is not finite.

    Source: Spearman (1904), The proof and measurement of association between two things.
    """
    a, b = finite("rank_correlation", "x", x, "n"), finite("rank_correlation", "y", y, "n")
    if a.size != b.size or a.size < 2:
        raise ValueError(
            f"rank_correlation: x and y must be 2 or more pairs, got {a.size} and {b.size} values"
        )
    n = a.size
    # Twice the ranks are whole numbers, and so are sums of their products.
    ra, rb = (np.rint(2.0 * rankdata(values)).astype(np.int64) for values in (a, b))
    middle = float(n) * (n + 1) ** 2  # of the sum of products, over all orders
    spread = math.sqrt(float(((ra - n - 1) ** 2).sum()) * float(((rb - n - 1) ** 2).sum()))
    if spread == 0.0:
        return RankCorrelation(math.nan, 1.0, n, True)
    far = abs(float(ra @ rb) - middle) - 0.5
    if n <= _MOST_EXACT:
        counts = _orders(ra, rb)
        extreme = np.abs(np.arange(counts.size) - middle) >= far
        p = float(counts[extreme].sum() / counts.sum())
    else:
        rng = np.random.default_rng(seed)
        sums = np.array([float(ra @ rng.permutation(rb)) for _ in range(_DRAWS)])
        p = (1.0 + float(np.sum(np.abs(sums - middle) >= far))) / (1.0 + _DRAWS)
    return RankCorrelation((float(ra @ rb) - middle) / spread, min(1.0, p), n, n <= _MOST_EXACT)


def _orders(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Number of orders π of b by the value of Σ a_i b_π(i)."""
    size = int(np.sort(a) @ np.sort(b)) + 1
    layer = {0: np.eye(1, size)[0]}
    for value in a:
        following: dict[int, npt.NDArray[np.float64]] = {}
        for used, counts in layer.items():
            for j in range(b.size):
                if used >> j & 1:
                    continue
                shift = int(value * b[j])
                into = following.setdefault(used | 1 << j, np.zeros(size))
                into[shift:] += counts[: size - shift]
        layer = following
    return layer[(1 << b.size) - 1]
