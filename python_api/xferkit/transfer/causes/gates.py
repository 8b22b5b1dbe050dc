"""Does the gate choose the sources that help? Mixing weights against equal ones, recognition and measured
gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from xferkit.metrics.intervals import Interval, t_interval
from xferkit.transfer.causes.cause import Cause, Flag, finite, flag_above, relative
from xferkit.transfer.causes.rank_correlation import RankCorrelation, rank_correlation
from xferkit.transfer.causes.shares import share_text

__all__ = ["GateChoice", "SourceWeight", "gate_choice"]


@dataclass(frozen=True)
class SourceWeight:
    """One source under the gate.

    Attributes:
        name: of the source.
        weight: mean mixing weight for texts of the target, over seeds.
        above_uniform: whether it is above 1 / num_sources, at a confidence adjusted for the number of
            sources.
        recognition: mean weight of held-out texts of this source on itself; None where not given.
        gain: measured gain of the target from this source alone; None where not given.
    """

    name: str
    weight: Interval
    above_uniform: Flag
    recognition: Interval | None
    gain: float | None


@dataclass(frozen=True)
class GateChoice(Cause):
    """What the gate does with all sources.

    Attributes:
        sources: in the order given.
        uniform: 1 / num_sources.
        confidence: of the intervals.
        recognition: mean over sources of the weight on their own held-out texts; null `uniform`; None: not
            given.
        correlation: of weights and gains; None: no gains, or one source.
    """

    cause: ClassVar[str] = "gate weights"
    sources: tuple[SourceWeight, ...]
    uniform: float
    confidence: float
    recognition: Interval | None
    correlation: RankCorrelation | None

    def sentence(self) -> str:
        """One plain sentence with the largest weight, recognition and the correlation."""
        top = max(self.sources, key=lambda source: source.weight.mean)
        start = {
            "yes": "The gate prefers sources that hurt",
            "no": "The gate is not what hurts",
            "not clear": "It is not clear whether the gate prefers sources that help or hurt",
        }[self.flag]
        parts = [
            f"its largest weight for the target is {share_text(top.weight, self.confidence)} on "
            f"{top.name}, where equal ones are {self.uniform:.2f}"
        ]
        if self.recognition is not None:
            parts.append(
                f"held-out texts of the sources get {share_text(self.recognition, self.confidence)} on "
                f"their own source"
            )
        if self.correlation is not None:
            kind = "exact" if self.correlation.exact else "random orders"
            parts.append(
                f"rank correlation of weight and gain is {self.correlation.rho:.2f} over "
                f"{self.correlation.n} sources (p = {self.correlation.p_value:.3f}, {kind})"
            )
        else:
            parts.append("without measured gains of single sources its choice cannot be judged")
        return f"{start}: {'; '.join(parts)}."


def gate_choice(
    weights: npt.ArrayLike,
    sources: Sequence[str],
    *,
    recognition: npt.ArrayLike | None = None,
    gains: Sequence[float] | None = None,
    alpha: float = 0.05,
    confidence: float = 0.95,
) -> GateChoice:
    """Mean mixing weights of the target against 1 / num_sources, recognition of own texts, and measured
    gains.

    Spearman's correlation of the mean weights with the gains of single sources decides (null: weights and
    gains paired at random): *yes* where it is below 0 with p <= `alpha` (the gate prefers what hurts), *no*
    where it is above 0 with p <= `alpha`, else not clear. Five sources or more are needed: of four, no order
    has a two-sided p of 0.05.

    Args:
        weights: ``[seeds, sources]``, in [0, 1], mean over texts of the target; rows add up to 1.
        sources: their names.
        recognition: ``[seeds, sources]``, mean weight that held-out texts of each source put on that source.
        gains: ``[sources]``, gain of the target from each alone; positive: it helps.
        alpha: largest p-value of a correlation that counts.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: shapes that do not fit, a number not finite, weights outside [0, 1] or not adding up to 1.

    Source: Chen et al. (2019), Multi-source cross-lingual model transfer: learning what to share, section 4.3
    (weights of the gate by language).
    """
    w = finite("gate_choice", "weights", weights, "seeds, sources", low=0.0)
    names, n = list(sources), w.shape[1]
    if len(names) != n or len(set(names)) != n:
        raise ValueError(
            f"gate_choice: sources must be {n} different names, got {', '.join(names) or 'none'}"
        )
    if np.abs(w.sum(1) - 1.0).max() > 1e-3:
        raise ValueError(
            f"gate_choice: weights must add up to 1 in every seed, got {w.sum(1).round(4).tolist()}"
        )
    own = None
    if recognition is not None:
        own = finite("gate_choice", "recognition", recognition, "seeds, sources", low=0.0)
        if own.shape[1] != n or own.max() > 1.0 + 1e-6:
            raise ValueError(
                f"gate_choice: recognition must be {n} weights in [0, 1] for every seed, got shape "
                f"{list(own.shape)} and at most {own.max():g}"
            )
    measured = None if gains is None else finite("gate_choice", "gains", gains, "sources")
    if measured is not None and measured.size != n:
        raise ValueError(f"gate_choice: gains must be {n} numbers, got {measured.size}")
    adjusted = 1.0 - (1.0 - confidence) / n
    found = tuple(
        SourceWeight(
            name,
            t_interval(w[:, k].tolist(), confidence),
            flag_above(t_interval((w[:, k] - 1.0 / n).tolist(), adjusted)),
            None if own is None else t_interval(own[:, k].tolist(), confidence),
            None if measured is None else float(measured[k]),
        )
        for k, name in enumerate(names)
    )
    correlation, flag, effect = None, "not clear", 0.0
    if measured is not None and n > 1:
        correlation = rank_correlation(w.mean(0).tolist(), measured.tolist())
        if correlation.p_value <= alpha:
            flag = "yes" if correlation.rho < 0.0 else "no"
        effect = relative(-correlation.rho, 1.0)
    recognised = None if own is None else t_interval(own.mean(1).tolist(), confidence)
    kept: Flag = "yes" if flag == "yes" else "no" if flag == "no" else "not clear"
    return GateChoice(kept, effect, found, 1.0 / n, confidence, recognised, correlation)
