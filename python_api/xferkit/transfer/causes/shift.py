"""Do target and source have other labels? Distance of the label distributions, and classes that the source
lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xferkit.transfer.causes.cause import Cause, flag_excess, relative

__all__ = ["LabelShift", "MissingClasses", "label_shift", "missing_classes"]


@dataclass(frozen=True)
class LabelShift(Cause):
    """Distance of two label distributions.

    Attributes:
        distance: total variation, in [0, 1].
        null_mean, null_high: of labels dealt at random to both: mean and quantile 1 - alpha.
        p_value: probability of at least this distance among these.
        target_size, source_size: numbers of labels.
        largest: the class whose shares differ most.
        largest_shares: its shares in target and source.
        missing_share: share of the target's classes that the source lacks.
    """

    cause: ClassVar[str] = "label shift"
    distance: float
    null_mean: float
    null_high: float
    p_value: float
    target_size: int
    source_size: int
    largest: str
    largest_shares: tuple[float, float]
    missing_share: float

    def sentence(self) -> str:
        """One plain sentence with the distance and its null."""
        start = {
            "yes": "Target and source have other shares of the labels",
            "no": "Target and source have much the same shares of the labels",
            "not clear": f"{self.target_size} and {self.source_size} labels are too few to compare their "
            "shares",
        }[self.flag]
        a, b = (f"{100 * share:.0f} %" for share in self.largest_shares)
        # Where the shares are alike, no class is apart.
        apart = f"; most apart is {self.largest} with {a} of the target and {b} of the source" * (a != b)
        return (
            f"{start}: total variation distance {self.distance:.2f}, where labels dealt at random have "
            f"{self.null_mean:.2f} (rarely more than {self.null_high:.2f}, p = {self.p_value:.3f}){apart}."
        )


@dataclass(frozen=True)
class MissingClasses(Cause):
    """Classes of the target without an example in the source.

    Attributes:
        missing: their names, the most frequent in the target first.
        classes: number of the target's classes.
        share: missing ones of these.
        example_share: share of the target's examples that have a missing class.
        null_mean, null_high: missing classes of samples of the source's size from the target's labels.
        p_value: probability of at least as many.
    """

    cause: ClassVar[str] = "missing classes"
    missing: tuple[str, ...]
    classes: int
    share: float
    example_share: float
    null_mean: float
    null_high: float
    p_value: float

    def sentence(self) -> str:
        """One plain sentence with the number and its null, if any is missing."""
        if not self.missing:
            every = f"all {self.classes} classes" if self.classes > 1 else "the only class"
            return f"The source has {every} of the target."
        named = f"{', '.join(self.missing[:3])}{', …' if len(self.missing) > 3 else ''}"
        return (
            f"The source lacks {len(self.missing)} of the target's {self.classes} classes ({named}), "
            f"{100 * self.example_share:.0f} % of its examples, where as many examples of the target itself "
            f"would lack {self.null_mean:.1f} classes (p = {self.p_value:.3f})."
        )


def label_shift(
    target: Sequence[Hashable],
    source: Sequence[Hashable],
    *,
    min_effect: float = 0.1,
    alpha: float = 0.05,
    draws: int = 999,
    seed: int = 0,
) -> LabelShift:
    r"""Total variation distance of the label distributions against that of labels dealt at random.

    .. math:: TV = \tfrac{1}{2} \sum_c | p_t(c) - p_s(c) |

    Small samples are never equal: the null deals all labels together at random into two samples of the same
    sizes (a permutation test, drawn as multivariate hypergeometric counts). The flag is that of
    :func:`~xferkit.transfer.causes.cause.flag_excess`: *yes* needs an excess of `min_effect` as well.

    Args:
        target: labels of the target's examples.
        source: of the source's.
        min_effect: excess over the null that would matter.
        alpha: chance of *yes* without a shift.
        draws: samples of the null.
        seed: of these.

    Raises:
        ValueError: no label, a label that is NaN, `draws` below 1, or `alpha` outside (0, 1).

    Source: Levin and Peres (2017), Markov chains and mixing times, section 4.1, for the distance; Lipton,
    Wang and Smola (2018), Detecting and correcting for label shift, for what it does.
    """
    t, s = _counts("label_shift", "target", target), _counts("label_shift", "source", source)
    _check_draws("label_shift", draws, alpha)
    classes = sorted({*t, *s}, key=str)
    a, b = (np.array([counts[c] for c in classes], dtype=np.int64) for counts in (t, s))
    n, m = int(a.sum()), int(b.sum())
    apart = np.abs(a / n - b / m)
    rng = np.random.default_rng(seed)
    dealt = rng.multivariate_hypergeometric(a + b, n, size=draws)
    null = 0.5 * np.abs(dealt / n - (a + b - dealt) / m).sum(1)
    distance = 0.5 * float(apart.sum())
    flag, p = flag_excess(distance, null, min_effect, alpha)
    k = int(apart.argmax())
    mean = float(null.mean())
    return LabelShift(
        flag,
        relative(distance - mean, 1.0 - mean),
        distance,
        mean,
        float(np.quantile(null, 1.0 - alpha)),
        p,
        n,
        m,
        str(classes[k]),
        (float(a[k] / n), float(b[k] / m)),
        sum(1 for c in t if c not in s) / len(t),
    )


def missing_classes(
    target: Sequence[Hashable],
    source: Sequence[Hashable],
    *,
    min_effect: float = 0.01,
    alpha: float = 0.05,
    draws: int = 999,
    seed: int = 0,
) -> MissingClasses:
    """How many classes of the target the source lacks, against samples of the target of the source's size.

    The null draws as many labels as the source has from the target's label distribution (multinomial) and
    counts the target's classes that are not among them; rare classes are missing in any small sample. *yes*:
    as many missing as in at most `alpha` of the draws, and they hold at least `min_effect` of the target's
    examples. *no*: they hold less. Else not clear.

    Args:
        target: labels of the target's examples.
        source: of the source's.
        min_effect: share of the target's examples that would matter.
        alpha: chance of *yes* for a source with the target's label distribution.
        draws: samples of the null.
        seed: of these.

    Raises:
        ValueError: as :func:`label_shift`.

    Source: Cao et al. (2018), Partial adversarial domain adaptation, for classes that only one side has.
    """
    t, s = _counts("missing_classes", "target", target), _counts("missing_classes", "source", source)
    _check_draws("missing_classes", draws, alpha)
    counts = np.array(list(t.values()), dtype=np.float64)
    size = sum(s.values())
    drawn = np.random.default_rng(seed).multinomial(size, counts / counts.sum(), size=draws)
    null = (drawn == 0).sum(1).astype(np.float64)
    lacks = sorted((c for c in t if c not in s), key=lambda c: (-t[c], str(c)))
    share = sum(t[c] for c in lacks) / float(counts.sum())
    p = (1.0 + float(np.sum(null >= len(lacks)))) / (1.0 + draws)
    return MissingClasses(
        "no" if share < min_effect else "yes" if p <= alpha else "not clear",
        share,
        tuple(str(c) for c in lacks),
        len(t),
        len(lacks) / len(t),
        share,
        float(null.mean()),
        float(np.quantile(null, 1.0 - alpha)),
        p,
    )


def _counts(owner: str, name: str, labels: Sequence[Hashable]) -> Counter[Hashable]:
    found = Counter(label.item() if isinstance(label, np.generic) else label for label in labels)
    if not found:
        raise ValueError(f"{owner}: {name} must be one or more labels, got none")
    if any(label != label for label in found):
        raise ValueError(f"{owner}: {name} must have a label for every example, got NaN")
    return found


def _check_draws(owner: str, draws: int, alpha: float) -> None:
    if draws < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(f"{owner}: draws must be at least 1 and alpha in (0, 1), got {draws} and {alpha}")
