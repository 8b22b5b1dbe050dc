"""From single runs to a table: means over seeds, paired differences to pooled, gates, checks of the paper's claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from xferkit.experiments.tables.config import BASELINE, Panel, TableConfig
from xferkit.experiments.tables.plan import METHODS, Method, cell_of
from xferkit.experiments.tagging_cell import LOOKUPS, TaggingCell, TaggingOutcome
from xferkit.metrics import Interval, Verdict, paired_difference, t_interval, verdict

__all__ = ["GateRow", "MethodResult", "PanelResult", "TargetResult", "deviation", "summarise"]

Records = Mapping[TaggingCell, TaggingOutcome]


@dataclass(frozen=True)
class MethodResult:
    """One method on one target, over seeds.

    Attributes:
        name: method.
        runs: the target's test score of each seed.
        score: their mean and interval.
        sd: their sample deviation; NaN for one seed.
        accuracy: token accuracy of the same sentences.
        gain: paired difference to pooled; None for pooled.
        man_gain: paired difference to MAN; None for MAN, and where MAN was not run.
        source_score: score on the sources' development sentences, mean over sources.
        discriminator: accuracy of the adversary on held-out sentences; None without one.
        probe: accuracy of a fresh classifier of languages on the shared features; None where none was trained.
        gate_accuracy: by gate.
        seconds: mean time of a run.
    """

    name: str
    runs: tuple[float, ...]
    score: Interval
    sd: float
    accuracy: Interval
    gain: Interval | None
    man_gain: Interval | None
    source_score: Interval
    discriminator: Interval | None
    probe: Interval | None
    gate_accuracy: dict[str, Interval]
    seconds: float

    @property
    def about(self) -> Method:
        """Label and note."""
        return METHODS.get(self.name, Method(self.name, ""))

    @property
    def verdict(self) -> Verdict | None:
        """What the difference to pooled allows one to say."""
        return None if self.gain is None else verdict(self.gain)


@dataclass(frozen=True)
class TargetResult:
    """All methods on one target.

    Attributes:
        target: language.
        kind: ``related`` or ``distant``.
        methods: in the order of the table.
        lookups: score of what needs no training, by name.
        lookup_accuracy: their token accuracy.
        sizes: counts of the target's sentences and tokens.
    """

    target: str
    kind: str
    methods: tuple[MethodResult, ...]
    lookups: dict[str, float]
    lookup_accuracy: dict[str, float]
    sizes: dict[str, int]

    def method(self, name: str) -> MethodResult | None:
        """Result of method `name`, None when it was not run."""
        return next((method for method in self.methods if method.name == name), None)


@dataclass(frozen=True)
class GateRow:
    """Mean weights of the sources on one language's sentences, over seeds.

    Attributes:
        language: whose sentences.
        kind: ``related`` or ``distant`` (test sentences), or ``source`` (held-out sentences of a source).
        weights: by source, summing to 1.
        sisters: the sources that are the language's relatives; itself, for a source.
    """

    language: str
    kind: str
    weights: dict[str, float]
    sisters: tuple[str, ...]

    @property
    def preference(self) -> float | None:
        """Mean weight of a sister less that of another source; None where there are not both."""
        near = [w for lang, w in self.weights.items() if lang in self.sisters]
        far = [w for lang, w in self.weights.items() if lang not in self.sisters]
        return statistics.fmean(near) - statistics.fmean(far) if near and far else None


@dataclass(frozen=True)
class PanelResult:
    """A source set and its targets.

    Attributes:
        name: of the panel.
        panel: its languages.
        targets: in the order of the configuration.
        gates: by method with gates and by gate, rows of targets, then of sources.
        gate_accuracy: by method and gate, on the sources' held-out tokens, over all runs of the panel.
        sizes: counts by source.
    """

    name: str
    panel: Panel
    targets: tuple[TargetResult, ...]
    gates: dict[str, dict[str, tuple[GateRow, ...]]]
    gate_accuracy: dict[str, dict[str, Interval]]
    sizes: dict[str, dict[str, int]]


def deviation(values: Sequence[float]) -> float:
    """Sample deviation (divisor n - 1); NaN for one value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def summarise(config: TableConfig, records: Records) -> tuple[PanelResult, ...]:
    """Every panel of a table from its runs.

    Raises:
        KeyError: a run is missing.
    """
    return tuple(_panel(config, name, records) for name in config.panels)


