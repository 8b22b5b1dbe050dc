"""The figures of a multilingual table: scores, differences to the baseline, and cosines of the languages' gradients."""

from __future__ import annotations

import math

from xferkit.experiments.multilingual.cell import Matrix
from xferkit.experiments.multilingual.claims import watched
from xferkit.experiments.multilingual.config import MultilingualConfig
from xferkit.experiments.multilingual.summary import TableResult
from xferkit.report.format import percent, points, spread
from xferkit.report.heat_map import HeatMap
from xferkit.report.svg import Bar, BarPanel, Difference, Row

__all__ = ["MEAN_TITLES", "by_family", "cosine_maps", "difference_rows", "score_figure"]

MEAN_TITLES = {"all": "All languages", "low": "Low-resource", "high": "High-resource"}


def score_figure(config: MultilingualConfig, result: TableResult) -> tuple[list[Row], list[BarPanel]]:
    """Mean scores of every row, a panel for each mean."""
    rows = [
        Row(
            row.label,
            "base" if row.name == config.baseline else "main" if row.name in config.methods else "reference",
        )
        for row in result.rows
    ]
    ends = [
        row.test[key].interval.mean + (0.0 if math.isnan(half) else half)
        for row in result.rows
        for key in result.means
        for half in [row.test[key].interval.half_width]
    ]
    high = max(0.1, min(1.0, math.ceil(max(ends) * 10) / 10))
    step = 2 if high > 0.45 else 1
    ticks = tuple((tick / 10, f"{tick * 10}") for tick in range(0, round(high * 10) + 1, step))
    panels = [
        BarPanel(
            MEAN_TITLES[key],
            tuple(
                Bar(score.interval.mean, score.interval.half_width, score.runs, percent(score.interval.mean))
                for score in (row.test[key] for row in result.rows)
            ),
            high,
            ticks,
        )
        for key in result.means
    ]
    return rows, panels


def difference_rows(config: MultilingualConfig, result: TableResult, key: str) -> list[Difference]:
    """Paired differences to the baseline of one mean or language, in points."""
    rows = []
    for row in result.rows:
        score = row.test[key]
        if score.gain is None or row.name not in config.methods:
            continue
        text = f"{points(score.gain.mean)}  [{spread(score.gain)}]  {score.verdict}"
        rows.append(
            Difference(
                row.label, 100 * score.gain.mean, 100 * score.gain.half_width, str(score.verdict), text
            )
        )
    return rows


def by_family(config: MultilingualConfig) -> tuple[str, ...]:
    """The languages, those of a family together, families in the order in which they are first named."""
    families = list(dict.fromkeys(language.family for language in config.languages.values()))
    return tuple(sorted(config.languages, key=lambda name: families.index(config.languages[name].family)))


def cosine_maps(config: MultilingualConfig, result: TableResult) -> list[HeatMap]:
    """Mean cosines of the languages' gradients in training with the plain sum, or what is nearest to it.

    Languages stand by family; a frame marks pairs of one family.
    """
    row = watched(result)
    if row is None or row.pairs is None:
        return []
    return [_map(config, f"{row.label}: cosines, hundredths", row.pairs.matrix)]


def _map(config: MultilingualConfig, title: str, matrix: Matrix) -> HeatMap:
    names, order = list(config.languages), by_family(config)
    places = [names.index(name) for name in order]
    values = tuple(tuple(matrix[i][j] for j in places) for i in places)
    largest = max((abs(value) for row in values for value in row if value is not None), default=0.0)
    marked = {
        (y, x)
        for y, one in enumerate(order)
        for x, other in enumerate(order)
        if x != y and config.related(one, other)
    }
    return HeatMap(title, order, order, values, frozenset(marked), full=largest or 1.0)
