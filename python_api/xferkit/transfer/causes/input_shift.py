"""Can a linear classifier tell the inputs of target and source apart better than two halves of one of
them?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from xferkit.transfer.causes.cause import Cause, Floats, finite, flag_excess, relative

__all__ = ["InputShift", "input_shift"]


@dataclass(frozen=True)
class InputShift(Cause):
    """Proxy A-distance of two samples.

    Attributes:
        distance: 2 (1 - 2 err), mean over draws of rows; below 0 by chance, at most 2.
        error: cross-validated error of the classifier, mean over draws.
        null_mean, null_high: distances of two random halves of one task: mean and quantile 1 - alpha.
        p_value: share of these that are as large as `distance`.
        rows: of each side in every comparison.
        splits: draws of rows; the null has as many of each task.
    """

    cause: ClassVar[str] = "input shift"
    distance: float
    error: float
    null_mean: float
    null_high: float
    p_value: float
    rows: int
    splits: int

    def sentence(self) -> str:
        """One plain sentence with the distance and its null."""
        start = {
            "yes": "The inputs of target and source can be told apart",
            "no": "The inputs of target and source cannot be told apart in a way that would matter",
            "not clear": f"It is not clear from {self.rows} inputs a side whether target and source can be "
            "told apart",
        }[self.flag]
        return (
            f"{start}: a linear classifier errs on {100 * self.error:.0f} %, a proxy A-distance of "
            f"{self.distance:.2f}, where two halves of one task have {self.null_mean:.2f} (rarely more than "
            f"{self.null_high:.2f})."
        )


def input_shift(
    target: npt.ArrayLike,
    source: npt.ArrayLike,
    *,
    splits: int = 10,
    folds: int = 5,
    max_rows: int = 1000,
    min_effect: float = 0.2,
    alpha: float = 0.05,
    seed: int = 0,
) -> InputShift:
    r"""Proxy A-distance of two samples of features against that of two halves of one sample.

    .. math:: \hat d_A = 2 (1 - 2 \, \mathrm{err})

    with err the cross-validated error of a logistic regression (L2, C = 1, features standardised over both
    sides) that tells target from source. It depends on the number of rows, so that every comparison has as
    many: half of the smaller sample, at most `max_rows`. The distance is the mean over `splits` draws of
    rows; the null has one distance for each random pair of halves of the target, and of the source. *yes* and
    *no* as in :func:`~xferkit.transfer.causes.cause.flag_excess`. Rows must not be copies of each other: what
    both halves of a task share makes its null too low.

    Args:
        target: features ``[rows, features]``.
        source: features ``[rows, features]``, of the same features.
        splits: draws of rows.
        folds: of the cross-validation, at least 2.
        max_rows: of a side.
        min_effect: excess over the null that would matter: 0.2 is an error of 45 % instead of 50 %.
        alpha: quantile of the null is 1 - alpha.
        seed: of draws and folds.

    Raises:
        ValueError: features that differ in number, fewer than 2 · folds rows, a value that is not finite.
        ImportError: scikit-learn is missing; the sentence has the command.

    Source: Ben-David et al. (2007), Analysis of representations for domain adaptation; Ganin et al. (2016),
    Domain-adversarial training of neural networks, section 5.1.5.
    """
    t = finite("input_shift", "target", target, "rows, features")
    s = finite("input_shift", "source", source, "rows, features")
    if t.shape[1] != s.shape[1]:
        raise ValueError(f"input_shift: source must have target's {t.shape[1]} features, got {s.shape[1]}")
    if splits < 1 or folds < 2 or not 0.0 < alpha < 1.0:
        raise ValueError(
            f"input_shift: splits must be at least 1, folds at least 2 and alpha in (0, 1), got {splits}, "
            f"{folds}, {alpha}"
        )
    for name, rows in (("target", t), ("source", s)):
        if len(rows) < 2 * folds:
            raise ValueError(
                f"input_shift: {name} must have at least 2 rows for each of {folds} folds, got {len(rows)}"
            )
    size = min(len(t) // 2, len(s) // 2, max_rows)
    if size < folds:
        raise ValueError(f"input_shift: max_rows must be at least the {folds} folds, got {max_rows}")
    error = _classifier(folds)
    rng = np.random.default_rng(seed)
    errors, null = [], []
    for _ in range(splits):
        first, second = (rows[rng.permutation(len(rows))[: 2 * size]] for rows in (t, s))
        errors.append(error(first[:size], second[:size], rng))
        null += [2.0 * (1.0 - 2.0 * error(x[:size], x[size:], rng)) for x in (first, second)]
    mean_error = float(np.mean(errors))
    distance = 2.0 * (1.0 - 2.0 * mean_error)
    flag, p = flag_excess(distance, null, min_effect, max(alpha, 1.0 / (1.0 + len(null))))
    mean = float(np.mean(null))
    high = float(np.quantile(null, 1.0 - alpha))
    effect = relative(distance - mean, 2.0 - mean)
    return InputShift(flag, effect, distance, mean_error, mean, high, p, size, splits)


def _classifier(folds: int) -> Callable[[Floats, Floats, np.random.Generator], float]:
    """A function from two samples of one size to the cross-validated error of telling them apart."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError("input_shift needs scikit-learn: pip install scikit-learn") from error

    def measure(first: Floats, second: Floats, rng: np.random.Generator) -> float:
        x = np.concatenate([first, second])
        deviation = x.std(0)
        x = (x - x.mean(0)) / np.where(deviation > 0.0, deviation, 1.0)
        y = np.repeat([0, 1], len(first))
        # Every fold has as many rows of both sides, but for one.
        fold = np.concatenate([rng.permutation(np.arange(len(first)) % folds) for _ in range(2)])
        wrong = 0
        for k in range(folds):
            model = LogisticRegression(max_iter=1000).fit(x[fold != k], y[fold != k])
            wrong += int((model.predict(x[fold == k]) != y[fold == k]).sum())
        return wrong / len(y)

    return measure
