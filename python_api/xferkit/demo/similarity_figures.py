"""What each figure on gradients shows, for SVG and PNG alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from xferkit.demo.similarity import FAMILIES, Means, SimilaritySummary
from xferkit.report.curves import Curve, CurvePanel
from xferkit.report.dots import Dot, DotPanel
from xferkit.report.similarity_map import SimilarityMap
from xferkit.report.similarity_report import COSINE_TICKS

__all__ = ["COSINE_TICKS", "SERIES", "course_panels", "layer_figure", "sample_label", "similarity_maps"]

#: What curves and dots are of.
SERIES = ("within a convention", "across conventions")

#: Parameters of the model as a reader knows them, in the order of the computation.
_LAYERS = {
    "token_embedding": "letters",
    "flag_embedding": "is upper-case",
    "convolutions": "convolution",
    "hidden": "hidden layer",
    "predictor": "classes",
}


def similarity_maps(summary: SimilaritySummary, names: Mapping[str, str]) -> list[SimilarityMap]:
    """The same cosines twice: ordered by convention and by clustering."""

    def ordered(title: str, order: Sequence[int], blocks: tuple[tuple[str, int], ...]) -> SimilarityMap:
        return SimilarityMap(
            title,
            tuple(names[summary.languages[n]] for n in order),
            tuple(tuple(summary.matrix[a][b] for b in order) for a in order),
            tuple(summary.languages[n] for n in order),
            blocks,
            frozenset(place for place, n in enumerate(order) if summary.families[n] == FAMILIES[0]),
        )

    runs = groupby(summary.families[n] for n in summary.by_convention)
    blocks = tuple((name, len(list(group))) for name, group in runs)
    return [
        ordered("By spelling convention", summary.by_convention, blocks),
        ordered("By clustering", summary.by_clustering, ()),
    ]


def course_panels(summary: SimilaritySummary) -> list[CurvePanel]:
    """Mean cosines over the training, on names as written and lower-cased."""
    courses = [("Names as written", summary.course), ("Lower-cased", summary.lower_course)]
    courses = [(title, course) for title, course in courses if course]
    values = [value for _, course in courses for _, *pair in course for value in pair if math.isfinite(value)]
    low, high = min([0.0, *values]), max([0.0, *values])
    span = (math.floor(low * 2) / 2, math.ceil(high * 2) / 2) if high > low else (0.0, 1.0)
    middle = float(summary.focus[len(summary.focus) // 2])
    return [
        CurvePanel(
            title,
            tuple(
                Curve(name, tuple((float(row[0]), row[place]) for row in course), middle)
                for place, name in enumerate(SERIES, 1)
            ),
            span,
        )
        for title, course in courses
    ]


def layer_figure(summary: SimilaritySummary) -> tuple[list[str], list[DotPanel]]:
    """Mean cosines of each layer by itself."""
    labels = ["whole model", *map(_layer_label, summary.layers)]
    written = [summary.written, *(means for means, _ in summary.layers.values())]
    lower = [summary.lower, *(means for _, means in summary.layers.values())]
    panels = [DotPanel("Names as written", tuple(_dots(means) for means in written))]
    if summary.lower is not None:
        panels.append(DotPanel("Lower-cased", tuple(_dots(means) for means in lower)))
    return labels, panels


def sample_label(size: int, batch: int) -> str:
    """What gradients were taken over."""
    return f"{batch} names, with dropout: a training step" if size == 0 else f"{size} names"


def _dots(means: Means | None) -> tuple[Dot | None, ...]:
    if means is None:
        return (None, None)
    return tuple(Dot(interval.mean, interval.half_width) for interval in (means.within, means.across))


def _layer_label(name: str) -> str:
    return next((label for part, label in _LAYERS.items() if part in name.split(".")), name)
