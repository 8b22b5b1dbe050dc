"""The negative transfer condition and gap: the same algorithm with and without a source, paired over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xferkit.metrics.intervals import Interval, t_interval

__all__ = ["TransferGap", "transfer_gap"]


@dataclass(frozen=True)
class TransferGap:
    """What a source does to the score of a target.

    Attributes:
        gains: one a seed: score with the source minus score without, its sign turned for scores of which less is
            better. Negative: the source hurts.
        interval: their mean with its paired t-interval.
        metric: name of the score, for reports.
    """

    gains: tuple[float, ...]
    interval: Interval
    metric: str = "score"

    @property
    def gain(self) -> float:
        """Mean gain in the score; negative: the source hurts."""
        return self.interval.mean

    @property
    def ntg(self) -> float:
        """The negative transfer gap in its author's sign, -gain: positive: negative transfer."""
        return 0.0 - self.interval.mean  # never -0.0

    @property
    def is_negative_transfer(self) -> bool:
        """The negative transfer condition as defined, NTG > 0: of the means, whatever the interval says."""
        return self.ntg > 0.0


def transfer_gap(
    with_source: Sequence[float],
    without_source: Sequence[float],
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    metric: str = "score",
) -> TransferGap:
    """Gain of a target from a source, and the negative transfer gap, over seeds of one algorithm.

    The definition is a gap of risks, NTG = risk(A(S, T)) - risk(A(∅, T)), negative transfer being NTG > 0; tables
    of the same source print accuracies, accuracy(A(∅, T)) - accuracy(A(S, T)), which has the same sign. Here the gap
    is one of the *score that was measured*, named by `metric`, and ``gain`` has the other sign:
    gain = ±(score(A(S, T)) - score(A(∅, T))), with minus where less is better, so that
    **negative gain = the source hurts**; ``ntg`` = -gain.

    Both runs must be the same algorithm; how much training each task has in them is the *matching*
    (:data:`~xferkit.transfer.plan.Matching`), without which the gap mixes conflict with less training.

    Args:
        with_source: the target's scores ``[seeds]`` when trained with the source.
        without_source: its scores without, in the same order of seeds.
        higher_is_better: False for losses and errors.
        confidence: of the interval, in (0, 1).
        metric: name of the score.

    Raises:
        ValueError: different numbers of seeds, none, a score that is not finite, or `confidence` out of range.

    Source: Wang et al. (2019), Characterizing and avoiding negative transfer, eq. 4; Wang (2022), Effective and
    efficient transfer learning, eq. 3.4.
    """
    if len(with_source) != len(without_source):
        raise ValueError(
            f"transfer_gap: runs with and without the source must pair seed by seed, got {len(with_source)} "
            f"and {len(without_source)} scores"
        )
    sign = 1.0 if higher_is_better else -1.0
    gains = tuple(
        sign * (float(a) - float(b)) + 0.0 for a, b in zip(with_source, without_source, strict=True)
    )
    return TransferGap(gains, t_interval(gains, confidence), metric)
