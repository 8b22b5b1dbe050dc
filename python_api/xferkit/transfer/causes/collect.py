"""Causes in the order in which a report tells them, and those that were not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xferkit.transfer.causes.capacity import Capacity
from xferkit.transfer.causes.cause import Cause
from xferkit.transfer.causes.clusters import SourceClusters
from xferkit.transfer.causes.conflict import GradientConflict
from xferkit.transfer.causes.domination import Domination
from xferkit.transfer.causes.gates import GateChoice
from xferkit.transfer.causes.input_shift import InputShift
from xferkit.transfer.causes.leakage import Leakage
from xferkit.transfer.causes.mask_overlap import MaskOverlap
from xferkit.transfer.causes.shift import LabelShift, MissingClasses
from xferkit.transfer.causes.tokens import TokenCosts
from xferkit.transfer.causes.vocabulary import WordCoverage

__all__ = ["CAUSES", "RankedCauses", "rank_causes"]

_KINDS: tuple[type[Cause], ...] = (
    GradientConflict,
    SourceClusters,
    Domination,
    LabelShift,
    MissingClasses,
    InputShift,
    WordCoverage,
    TokenCosts,
    Leakage,
    Capacity,
    GateChoice,
    MaskOverlap,
)

#: Names of the causes that can be measured, in the order in which a report lists what was not.
CAUSES: tuple[str, ...] = tuple(kind.cause for kind in _KINDS)

_ORDER = {"yes": 0, "not clear": 1, "no": 2}


@dataclass(frozen=True)
class RankedCauses:
    """Causes of one target, or of one target and source.

    Attributes:
        causes: those that are there first, then those that are not clear, then those that are not; each by
            effect.
        not_measured: the others and why.
    """

    causes: tuple[Cause, ...]
    not_measured: tuple[tuple[str, str], ...]

    @property
    def found(self) -> tuple[Cause, ...]:
        """Those whose flag is "yes"."""
        return tuple(cause for cause in self.causes if cause.flag == "yes")

    def sentences(self) -> tuple[str, ...]:
        """One a cause in their order, then one for each that was not measured."""
        missing = (f"not measured: {name} ({why})" for name, why in self.not_measured)
        return (*(cause.sentence() for cause in self.causes), *missing)

    def to_json(self) -> dict[str, Any]:
        """Records of all causes in their order, and what was not measured."""
        return {
            "causes": [cause.to_json() for cause in self.causes],
            "not_measured": [{"cause": name, "why": why} for name, why in self.not_measured],
        }


def rank_causes(
    causes: Sequence[Cause],
    not_measured: Mapping[str, str] | None = None,
    *,
    why_not: str = "not asked for",
) -> RankedCauses:
    """Order measured causes, and name those that were not measured.

    Flags come first (yes, not clear, no), then the effect: excess over the null as a share of the largest
    possible one. Effects of different causes are on one scale but of different meaning: the order is one of
    reading, not of blame.

    Args:
        causes: measured ones; a kind may come several times, as for several sources.
        not_measured: reason by name (:data:`CAUSES`) of those that could not be measured.
        why_not: reason for the names that are in neither.

    Raises:
        ValueError: an unknown name in `not_measured`, or one that was measured.
    """
    reasons = dict(not_measured or {})
    measured = {cause.cause for cause in causes}
    for name in reasons:
        if name not in CAUSES:
            raise ValueError(f"rank_causes: not_measured must name one of {', '.join(CAUSES)}, got {name}")
        if name in measured:
            raise ValueError(f"rank_causes: not_measured names {name}, which was measured")
    ordered = sorted(causes, key=lambda cause: (_ORDER[cause.flag], -cause.effect))
    missing = tuple((name, reasons.get(name, why_not)) for name in CAUSES if name not in measured)
    return RankedCauses(tuple(ordered), missing)
