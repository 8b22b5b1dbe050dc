"""Which sources pull together? Clusters of their mean gradient cosines, one cluster being an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import linkage

from xferkit.transfer.causes.cause import Cause, Flag, Floats, finite, relative

__all__ = ["SourceCluster", "SourceClusters", "cluster_sources"]

# Below this many, shuffled pairs are too often as orderly as real clusters: 2 and 2 of 4 by 1 shuffle in 5.
_FEWEST = 5


@dataclass(frozen=True)
class SourceCluster:
    """Sources whose gradients point the same way.

    Attributes:
        sources: names, the most typical (largest mean cosine with the others) first.
        cosine: mean over pairs inside; 1 for a single source.
        target_cosine: mean with the target; None where none was given.
    """

    sources: tuple[str, ...]
    cosine: float
    target_cosine: float | None


@dataclass(frozen=True)
class SourceClusters(Cause):
    """Clusters, and whether they are more than chance.

    Attributes:
        clusters: the most opposed to the target first, or the largest first where the target is not known.
        silhouette: best mean silhouette over numbers of clusters; NaN for fewer than 3 sources.
        null_silhouette: mean of the best one over shuffled pairs.
        null_high: quantile 1 - alpha of the same.
        p_value: share of shuffled pairs with as good a one.
        between: lowest mean cosine of two clusters; NaN for one cluster.
    """

    cause: ClassVar[str] = "opposed groups of sources"
    clusters: tuple[SourceCluster, ...]
    silhouette: float
    null_silhouette: float
    null_high: float
    p_value: float
    between: float

    def sentence(self) -> str:
        """One plain sentence with the clusters and their null."""
        sources = sum(len(cluster.sources) for cluster in self.clusters)
        if sources < _FEWEST:
            return (
                f"{sources} source{'' if sources == 1 else 's'} cannot be told to be more than one group: "
                f"at least {_FEWEST} are needed."
            )
        null = (
            f"silhouette {self.silhouette:.2f}, rarely above {self.null_high:.2f} where pairs are shuffled, "
            f"p = {self.p_value:.3f}"
        )
        if len(self.clusters) == 1:
            return f"The gradients of the {sources} sources form no groups beyond chance ({null})."
        lists = "; ".join(", ".join(cluster.sources) for cluster in self.clusters)
        oppose = "oppose each other" if self.flag == "yes" else "do not oppose each other"
        return (
            f"The {sources} sources form {len(self.clusters)} groups by gradient ({lists}; {null}), which "
            f"{oppose}: the lowest mean cosine of two groups is {self.between:.2f}."
        )


def cluster_sources(
    cosines: npt.ArrayLike,
    sources: Sequence[str],
    *,
    target_cosines: Sequence[float] | None = None,
    draws: int = 499,
    alpha: float = 0.05,
    seed: int = 0,
) -> SourceClusters:
    r"""Average linkage on 1 - cosine; the best silhouette's clusters, or one where chance does as well.

    The silhouette of source i is :math:`(b_i - a_i) / \max(a_i, b_i)`, with a its mean distance to its own
    cluster, b the least one to another, and 0 for a source alone. Its mean is taken for each number of
    clusters from 2 to num_sources - 1; the best is compared with the best after the distances were shuffled
    among the pairs, which destroys groups and keeps the distances. Cosines of gradients that differ in two or
    three directions only look grouped more often than `alpha` (random ones of 10 sources: 23 % in two
    dimensions, 10 % in three, 5 % in a hundred). Flag: *yes* for two or more clusters of which two have a
    mean cosine below 0, *not clear* for fewer than 5 sources, else *no*.

    Args:
        cosines: ``[sources, sources]`` or ``[seeds, sources, sources]``, symmetric, of gradients of the
            sources.
        sources: their names.
        target_cosines: ``[sources]``, of each with the target.
        draws: number of shuffles.
        alpha: chance of two or more clusters where there is no group.
        seed: of the shuffles.

    Raises:
        ValueError: shapes that do not fit, a matrix that is not symmetric, a cosine not finite or not in
            [-1, 1].

    Source: Rousseeuw (1987), Silhouettes; Sokal and Michener (1958) for average linkage.
    """
    given = np.asarray(cosines, dtype=np.float64)
    dims = "seeds, sources, sources" if given.ndim == 3 else "sources, sources"
    matrix = finite("cluster_sources", "cosines", given, dims)
    matrix = matrix.mean(0) if matrix.ndim == 3 else matrix
    n = len(sources)
    if matrix.shape != (n, n) or len(set(sources)) != n:
        raise ValueError(
            f"cluster_sources: sources must be {matrix.shape[0]} different names for cosines of shape "
            f"{list(given.shape)}, got {', '.join(sources)}"
        )
    if np.abs(matrix - matrix.T).max() > 1e-6 or np.abs(matrix).max() > 1.0 + 1e-6:
        raise ValueError("cluster_sources: cosines must be symmetric and in [-1, 1]")
    if draws < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(
            f"cluster_sources: draws must be at least 1 and alpha in (0, 1), got {draws}, {alpha}"
        )
    to_target = None
    if target_cosines is not None:
        to_target = finite("cluster_sources", "target_cosines", target_cosines, "sources")
        if to_target.size != n:
            raise ValueError(f"cluster_sources: target_cosines must be {n} numbers, got {to_target.size}")
    labels, best, null, p = np.ones(n, dtype=np.int64), np.nan, np.full(1, np.nan), 1.0
    if n >= 3:
        upper = np.triu_indices(n, 1)
        pairs = np.maximum(0.0, 1.0 - matrix[upper])
        found, best = _best(pairs, n)
        rng = np.random.default_rng(seed)
        null = np.array([_best(rng.permutation(pairs), n)[1] for _ in range(draws)])
        p = (1.0 + float(np.sum(null >= best - 1e-12))) / (1.0 + draws)
        labels = found if n >= _FEWEST and p <= alpha else labels
    clusters = [_cluster(np.flatnonzero(labels == k), matrix, sources, to_target) for k in np.unique(labels)]
    clusters.sort(key=lambda c: (c.target_cosine or 0.0, -len(c.sources), c.sources))
    between = _lowest_between(labels, matrix)
    flag: Flag = "not clear" if n < _FEWEST else "yes" if between < 0.0 else "no"
    high = float(np.quantile(null, 1.0 - alpha))
    effect = relative(-between, 1.0) if len(clusters) > 1 else 0.0
    return SourceClusters(flag, effect, tuple(clusters), float(best), float(null.mean()), high, p, between)


def _best(pairs: Floats, n: int) -> tuple[npt.NDArray[np.int64], float]:
    """Clusters with the best mean silhouette, the fewest of equal ones, and that silhouette."""
    nodes = np.zeros((2 * n - 1, n), dtype=bool)  # sources of each node of the tree, leaves first
    nodes[np.arange(n), np.arange(n)] = True
    alive = np.zeros((n - 2, 2 * n - 1), dtype=bool)  # nodes that are the clusters, by number of them less 2
    now = np.arange(2 * n - 1) < n
    for step, (i, j) in enumerate(linkage(pairs, "average")[:-1, :2].astype(np.int64)):
        nodes[n + step] = nodes[i] | nodes[j]
        now[[i, j]], now[n + step] = False, True
        alive[n - 3 - step] = now
    distance = np.zeros((n, n))
    distance[np.triu_indices(n, 1)] = pairs
    sizes = nodes.sum(1)
    sums = nodes @ (distance + distance.T)
    own = alive[:, :, None] & nodes
    means = sums / np.maximum(sizes, 1)[:, None]
    outside = np.where(alive[:, :, None] & ~nodes, means, np.inf).min(1)
    inside = np.where(own, sums / np.maximum(sizes - 1, 1)[:, None], 0.0).sum(1)
    largest = np.maximum(inside, outside)
    single = (own * sizes[:, None]).sum(1) == 1
    values = np.where(single | (largest == 0), 0.0, (outside - inside) / np.where(largest > 0, largest, 1.0))
    scores = values.mean(1)
    best = int(np.flatnonzero(scores >= scores.max() - 1e-12)[0])
    return np.asarray(own[best].argmax(0), dtype=np.int64), float(scores[best])


def _cluster(
    members: npt.NDArray[np.int64], matrix: Floats, names: Sequence[str], to_target: Floats | None
) -> SourceCluster:
    block = matrix[np.ix_(members, members)]
    inside = [names[int(i)] for i in members]
    n = len(members)
    typical = (block.sum(1) - block.diagonal()) / max(n - 1, 1)
    order = sorted(range(n), key=lambda i: (-typical[i], inside[i]))
    return SourceCluster(
        tuple(inside[i] for i in order),
        float(typical.mean()) if n > 1 else 1.0,
        None if to_target is None else float(to_target[members].mean()),
    )


def _lowest_between(labels: npt.NDArray[np.int64], matrix: Floats) -> float:
    kinds = np.unique(labels)
    means = [matrix[labels == a][:, labels == b].mean() for a in kinds for b in kinds if a < b]
    return float(min(means)) if means else float("nan")
