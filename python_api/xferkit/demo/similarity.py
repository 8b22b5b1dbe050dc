"""From runs that compare gradients to what they say together: means within and across spelling conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xferkit.data.panels import capitalises
from xferkit.demo.plan import SimilaritySpec
from xferkit.demo.store import Pairs, SimilarityOutcome
from xferkit.metrics import Interval, paired_difference, t_interval, verdict
from xferkit.report.format import signed_interval
from xferkit.surgery.relatedness import clusters, family_means, order_by_clustering, order_by_family

__all__ = [
    "FAMILIES",
    "Means",
    "SimilaritySummary",
    "similarity_sentences",
    "summarise_similarity",
]

SimilarityRecords = Mapping[SimilaritySpec, SimilarityOutcome]
Matrix = npt.NDArray[np.float64]

#: What the two conventions are called in figures.
FAMILIES = ("capitalise", "lower case")


@dataclass(frozen=True)
class Means:
    """Mean cosine over pairs of languages, with intervals over seeds.

    Attributes:
        within: pairs of one convention.
        across: pairs of two.
        gap: within less across, paired by seed.
        gaps: the gap of each seed.
    """

    within: Interval
    across: Interval
    gap: Interval
    gaps: tuple[float, ...]


@dataclass(frozen=True)
class SimilaritySummary:
    """Everything the runs that compare gradients say.

    Attributes:
        languages: in the order of the matrix.
        families: convention of each.
        seeds: number of seeds.
        steps: training steps of a run.
        focus: the steps that all but `course` is a mean over.
        matrix: cosines of the whole model, mean over seeds.
        by_convention: order of the languages by convention, then as in the panel.
        by_clustering: order of the leaves of their hierarchical clustering, which knows no convention.
        strays: languages that a cut of it into two puts with the other convention.
        by_chance: languages a cut into one would put right: those of the larger convention.
        written: the whole model's means on names as written.
        lower: the same on lower-cased names; None when the control was not run.
        change: gap as written less gap lower-cased, paired by seed; None without the control.
        samples: means of gradients over fewer names, by their number; 0: those of a training batch.
        layers: means of each layer by itself, as written and lower-cased.
        course: (step, mean within, mean across) as written.
        lower_course: the same of the control; empty without it.
    """

    languages: tuple[str, ...]
    families: tuple[str, ...]
    seeds: int
    steps: int
    focus: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...]
    by_convention: tuple[int, ...]
    by_clustering: tuple[int, ...]
    strays: tuple[str, ...]
    by_chance: int
    written: Means
    lower: Means | None
    change: Interval | None
    samples: dict[int, Means]
    layers: dict[str, tuple[Means, Means | None]]
    course: tuple[tuple[int, float, float], ...]
    lower_course: tuple[tuple[int, float, float], ...]

    @property
    def num_comparisons(self) -> int:
        """Intervals of differences that something is said from: gaps, and the change of the gap."""
        gaps = [self.written, self.lower, *self.samples.values()]
        return sum(means is not None for means in gaps) + (self.change is not None)


def summarise_similarity(records: SimilarityRecords) -> SimilaritySummary | None:
    """What `records` say together; None where there are none.

    Raises:
        ValueError: runs of different languages, or other seeds with and without capitals.
    """
    written = {spec.seed: outcome for spec, outcome in records.items() if not spec.lowercase}
    lower = {spec.seed: outcome for spec, outcome in records.items() if spec.lowercase}
    if not written:
        return None
    if len({spec.languages for spec in records}) != 1 or (lower and set(lower) != set(written)):
        raise ValueError(
            "the runs that compare gradients must be of the same languages and seeds as written and lower-cased, "
            f"got seeds {sorted(written)} and {sorted(lower)}"
        )
    spec = next(spec for spec in records if not spec.lowercase)
    families = tuple(FAMILIES[0] if capitalises(lang) else FAMILIES[1] for lang in spec.languages)
    first = next(iter(written.values()))

    def means(runs: Mapping[int, SimilarityOutcome], pick: Callable[[SimilarityOutcome], Pairs]) -> Means:
        return _means([_matrix(pick(runs[seed]), len(families)) for seed in sorted(runs)], families)

    def both(pick: Callable[[SimilarityOutcome], Pairs]) -> tuple[Means, Means | None]:
        return means(written, pick), means(lower, pick) if lower else None

    matrices = [_matrix(outcome.model, len(families)) for outcome in written.values()]
    matrix = _mean_matrix(matrices)
    main, control = both(lambda outcome: outcome.model)
    by_family = dict(zip(spec.languages, families, strict=True))
    return SimilaritySummary(
        languages=spec.languages,
        families=families,
        seeds=len(written),
        steps=spec.steps,
        focus=spec.focus,
        matrix=tuple(tuple(row) for row in matrix.tolist()),
        by_convention=order_by_family(spec.languages, by_family),
        by_clustering=order_by_clustering(matrix),
        strays=_strays(spec.languages, families, clusters(matrix, 2)),
        by_chance=max(families.count(name) for name in FAMILIES),
        written=main,
        lower=control,
        change=paired_difference(main.gaps, control.gaps) if control else None,
        samples={int(size): means(written, lambda o, size=size: o.samples[size]) for size in first.samples},  # type: ignore[misc]
        layers={name: both(lambda o, name=name: o.layers[name]) for name in first.layers},  # type: ignore[misc]
        course=_course(written, families),
        lower_course=_course(lower, families),
    )


def _matrix(pairs: Pairs, size: int) -> Matrix:
    matrix = np.eye(size)
    rows, columns = np.triu_indices(size, 1)
    if len(pairs) != len(rows):
        raise ValueError(f"{size} languages have {len(rows)} pairs, got {len(pairs)} cosines")
    values = np.array([np.nan if value is None else value for value in pairs], dtype=np.float64)
    matrix[rows, columns] = matrix[columns, rows] = values
    return matrix


def _mean_matrix(matrices: Sequence[Matrix]) -> Matrix:
    stacked = np.stack(matrices)
    seen = np.isfinite(stacked).sum(0)
    mean = np.full(seen.shape, np.nan)
    np.divide(np.nansum(stacked, axis=0), seen, out=mean, where=seen > 0)
    return mean


def _means(matrices: Sequence[Matrix], families: Sequence[str]) -> Means:
    found = [family_means(matrix, families) for matrix in matrices]
    within, across = [one.within for one in found], [one.across for one in found]
    gaps = tuple(a - b for a, b in zip(within, across, strict=True))
    return Means(t_interval(within), t_interval(across), t_interval(gaps), gaps)


def _course(
    runs: Mapping[int, SimilarityOutcome], families: Sequence[str]
) -> tuple[tuple[int, float, float], ...]:
    if not runs:
        return ()
    steps = sorted(int(step) for step in next(iter(runs.values())).course)
    found = []
    for step in steps:
        each = [_matrix(outcome.course[str(step)], len(families)) for outcome in runs.values()]
        means = _means(each, families)
        found.append((step, means.within.mean, means.across.mean))
    return tuple(found)


def _strays(languages: Sequence[str], families: Sequence[str], found: Sequence[int]) -> tuple[str, ...]:
    """Those on the wrong side, with the two sides named so that they are fewest."""
    sides = [FAMILIES.index(family) for family in families]
    same = [lang for lang, side, cluster in zip(languages, sides, found, strict=True) if side != cluster]
    crossed = [lang for lang, side, cluster in zip(languages, sides, found, strict=True) if side == cluster]
    return tuple(crossed if len(crossed) < len(same) else same)


def similarity_sentences(summary: SimilaritySummary, names: Mapping[str, str]) -> tuple[str, ...]:
    """What the gradients do, whether capitals are why, what clusters they form, and what one step sees of it.

    Each sentence has a form for every way the numbers can fall.
    """
    sentences = [_agreement(summary), _control(summary), _clusters(summary, names), _one_step(summary)]
    return tuple(sentence for sentence in sentences if sentence)


def _agreement(summary: SimilaritySummary) -> str:
    means = summary.written
    figures = (
        f"their mean cosine is {signed_interval(means.within)} within a convention and "
        f"{signed_interval(means.across)} across"
    )
    when = f"around step {summary.focus[len(summary.focus) // 2]} of {summary.steps}"
    found = verdict(means.gap)
    if found == "one run only":
        return f"Who pulls together: {when} of one run, {figures}."
    if found != "helps":
        how = "agree less" if found == "hurts" else "do not clearly agree more"
        return f"Who pulls together: {when}, gradients {how} within a convention than across; {figures}."
    if means.across.high < 0:
        how = "languages of different conventions pull against each other"
    elif means.across.low > 0:
        how = "all pull together, those of one convention more"
    else:
        how = "languages of one convention pull together, those of different ones are about unrelated"
    return f"Who pulls together: {when}, {how}; {figures}."


def _control(summary: SimilaritySummary) -> str:
    if summary.lower is None or summary.change is None:
        return ""
    figures = (
        f"within less across is {signed_interval(summary.written.gap)} on names as written and "
        f"{signed_interval(summary.lower.gap)} lower-cased"
    )
    found = verdict(summary.change)
    if found == "one run only":
        return f"Is it the capitals: one run cannot tell; {figures}."
    if found != "helps":
        return f"Is it the capitals: these figures do not show it; {figures}."
    left = {
        "helps": "the difference shrinks without them",
        "hurts": "it turns round without them",
    }.get(verdict(summary.lower.gap), "no clear difference is left without them")
    return f"Is it the capitals: yes, as far as these runs show; {figures}: {left}."


def _clusters(summary: SimilaritySummary, names: Mapping[str, str]) -> str:
    right = len(summary.languages) - len(summary.strays)
    but = f" (not {', '.join(names[lang] for lang in summary.strays)})" if summary.strays else ""
    return (
        f"Found from the gradients alone: cut into two clusters, they put {right} of {len(summary.languages)} "
        f"languages with their convention{but}; one cluster of all would be right for {summary.by_chance}."
    )


def _one_step(summary: SimilaritySummary) -> str:
    means = summary.samples.get(0)
    if means is None:
        return ""
    hidden = 0 <= means.gap.mean < 0.5 * summary.written.gap.mean and verdict(summary.written.gap) == "helps"
    why = (
        ": sampling noise, which is unrelated from language to language, makes up most of such a gradient"
        if hidden
        else ""
    )
    return (
        "What one step of surgery sees: with the few names of a training batch the same means are "
        f"{signed_interval(means.within)} and {signed_interval(means.across)}{why}."
    )
