"""Whether two sets of kept gates overlap more than random ones of their sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom, norm

__all__ = ["Overlap", "overlap"]

_MAX_EXACT = 100_000  # values of the intersection that are summed over one by one


@dataclass(frozen=True)
class Overlap:
    """Two sets of kept gates.

    Attributes:
        gates: number of gates.
        kept_a, kept_b, kept_both: sizes of the sets and of their intersection.
        iou: intersection over union, NaN where both sets are empty.
        expected_iou: its mean over random sets of the same sizes.
        z: standard deviations by which the intersection exceeds that of random sets; NaN where it cannot vary.
        p_value: probability that random sets intersect at least as much.
        exact: whether mean and probability are exact, not by the normal approximation.
    """

    gates: int
    kept_a: int
    kept_b: int
    kept_both: int
    iou: float
    expected_iou: float
    z: float
    p_value: float
    exact: bool


def overlap(strata: Sequence[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]) -> Overlap:
    r"""Overlap of two sets against random sets that keep as many gates in every stratum.

    The intersection of random sets of sizes a and b out of n is hypergeometric,

    .. math:: P(k) = \binom{a}{k} \binom{n - a}{b - k} / \binom{n}{b}

    and over strata (sites) a sum of independent ones, so that masks which merely agree on how much to keep of each
    site show no overlap.

    Args:
        strata: pairs of bool arrays ``[n]``, true where a gate is kept; one pair for a single site.

    Raises:
        ValueError: arrays of different shapes, or no gate.
    """
    for a, b in strata:
        if a.shape != b.shape:
            raise ValueError(f"overlap: expected sets of one shape, got {list(a.shape)} and {list(b.shape)}")
    sizes = [(a.size, int(a.sum()), int(b.sum()), int((a & b).sum())) for a, b in strata if a.size]
    if not sizes:
        raise ValueError("overlap: expected at least one gate, got none")
    gates, kept_a, kept_b, both = (sum(column) for column in zip(*sizes, strict=True))
    mean = sum(a * b / n for n, a, b, _ in sizes)
    variance = sum(a * b * (n - a) * (n - b) / (n * n * (n - 1)) for n, a, b, _ in sizes if n > 1)
    deviation = math.sqrt(variance)
    union = kept_a + kept_b
    low, weights = _distribution(sizes)
    if weights is None:
        expected = mean / (union - mean)
        p_value = float(norm.sf((both - 0.5 - mean) / deviation))
    else:
        values = low + np.arange(len(weights))
        known = values < union
        expected = (
            float(np.sum(weights[known] * values[known] / (union - values[known]))) if union else math.nan
        )
        p_value = min(1.0, float(weights[both - low :].sum()))
    return Overlap(
        gates,
        kept_a,
        kept_b,
        both,
        both / (union - both) if union else math.nan,
        expected,
        (both - mean) / deviation if deviation else math.nan,
        p_value,
        weights is not None,
    )


def _distribution(
    sizes: Sequence[tuple[int, int, int, int]],
) -> tuple[int, npt.NDArray[np.float64] | None]:
    """Smallest intersection, and the probabilities from there on; None where there are too many."""
    bounds = [(max(0, a + b - n), min(a, b)) for n, a, b, _ in sizes]
    total = sum(high - low for low, high in bounds)
    if total > _MAX_EXACT or (len(sizes) > 1 and total**2 > _MAX_EXACT * 10_000):
        return 0, None
    weights: npt.NDArray[np.float64] = np.ones(1)
    for (n, a, b, _), (low, high) in zip(sizes, bounds, strict=True):
        if high > low:
            weights = np.convolve(weights, hypergeom.pmf(np.arange(low, high + 1), n, a, b))
    return sum(low for low, _ in bounds), weights
