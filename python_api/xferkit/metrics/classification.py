"""Scores of single-label classification.

Labels and predictions are integer class numbers of shape ``[n]``, anything ``numpy.asarray`` takes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["accuracy", "binomial_error", "macro_f1", "majority_rate", "token_accuracy"]


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of predictions that equal their label, in [0, 1].

    Args:
        labels: integers ``[n]``.
        predictions: integers ``[n]``.

    Raises:
        ValueError: different shapes, not one dimension, not integers, or no example.
    """
    y, p = _pair("accuracy", labels, predictions)
    return float(np.mean(y == p))


def token_accuracy(labels: ArrayLike, predictions: ArrayLike, ignore: int = -1) -> float:
    """Share of tokens whose tag is right, over all tokens of all texts, in [0, 1].

    Args:
        labels: integers ``[n, length]``, or of any shape; `ignore` marks padding.
        predictions: integers of the same shape.
        ignore: the label that does not count.

    Raises:
        ValueError: different shapes, not integers, or no token that counts.
    """
    y, p = np.asarray(labels), np.asarray(predictions)
    if y.shape != p.shape:
        raise ValueError(
            f"token_accuracy: predictions must be of the labels' shape {list(y.shape)}, got {list(p.shape)}"
        )
    counts = y != ignore
    return accuracy(y[counts], p[counts])


def macro_f1(labels: ArrayLike, predictions: ArrayLike, classes: ArrayLike | None = None) -> float:
    """Unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN), in [0, 1].

    Without `classes` the mean is over those that occur among the labels or the predictions, so that no term is 0 / 0.
    Where two models are compared, name the classes (those of the labels): else one stray answer of one model adds
    a class to its mean alone.

    Args:
        labels: integers ``[n]``.
        predictions: integers ``[n]``.
        classes: those to average over, each among the labels or the predictions.

    Raises:
        ValueError: different shapes, not one dimension, not integers, or no example.
    """
    y, p = _pair("macro_f1", labels, predictions)
    scores = []
    for c in np.union1d(y, p) if classes is None else np.unique(np.asarray(classes)):
        true_positive = int(np.sum((y == c) & (p == c)))
        errors = int(np.sum((y == c) != (p == c)))  # FP + FN
        scores.append(2 * true_positive / (2 * true_positive + errors))
    return float(np.mean(scores))


def majority_rate(labels: ArrayLike) -> float:
    """Share of the most frequent label: the accuracy of always answering it.

    Args:
        labels: integers ``[n]``.

    Raises:
        ValueError: not one dimension, not integers, or no example.
    """
    y = _integers("majority_rate", "labels", labels)
    return float(np.unique(y, return_counts=True)[1].max() / len(y))


def binomial_error(rate: float, num_examples: int) -> float:
    """Standard error sqrt(p (1 - p) / n) of an accuracy `rate` measured on `num_examples` drawn examples.

    Raises:
        ValueError: `rate` outside [0, 1] or no example.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"binomial_error: rate must be in [0, 1], got {rate}")
    if num_examples < 1:
        raise ValueError(f"binomial_error: num_examples must be at least 1, got {num_examples}")
    return math.sqrt(rate * (1.0 - rate) / num_examples)


def _integers(function: str, name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{function}: {name} must be of shape [n] with n >= 1, got shape {list(array.shape)}"
        )
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        raise ValueError(f"{function}: {name} must be integer class numbers, got {array.dtype}")
    return array


def _pair(function: str, labels: ArrayLike, predictions: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    y = _integers(function, "labels", labels)
    p = _integers(function, "predictions", predictions)
    if y.shape != p.shape:
        raise ValueError(
            f"{function}: predictions must be of the labels' shape {list(y.shape)}, got {list(p.shape)}"
        )
    return y, p
