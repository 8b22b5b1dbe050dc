"""Is the model too small for both? What a wider one does to the gap between training with and without the
source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xferkit.metrics.intervals import Interval, t_interval
from xferkit.transfer.causes.cause import Cause, Flag, finite, flag_above, interval_text, relative

__all__ = ["Capacity", "capacity"]


@dataclass(frozen=True)
class Capacity(Cause):
    """The gap at two widths.

    Attributes:
        narrow_gap: score without the source minus score with it at the smaller width; positive: the source
            hurts.
        wide_gap: the same at the larger one.
        shrinkage: narrow_gap - wide_gap, paired over seeds; positive: width closes the gap.
        widths: of both models, as words.
        confidence: of the intervals.
        points: gaps are told in points, 100 of them a unit of the score.
    """

    cause: ClassVar[str] = "capacity"
    narrow_gap: Interval
    wide_gap: Interval
    shrinkage: Interval
    widths: tuple[str, str]
    confidence: float
    points: bool = False

    def sentence(self) -> str:
        """One plain sentence with both gaps."""
        narrow, wide = self.widths
        start = {
            "yes": "A wider model shrinks what the source costs",
            "no": "A wider model does not shrink what the source costs",
            "not clear": "It is not clear whether a wider model shrinks what the source costs",
        }[self.flag]
        if self.flag == "no" and self.narrow_gap.high <= 0.0:
            start = f"The source costs nothing in the {narrow} model that width could win back"
        scale, digits, unit = (100.0, 1, " points") if self.points else (1.0, 3, "")
        shrinkage = Interval(scale * self.shrinkage.mean, scale * self.shrinkage.half_width, self.shrinkage.n)
        return (
            f"{start}: {scale * self.narrow_gap.mean:.{digits}f}{unit} in the {narrow} model and "
            f"{scale * self.wide_gap.mean:.{digits}f} in the {wide} one, a difference of "
            f"{interval_text(shrinkage, self.confidence, digits=digits)}."
        )


def capacity(
    narrow_with: Sequence[float],
    narrow_without: Sequence[float],
    wide_with: Sequence[float],
    wide_without: Sequence[float],
    *,
    higher_is_better: bool = True,
    widths: tuple[str, str] = ("narrow", "wide"),
    points: bool = False,
    confidence: float = 0.95,
) -> Capacity:
    """Difference of the gaps at two widths, paired over seeds; the null is that width changes nothing, 0.

    gap = ±(score without the source - score with it), positive where the source hurts; shrinkage =
    gap(narrow) - gap(wide). *yes*: the intervals of shrinkage and of the narrow gap both lie above 0; *no*:
    one of them ends at 0 or below; else not clear. A gap may shrink because scores near their ceiling leave
    no room: read both.

    Args:
        narrow_with: ``[seeds]``, scores of the target with the source in the smaller model.
        narrow_without: without the source.
        wide_with: with the source in the larger model.
        wide_without: without the source.
        higher_is_better: False for losses and errors.
        widths: words for both models.
        points: tell gaps in points, 100 of them a unit of the score.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: numbers of seeds that differ, none, or a score that is not finite.

    Source: Wang, Lipton and Tsvetkov (2020), On negative interference in multilingual models (capacity of a
    model shared by languages); Conneau et al. (2020), Unsupervised cross-lingual representation learning at
    scale, section 5.1.
    """
    given = {
        "narrow_with": narrow_with,
        "narrow_without": narrow_without,
        "wide_with": wide_with,
        "wide_without": wide_without,
    }
    scores = {name: finite("capacity", name, values, "seeds") for name, values in given.items()}
    for name, values in scores.items():
        if values.size != scores["narrow_with"].size:
            raise ValueError(
                f"capacity: {name} must pair seed by seed with narrow_with's {scores['narrow_with'].size} "
                f"scores, got {values.size}"
            )
    sign = 1.0 if higher_is_better else -1.0
    narrow = sign * (scores["narrow_without"] - scores["narrow_with"])
    wide = sign * (scores["wide_without"] - scores["wide_with"])
    gaps = [t_interval(x.tolist(), confidence) for x in (narrow, wide, narrow - wide)]
    flags = [flag_above(gaps[0]), flag_above(gaps[2])]
    flag: Flag = "no" if "no" in flags else "not clear" if "not clear" in flags else "yes"
    effect = relative(gaps[2].mean, gaps[0].mean)
    return Capacity(flag, effect, gaps[0], gaps[1], gaps[2], widths, confidence, points)
