"""The figures of a training's record of similarities: heat maps, over steps, and layer by layer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from xferkit.files import write_atomic
from xferkit.report.curves import Curve, CurvePanel, curve_panels
from xferkit.report.dots import Dot, DotPanel, dot_panels
from xferkit.report.format import signed
from xferkit.report.similarity_map import SimilarityMap, similarity_maps_svg
from xferkit.surgery.relatedness import Matrix, family_means, order_by_clustering, order_by_family
from xferkit.surgery.similarity_record import SimilarityRecord

__all__ = ["COSINE_TICKS", "record_course", "record_layers", "record_maps", "write_record_figures"]

Families = Mapping[str, Hashable]

#: Marks of an axis of cosines.
COSINE_TICKS: tuple[tuple[float, str], ...] = tuple((v, signed(v, 1)) for v in (-1.0, -0.5, 0.0, 0.5, 1.0))


def record_maps(
    record: SimilarityRecord,
    families: Families | None = None,
    *,
    group: str | None = None,
    first: int | None = None,
    last: int | None = None,
) -> list[SimilarityMap]:
    """The mean cosines as heat maps: ordered by family, where families are given, and by clustering.

    Args:
        record: what was recorded.
        families: the family of each task.
        group: of the parameters; None: the whole model.
        first: first step; None: from the beginning.
        last: last step; None: to the end.

    Raises:
        ValueError: a task whose family is not given, no such group, or nothing recorded within the bounds.
    """
    matrix = record.mean(group, first=first, last=last)
    maps = [_map("By clustering", record.tasks, matrix, order_by_clustering(matrix), None)]
    if families is not None:
        order = order_by_family(record.tasks, families)
        maps.insert(0, _map("By family", record.tasks, matrix, order, families))
    return maps


def record_course(record: SimilarityRecord, families: Families | None = None) -> list[CurvePanel]:
    """Mean cosine of pairs of tasks over the steps, and the share of pairs that surgery was active on where it was."""
    steps, names = record.middle.tolist(), _families(record, families)
    points = [_values(matrix, names) for matrix in record.model]
    curves = tuple(
        Curve(label, tuple((step, values[place]) for step, values in zip(steps, points, strict=True)))
        for place, label in enumerate(_series(families))
    )
    panels = [CurvePanel("Mean cosine, whole model", curves)]
    if record.visited.any():
        shares = np.full(len(steps), np.nan)
        visited = record.visited.sum(1)
        np.divide(record.moved.sum(1), visited, out=shares, where=visited > 0)
        curve = Curve("active", tuple(zip(steps, shares.tolist(), strict=True)))
        panels.append(CurvePanel("Share of pairs that surgery moved", (curve,), (0.0, 1.0)))
    return panels


def record_layers(
    record: SimilarityRecord, families: Families | None = None
) -> tuple[list[str], tuple[str, ...], list[DotPanel]]:
    """Rows, series and panel of the mean cosines of the whole model and of each group of parameters."""
    names = _families(record, families)
    groups = [None, *record.groups]
    rows = [tuple(Dot(value) for value in _values(record.mean(group), names)) for group in groups]
    labels = ["whole model" if group is None else group for group in groups]
    return labels, _series(families), [DotPanel("Mean cosine over all steps", tuple(rows))]


def write_record_figures(
    record: SimilarityRecord, folder: str | Path, families: Families | None = None, *, png: bool = False
) -> list[Path]:
    """Write ``similarity-map``, ``similarity-steps`` and ``similarity-layers`` as SVG files, or PNG (matplotlib).

    Args:
        record: what was recorded.
        folder: of the files, which is there.
        families: the family of each task.
        png: PNG in place of SVG.

    Raises:
        ValueError: as :func:`record_maps`. OSError: the folder cannot be written.
    """
    maps, course = record_maps(record, families), record_course(record, families)
    labels, series, layers = record_layers(record, families)
    titles = ("Cosines of the tasks' gradients", "Similarity over the training", "Similarity layer by layer")
    content: list[bytes | str]
    if png:
        from xferkit.report.curves_png import curve_panels_png
        from xferkit.report.dots import dot_panels_png
        from xferkit.report.similarity_map import similarity_maps_png

        content = [
            similarity_maps_png(titles[0], maps),
            curve_panels_png(titles[1], course),
            dot_panels_png(titles[2], labels, series, layers, ticks=COSINE_TICKS),
        ]
    else:
        width = 20 + 7.0 * max(len(label) for label in labels)
        drawn = (
            similarity_maps_svg(titles[0], maps),
            curve_panels(titles[1], course),
            dot_panels(titles[2], labels, series, layers, ticks=COSINE_TICKS, label_width=min(width, 420.0)),
        )
        content = [_alone(svg) for svg in drawn]
    paths = []
    for name, one in zip(("map", "steps", "layers"), content, strict=True):
        path = Path(folder) / f"similarity-{name}.{'png' if png else 'svg'}"
        write_atomic(path, one)
        paths.append(path)
    return paths


def _map(
    title: str, tasks: Sequence[str], matrix: Matrix, order: Sequence[int], families: Families | None
) -> SimilarityMap:
    blocks: tuple[tuple[str, int], ...] = ()
    if families is not None:
        runs = groupby(families[tasks[n]] for n in order)
        blocks = tuple((str(name), len(list(run))) for name, run in runs)
    names = [tasks[n] for n in order]
    short = [name if len(name) <= 3 else str(place) for place, name in enumerate(names, 1)]
    return SimilarityMap(
        title,
        tuple(a if a == b else f"{a}  {b}" for a, b in zip(names, short, strict=True)),
        tuple(tuple(row) for row in matrix[np.ix_(order, order)].tolist()),
        tuple(short),
        blocks,
    )


def _families(record: SimilarityRecord, families: Families | None) -> list[Hashable]:
    if families is None:
        return [None] * len(record.tasks)
    order_by_family(record.tasks, families)  # refuses a task without a family
    return [families[task] for task in record.tasks]


def _series(families: Families | None) -> tuple[str, ...]:
    return ("all pairs",) if families is None else ("within a family", "across families")


def _values(matrix: Matrix, families: Sequence[Hashable]) -> tuple[float, ...]:
    means = family_means(matrix, families)
    return (means.within,) if set(families) <= {None} else (means.within, means.across)


def _alone(svg: str) -> str:
    """An inline SVG as a file: a name space, and a font that the page would have given it."""
    return (
        str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)
        + "\n"
    )
