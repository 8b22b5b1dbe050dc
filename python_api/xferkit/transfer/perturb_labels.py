"""Perturbation controls of the labels: noise at a rate ε_y, and the share of labelled items with a cap per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["flip_labels", "label_subset"]

# Streams of one seed that must not share their numbers.
_WHICH, _WHAT, _KEPT = 1, 2, 3


def flip_labels(
    labels: ArrayLike, epsilon: float, *, seed: int, classes: Sequence[Any] | None = None
) -> np.ndarray:
    """A copy in which exactly round(ε · n) labels (halves up) are wrong, each one of the other classes, uniformly.

    Which items, and to what, follows from seed and index: a larger ε changes more items and leaves the others as they
    are at a smaller one. A control that draws from *all* K classes with rate ε, the true one included, as the source
    does, changes ε (1 - 1/K) of the labels: that is the ε to give here for it. ε = 0 gives the input exactly.

    Args:
        labels: ``[n]`` of whole numbers or strings.
        epsilon: share ε_y in [0, 1].
        seed: 0 or more.
        classes: all classes, two or more; None: those that occur.

    Raises:
        ValueError: an argument is out of range, a label is none of `classes`, or there is no other class.

    Source: Wang et al. (2019), Characterizing and avoiding negative transfer, section 4.
    """
    rate = _share(epsilon, "epsilon")
    given, names, codes = _coded(labels, classes)
    count = int(np.floor(rate * given.size + 0.5))
    if count == 0:
        return given.copy()
    if names.size < 2:
        raise ValueError(f"flip_labels: a wrong label needs another class, and all are {names.tolist()[0]!r}")
    chosen = np.argsort(_stream(seed, _WHICH, given.size), kind="stable")[:count]
    step = 1 + np.floor(_stream(seed, _WHAT, given.size)[chosen] * (names.size - 1)).astype(np.int64)
    changed = codes.copy()
    changed[chosen] = (codes[chosen] + step) % names.size
    result: np.ndarray = names[changed]
    return result


def label_subset(
    labels: ArrayLike, ratio: float, *, seed: int, max_per_class: int | None = None
) -> np.ndarray:
    """Indices of the items whose labels may be used: a share of each class, capped.

    Of a class with n_c items min(max(1, round(ratio · n_c)), max_per_class) are taken (halves up; none where the
    ratio is 0), so that every class stays known. A larger ratio or cap adds to a smaller one of the same seed.

    Args:
        labels: ``[n]`` of whole numbers or strings.
        ratio: L % as a share in [0, 1].
        seed: 0 or more.
        max_per_class: the cap, 1 or more; None: none. The source has 10 % and a cap of 3.

    Returns:
        Indices in rising order.

    Raises:
        ValueError: an argument is out of range.

    Source: Wang et al. (2019), Characterizing and avoiding negative transfer, section 4.
    """
    share = _share(ratio, "ratio")
    if max_per_class is not None and max_per_class < 1:
        raise ValueError(f"max_per_class must be 1 or more, or None, got {max_per_class}")
    given, names, codes = _coded(labels, None)
    order = np.argsort(_stream(seed, _KEPT, given.size), kind="stable")
    kept = []
    for code in range(names.size if share > 0.0 else 0):
        of_class = order[codes[order] == code]
        count = max(1, int(np.floor(share * of_class.size + 0.5)))
        kept.append(of_class[: count if max_per_class is None else min(count, max_per_class)])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, dtype=np.int64)


def _coded(labels: ArrayLike, classes: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels, the classes in rising order, and the place of each label among them."""
    given = np.asarray(labels)
    if given.ndim != 1 or given.dtype.kind not in "iuU":
        raise ValueError(
            f"labels must be a list of whole numbers or of strings, got shape {list(given.shape)} of {given.dtype}"
        )
    names = np.unique(given if classes is None else np.asarray(classes))
    if classes is not None:
        unknown = given[~np.isin(given, names)]
        if unknown.size:
            raise ValueError(
                f"label {unknown.tolist()[0]!r} is none of the classes {', '.join(map(str, names))}"
            )
    return given, names, np.searchsorted(names, given)


def _share(value: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} must be a number in [0, 1], got {value!r}")
    return float(value)


def _stream(seed: int, use: int, n: int) -> np.ndarray:
    """n numbers in [0, 1); the i-th one depends on seed, use and i alone."""
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    return np.random.default_rng([int(seed), use]).random(n)