def _panel(config: TableConfig, name: str, records: Records) -> PanelResult:
    panel = config.panels[name]
    methods = config.panel_methods(name)
    runs = {
        (target, method): [records[cell_of(config, name, target, method, seed)] for seed in config.seeds]
        for target in panel.targets
        for method in methods
    }
    lookups = {
        method: records[cell_of(config, name, next(iter(panel.targets)), method, 0)] for method in LOOKUPS
    }
    targets = tuple(_target(config, target, kind, runs, lookups) for target, kind in panel.targets.items())
    gated = {
        method: found for method in methods if (found := _gates(panel, runs, method))
    }  # by gate, for the methods that have any
    accuracy = {
        method: {
            gate: t_interval(
                [
                    run.gate_accuracy[gate]
                    for run in _distinct(runs[target, method] for target in panel.targets)
                ]
            )
            for gate in gates
        }
        for method, gates in gated.items()
    }
    first = runs[next(iter(panel.targets)), BASELINE][0]
    sizes = {lang: first.sizes[lang] for lang in panel.sources}
    return PanelResult(name, panel, targets, gated, accuracy, sizes)


def _distinct(groups: object) -> list[TaggingOutcome]:
    # One run may stand for several targets; it counts once.
    found: dict[int, TaggingOutcome] = {}
    for group in groups:  # type: ignore[attr-defined]
        found |= {id(run): run for run in group}
    return list(found.values())


_Runs = Mapping[tuple[str, str], list[TaggingOutcome]]


def _target(
    config: TableConfig, target: str, kind: str, runs: _Runs, lookups: Mapping[str, TaggingOutcome]
) -> TargetResult:
    score = config.settings.score_name

    def scores(method: str) -> list[float]:
        return [run.targets[target][score] for run in runs[target, method]]

    def result(method: str) -> MethodResult:
        of = runs[target, method]
        own = scores(method)

        def interval(value: Callable[[TaggingOutcome], float | None]) -> Interval | None:
            found = [value(run) for run in of]
            known = [number for number in found if number is not None]
            return t_interval(known) if len(known) == len(found) else None

        def against(other: str) -> Interval | None:
            known = (target, other) in runs and other != method
            return paired_difference(own, scores(other)) if known else None

        accuracy = interval(lambda run: run.targets[target]["accuracy"])
        source = interval(lambda run: statistics.fmean(s[score] for s in run.sources.values()))
        assert accuracy is not None and source is not None
        return MethodResult(
            name=method,
            runs=tuple(own),
            score=t_interval(own),
            sd=deviation(own),
            accuracy=accuracy,
            gain=against(BASELINE),
            man_gain=against("man"),
            source_score=source,
            discriminator=interval(lambda run: run.discriminator_accuracy),
            probe=interval(lambda run: run.probe_accuracy.get(target)),
            gate_accuracy={
                gate: t_interval([r.gate_accuracy[gate] for r in of]) for gate in of[0].gate_accuracy
            },
            seconds=statistics.fmean(run.seconds for run in of),
        )

    methods = [method for of, method in runs if of == target]
    return TargetResult(
        target=target,
        kind=kind,
        methods=tuple(result(method) for method in methods),
        lookups={name: run.targets[target][score] for name, run in lookups.items()},
        lookup_accuracy={name: run.targets[target]["accuracy"] for name, run in lookups.items()},
        sizes=runs[target, BASELINE][0].sizes[target],
    )


def _gates(panel: Panel, runs: _Runs, method: str) -> dict[str, tuple[GateRow, ...]]:
    everything = _distinct(runs[target, method] for target in panel.targets)
    rows: dict[str, tuple[GateRow, ...]] = {}
    for gate in everything[0].gates:

        def row(
            language: str, kind: str, of: Sequence[TaggingOutcome], sisters: tuple[str, ...], gate: str
        ) -> GateRow:
            columns = zip(*(run.gates[gate][language] for run in of), strict=True)
            means = [statistics.fmean(column) for column in columns]
            return GateRow(language, kind, dict(zip(panel.sources, means, strict=True)), sisters)

        rows[gate] = (
            *(
                row(target, kind, runs[target, method], panel.sisters.get(target, ()), gate)
                for target, kind in panel.targets.items()
            ),
            *(row(source, "source", everything, (source,), gate) for source in panel.sources),
        )
    return rows
