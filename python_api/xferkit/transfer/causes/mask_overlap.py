"""Do target and source keep other parts of the model? Overlap of masks against random ones and halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xferkit.metrics.intervals import Interval, t_interval
from xferkit.transfer.causes.cause import Cause, Floats, finite, flag_above, interval_text, relative

if TYPE_CHECKING:
    from xferkit.masks import MaskComparison

__all__ = ["LayerOverlap", "MaskOverlap", "mask_overlap"]


@dataclass(frozen=True)
class LayerOverlap:
    """One layer.

    Attributes:
        name: of the layer.
        iou: intersection over union of the kept gates of target and source, mean over seeds.
        halves: of two halves of one task.
        random: expected of random masks that keep as many.
    """

    name: str
    iou: float
    halves: float
    random: float


@dataclass(frozen=True)
class MaskOverlap(Cause):
    """Kept gates of target and source.

    Attributes:
        iou: intersection over union, over seeds.
        halves: the same of two halves of one task.
        random: expected of random masks that keep as many in every site.
        below_halves: halves - iou, paired over seeds; positive: tasks share less than halves of one.
        above_random: iou - random, paired over seeds.
        p_values: of each seed, of random masks overlapping as much.
        layers: of each layer with a number.
        confidence: of the intervals.
        examples: that each mask was trained on; None: not told.
    """

    cause: ClassVar[str] = "mask overlap"
    iou: Interval
    halves: Interval
    random: Interval
    below_halves: Interval
    above_random: Interval
    p_values: tuple[float, ...]
    layers: tuple[LayerOverlap, ...]
    confidence: float
    examples: int | None = None

    def sentence(self) -> str:
        """One plain sentence with the overlap and both of its nulls."""
        start = {
            "yes": "Target and source keep other parts of the model",
            "no": "Target and source keep the same parts of the model as halves of one task do",
            "not clear": "It is not clear whether target and source keep other parts of the model",
        }[self.flag]
        return (
            f"{start}: the kept gates overlap by {self.iou.mean:.2f}, those of two halves of one task by "
            f"{self.halves.mean:.2f}, {interval_text(self.below_halves, self.confidence)} more, and random "
            f"ones by {self.random.mean:.2f}{'' if self.examples is None else f'; {self.examples} examples a mask'}."
        )


def mask_overlap(
    across: Sequence[MaskComparison],
    within: Sequence[MaskComparison],
    *,
    min_effect: float = 0.05,
    confidence: float = 0.95,
    examples: int | None = None,
) -> MaskOverlap:
    """Intersection over union of the kept gates of target and source, against two nulls.

    IoU = |A ∩ B| / |A ∪ B|. *yes*: the t-interval over seeds of IoU(halves) - IoU(target, source) lies above
    0 and its mean is at least `min_effect`; *no*: it ends below `min_effect`; else not clear. Random masks
    (hypergeometric, site by site) say what is shared by chance. Halves must have as many texts as the sides
    of `across`, or less text alone would make their masks less alike.

    Args:
        across: of :func:`xferkit.masks.compare_masks`, target with source, one a seed.
        within: of two halves of one task (the target), in the same order of seeds.
        min_effect: difference of IoU that would matter.
        confidence: of the intervals, in (0, 1).
        examples: that each mask was trained on, for the sentence.

    Raises:
        ValueError: other numbers of seeds, none, or masks that keep no gate, of which the overlap is NaN.

    Source: Wang, Lipton and Tsvetkov (2020), On negative interference in multilingual models, section 4
    (pruned masks by language); Jaccard (1901) for the index.
    """
    if len(across) != len(within):
        raise ValueError(
            f"mask_overlap: across and within must pair seed by seed, got {len(across)} and {len(within)} "
            f"comparisons"
        )
    iou = _ious("across", across)
    halves = _ious("within", within)
    random = finite("mask_overlap", "across", [c.whole.overlap.expected_iou for c in across], "seeds")
    below = t_interval((halves - iou).tolist(), confidence)
    known = {layer.name: layer for layer in within[0].layers}
    layers = tuple(
        LayerOverlap(
            layer.name,
            _mean([c.layers[k].overlap.iou for c in across]),
            _mean([c.layers[k].overlap.iou for c in within]),
            _mean([c.layers[k].overlap.expected_iou for c in across]),
        )
        for k, layer in enumerate(across[0].layers)
        if layer.name in known
    )
    return MaskOverlap(
        flag_above(below, min_effect),
        relative(below.mean, float(halves.mean())),
        t_interval(iou.tolist(), confidence),
        t_interval(halves.tolist(), confidence),
        t_interval(random.tolist(), confidence),
        below,
        t_interval((iou - random).tolist(), confidence),
        tuple(c.whole.overlap.p_value for c in across),
        layers,
        confidence,
        examples,
    )


def _ious(name: str, comparisons: Sequence[MaskComparison]) -> Floats:
    return finite("mask_overlap", name, [c.whole.overlap.iou for c in comparisons], "seeds")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
