"""What a matrix of pairwise cosines says about its tasks: an order to show it in, clusters, means within families."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "FamilyMeans",
    "Matrix",
    "clusters",
    "family_means",
    "gram_cosines",
    "order_by_clustering",
    "order_by_family",
]

Matrix = npt.NDArray[np.float64]


def gram_cosines(gram: npt.ArrayLike) -> Matrix:
    r"""Pairwise cosines of the tasks' gradients from their Gram matrix.

    .. math:: \cos(g_i, g_j) = \frac{G_{ij}}{\sqrt{G_{ii}} \sqrt{G_{jj}}}, \qquad G_{ij} = \langle g_i, g_j \rangle

    (Wang, thesis, chapter 6.) The scale of a task's gradient does not count.

    Args:
        gram: ``[..., num_tasks, num_tasks]``.

    Returns:
        float64 of the same shape, within [-1, 1]; NaN where a gradient is zero or not finite.
    """
    g = np.asarray(gram, dtype=np.float64)
    if g.ndim < 2 or g.shape[-1] != g.shape[-2]:
        raise ValueError(
            f"gram_cosines: gram must have shape [..., num_tasks, num_tasks], got {list(g.shape)}"
        )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        norms = np.sqrt(np.diagonal(g, axis1=-2, axis2=-1))
        cosines = g / norms[..., :, None] / norms[..., None, :]
    cosines[~np.isfinite(cosines)] = np.nan
    return np.clip(cosines, -1.0, 1.0)


@dataclass(frozen=True)
class FamilyMeans:
    """Mean cosine over unordered pairs of different tasks.

    Attributes:
        within: over pairs of one family; NaN without such a pair.
        across: over pairs of two families; NaN without such a pair.
        num_within: pairs of one family that were seen.
        num_across: pairs of two families that were seen.
        by_family: within each family; NaN for a family of one.
    """

    within: float
    across: float
    num_within: int
    num_across: int
    by_family: dict[Hashable, float]


def family_means(cosine: npt.ArrayLike, families: Sequence[Hashable]) -> FamilyMeans:
    """Mean cosines within and across families; pairs that are NaN do not count.

    Args:
        cosine: ``[num_tasks, num_tasks]``.
        families: the family of each task, in the order of the rows.

    Raises:
        ValueError: shapes that do not fit.
    """
    c = _checked("family_means", cosine)
    if len(families) != len(c):
        raise ValueError(
            f"family_means: families must name one family per task ({len(c)}), got {len(families)}"
        )
    names = list(dict.fromkeys(families))
    number = np.array([names.index(family) for family in families], dtype=np.int64)
    rows, columns = np.triu_indices(len(c), 1)
    values = 0.5 * (c[rows, columns] + c[columns, rows])
    seen = np.isfinite(values)
    same = (number[rows] == number[columns]) & seen
    across = (number[rows] != number[columns]) & seen
    return FamilyMeans(
        within=_mean(values[same]),
        across=_mean(values[across]),
        num_within=int(same.sum()),
        num_across=int(across.sum()),
        by_family={name: _mean(values[same & (number[rows] == n)]) for n, name in enumerate(names)},
    )


def order_by_family(tasks: Sequence[str], families: Mapping[str, Hashable]) -> tuple[int, ...]:
    """Places of the tasks, family by family: families in the order of their first task, tasks in theirs.

    Raises:
        ValueError: a task whose family is not given.
    """
    missing = [task for task in tasks if task not in families]
    if missing:
        raise ValueError(f"order_by_family: families lacks {', '.join(map(repr, missing[:3]))}")
    names = list(dict.fromkeys(families[task] for task in tasks))
    return tuple(sorted(range(len(tasks)), key=lambda n: names.index(families[tasks[n]])))


def order_by_clustering(cosine: npt.ArrayLike) -> tuple[int, ...]:
    """Places of the tasks as the leaves of a hierarchical clustering, neighbours as alike as can be.

    Average linkage over the distances ``1 - cosine``, leaves in optimal order. A pair that was never seen (NaN)
    counts as orthogonal.

    Args:
        cosine: ``[num_tasks, num_tasks]``.
    """
    c = _checked("order_by_clustering", cosine)
    if len(c) < 3:
        return tuple(range(len(c)))
    from scipy.cluster.hierarchy import leaves_list

    return tuple(int(n) for n in leaves_list(_linkage(c)))


def clusters(cosine: npt.ArrayLike, num_clusters: int) -> tuple[int, ...]:
    """The cluster (0, 1, ...) of each task where the tree of :func:`order_by_clustering` is cut into so many.

    Clusters are numbered in the order of their first tasks; ties may leave fewer.

    Args:
        cosine: ``[num_tasks, num_tasks]``.
        num_clusters: at least 1.
    """
    c = _checked("clusters", cosine)
    if num_clusters < 1:
        raise ValueError(f"clusters: num_clusters must be at least 1, got {num_clusters}")
    if len(c) < 2:
        return (0,) * len(c)
    from scipy.cluster.hierarchy import fcluster

    found = fcluster(_linkage(c), num_clusters, criterion="maxclust").tolist()
    order = list(dict.fromkeys(found))
    return tuple(order.index(label) for label in found)


def _linkage(cosine: Matrix) -> Matrix:
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = 1.0 - np.where(np.isfinite(cosine), cosine, 0.0)
    distance = np.maximum(0.5 * (distance + distance.T), 0.0)
    np.fill_diagonal(distance, 0.0)
    return np.asarray(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def _checked(function: str, cosine: npt.ArrayLike) -> Matrix:
    c = np.asarray(cosine, dtype=np.float64)
    if c.ndim != 2 or c.shape[0] != c.shape[1]:
        raise ValueError(f"{function}: cosine must have shape [num_tasks, num_tasks], got {list(c.shape)}")
    return c


def _mean(values: Matrix) -> float:
    return float(values.mean()) if len(values) else float("nan")
