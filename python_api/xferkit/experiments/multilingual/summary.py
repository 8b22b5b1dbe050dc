"""From single runs to a multilingual table: means over seeds, paired differences, what was seen of gradients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from xferkit.experiments.multilingual.cell import ALONE, LOOKUP, Matrix, MultilingualCell, MultilingualOutcome
from xferkit.experiments.multilingual.config import MultilingualConfig
from xferkit.experiments.multilingual.plan import alone_cell, cell_of, lookup_cell, row_label, row_note
from xferkit.metrics import Interval, Verdict, paired_difference, t_interval, verdict
from xferkit.runs.errors import RunError

__all__ = ["MEANS", "Pairs", "RowResult", "Score", "TableResult", "summarise"]

Records = Mapping[MultilingualCell, MultilingualOutcome]

#: Scores that are means over languages; the last two are there when some languages are low-resource.
MEANS = ("all", "low", "high")


@dataclass(frozen=True)
class Score:
    """One score over seeds.

    Attributes:
        runs: that of each seed.
        interval: their mean and interval.
        sd: their sample deviation; NaN for one seed.
        gain: paired difference to the baseline; None for it, and where there are no seeds to pair.
    """

    runs: tuple[float, ...]
    interval: Interval
    sd: float
    gain: Interval | None

    @property
    def verdict(self) -> Verdict | None:
        """What the difference allows one to say."""
        return None if self.gain is None else verdict(self.gain)


@dataclass(frozen=True)
class Pairs:
    """What was seen of the languages' gradients, over seeds; cosines are means over pairs and steps.

    Attributes:
        active: share of the visited pairs that were turned; None for methods that visit none.
        before: cosine of raw gradients of the whole model.
        after: after surgery; None for methods that turn none.
        before_groups: raw, mean over the groups of the method.
        after_groups: after surgery, likewise.
        related: raw and of the whole model, pairs of one family; None without such pairs.
        others: the same of all other pairs.
        difference: the former less the latter, run by run.
        matrix: raw and of the whole model, by pair; None where a pair never met.
        matrix_after: after surgery.
        groups: by group, mean raw cosine of related pairs and of others.
        runs: by name of the fields above that are intervals, the value of each seed.
    """

    active: Interval | None
    before: Interval
    after: Interval | None
    before_groups: Interval
    after_groups: Interval | None
    related: Interval | None
    others: Interval | None
    difference: Interval | None
    matrix: Matrix
    matrix_after: Matrix | None
    groups: dict[str, tuple[float | None, float | None]]
    runs: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class RowResult:
    """One row of the table.

    Attributes:
        name: of the row.
        label: what the table calls it.
        note: what it is.
        test: by language and by :data:`MEANS`, the score on test sentences.
        dev: the same on development sentences.
        pairs: what was seen of gradients; None for methods that take none apart.
        step_seconds: processor time of a training step; None without training, and for models of one language.
        cost: the same relative to the baseline, run by run.
        parameters: trained numbers; 0 without training.
    """

    name: str
    label: str
    note: str
    test: dict[str, Score]
    dev: dict[str, Score]
    pairs: Pairs | None
    step_seconds: Interval | None
    cost: Interval | None
    parameters: int


@dataclass(frozen=True)
class TableResult:
    """All rows.

    Attributes:
        rows: those that train on all languages, in the order of the configuration, then the others.
        means: names of the means over languages, a subset of :data:`MEANS`.
        joint_gain: by language and mean, the baseline less a model of the language alone; empty without these.
        sizes: counts by language.
    """

    rows: tuple[RowResult, ...]
    means: tuple[str, ...]
    joint_gain: dict[str, Interval]
    sizes: dict[str, dict[str, int]]

    def row(self, name: str) -> RowResult | None:
        """The row of that name."""
        return next((row for row in self.rows if row.name == name), None)


def summarise(config: MultilingualConfig, records: Records) -> TableResult:
    """The table from its runs.

    Raises:
        KeyError: a run is missing.
        RunError: runs of one seed did not begin with the same parameters, so that differences are not paired.
    """
    names = [config.baseline, *(name for name in config.methods if name != config.baseline)]
    of = {name: [records[cell_of(config, name, seed)] for seed in config.seeds] for name in names}
    _check_starts(config, of)
    scores = {name: _by_language(config, runs) for name, runs in of.items()}
    base = scores[config.baseline]
    costs = [run.cpu_seconds / run.steps for run in of[config.baseline]]
    rows = {}
    for name, runs in of.items():
        own = [run.cpu_seconds / run.steps for run in runs]
        rows[name] = RowResult(
            name=name,
            label=row_label(config, name),
            note=row_note(config, name),
            test=_scores(scores[name]["test"], None if name == config.baseline else base["test"]),
            dev=_scores(scores[name]["dev"], None if name == config.baseline else base["dev"]),
            pairs=_pairs(config, runs),
            step_seconds=t_interval(own),
            cost=t_interval([a / b for a, b in zip(own, costs, strict=True)]) if all(costs) else None,
            parameters=runs[0].parameters,
        )
    ordered = [rows[name] for name in config.methods]
    joint_gain = {}
    if config.alone:
        alone = _alone(config, records)
        ordered.append(_untimed(config, ALONE, alone, base))
        joint_gain = {key: paired_difference(base["test"][key], runs) for key, runs in alone["test"].items()}
    lookup = _by_language(config, [records[lookup_cell(config)]])
    ordered.append(_untimed(config, LOOKUP, lookup, None))
    return TableResult(tuple(ordered), _means(config), joint_gain, of[config.baseline][0].sizes)


def _check_starts(config: MultilingualConfig, of: Mapping[str, Sequence[MultilingualOutcome]]) -> None:
    for number, seed in enumerate(config.seeds):
        starts = {name: runs[number].start for name, runs in of.items()}
        other = [name for name, start in starts.items() if start != starts[config.baseline]]
        if other:
            raise RunError(
                f"the runs {other[0]} and {config.baseline} of seed {seed} began with other parameters, so that they "
                "cannot be compared seed by seed; expected methods that build the same model"
            )


def _means(config: MultilingualConfig) -> tuple[str, ...]:
    return MEANS if config.low and config.high else MEANS[:1]


def _by_language(
    config: MultilingualConfig, runs: Sequence[MultilingualOutcome]
) -> dict[str, dict[str, list[float]]]:
    """By split, and by language and mean, the score of each run."""
    name = config.settings.score_name
    found: dict[str, dict[str, list[float]]] = {}
    for split in ("test", "dev"):
        scores = {lang: [getattr(run, split)[lang][name] for run in runs] for lang in config.languages}
        found[split] = _with_means(config, scores)
    return found


def _with_means(config: MultilingualConfig, scores: Mapping[str, list[float]]) -> dict[str, list[float]]:
    groups = {"all": tuple(config.languages), "low": config.low, "high": config.high}
    means = {
        name: [statistics.fmean(run) for run in zip(*(scores[lang] for lang in groups[name]), strict=True)]
        for name in _means(config)
    }
    return {**means, **scores}


def _alone(config: MultilingualConfig, records: Records) -> dict[str, dict[str, list[float]]]:
    name = config.settings.score_name
    runs = {
        lang: [records[alone_cell(config, lang, seed)] for seed in config.seeds] for lang in config.languages
    }
    return {
        split: _with_means(
            config, {lang: [getattr(run, split)[lang][name] for run in of] for lang, of in runs.items()}
        )
        for split in ("test", "dev")
    }


def _scores(
    scores: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]] | None
) -> dict[str, Score]:
    return {
        key: Score(
            tuple(runs),
            t_interval(runs),
            statistics.stdev(runs) if len(runs) > 1 else math.nan,
            None if base is None else paired_difference(runs, base[key]),
        )
        for key, runs in scores.items()
    }


def _untimed(
    config: MultilingualConfig,
    name: str,
    scores: Mapping[str, Mapping[str, list[float]]],
    base: Mapping[str, Mapping[str, list[float]]] | None,
) -> RowResult:
    return RowResult(
        name=name,
        label=row_label(config, name),
        note=row_note(config, name),
        test=_scores(scores["test"], None if base is None else base["test"]),
        dev=_scores(scores["dev"], None if base is None else base["dev"]),
        pairs=None,
        step_seconds=None,
        cost=None,
        parameters=0,
    )


def _pairs(config: MultilingualConfig, runs: Sequence[MultilingualOutcome]) -> Pairs | None:
    seen = [run.pairs for run in runs if run.pairs is not None]
    if len(seen) < len(runs):
        return None
    names = tuple(config.languages)

    def mean(matrix: Matrix, wanted: Callable[[str, str], bool] = lambda a, b: True) -> float | None:
        found = [
            value
            for i, row in enumerate(matrix)
            for j, value in enumerate(row)
            if i < j and value is not None and wanted(names[i], names[j])
        ]
        return statistics.fmean(found) if found else None

    def of_others(one: str, other: str) -> bool:
        return not config.related(one, other)

    def over_groups(matrices: Sequence[Matrix]) -> float | None:
        found = [value for value in map(mean, matrices) if value is not None]
        return statistics.fmean(found) if found else None

    runs_of: dict[str, tuple[float, ...]] = {}

    def interval(name: str, values: Iterable[float | None]) -> Interval | None:
        known = [value for value in values if value is not None]
        if len(known) < len(seen):
            return None
        runs_of[name] = tuple(known)
        return t_interval(known)

    before = interval("before", (mean(s.before) for s in seen))
    before_groups = interval("before_groups", (over_groups(s.before_groups) for s in seen))
    if before is None or before_groups is None:
        return None
    related = interval("related", (mean(s.before, config.related) for s in seen))
    others = interval("others", (mean(s.before, of_others) for s in seen))
    difference = None
    if related is not None and others is not None:
        difference = paired_difference(runs_of["related"], runs_of["others"])
    groups = {
        group: (
            _mean_known(mean(s.before_groups[k], config.related) for s in seen),
            _mean_known(mean(s.before_groups[k], of_others) for s in seen),
        )
        for k, group in enumerate(seen[0].groups)
    }
    after = [s.after for s in seen if s.after is not None]
    return Pairs(
        active=interval("active", (s.active / s.visited if s.visited else None for s in seen)),
        before=before,
        after=interval("after", (None if s.after is None else mean(s.after) for s in seen)),
        before_groups=before_groups,
        after_groups=interval("after_groups", (over_groups(s.after_groups) for s in seen)),
        related=related,
        others=others,
        difference=difference,
        matrix=_mean_matrix([s.before for s in seen]),
        matrix_after=_mean_matrix(after) if len(after) == len(seen) else None,
        groups=groups,
        runs=runs_of,
    )


def _mean_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _mean_matrix(matrices: Sequence[Matrix]) -> Matrix:
    size = range(len(matrices[0]))
    return tuple(tuple(_mean_known(m[i][j] for m in matrices) for j in size) for i in size)
