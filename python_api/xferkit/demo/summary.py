"""From single runs to what they say together: means, intervals, paired differences, shares of gate weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xferkit.data.cldr import CLASSES, NameData
from xferkit.data.panels import capitalised_share, capitalises, same_convention_sources
from xferkit.demo.plan import BASELINE, METHODS, CellSpec
from xferkit.demo.store import CellOutcome
from xferkit.metrics import (
    Interval,
    Verdict,
    binomial_error,
    majority_rate,
    paired_difference,
    t_interval,
    verdict,
)

__all__ = ["ControlSummary", "MethodSummary", "TargetSummary", "capitalisation", "summarise"]

Records = Mapping[CellSpec, CellOutcome]


@dataclass(frozen=True)
class MethodSummary:
    """One method on one target, over seeds.

    Attributes:
        name: method.
        label: method as the report calls it.
        note: what it does, in a phrase.
        sources: languages whose labels it saw.
        accuracy: mean and interval.
        macro_f1: mean and interval.
        runs: accuracy of each seed.
        accuracy_gain: paired difference to pooled; None for pooled itself.
        macro_f1_gain: the same of macro-F1.
        seconds: mean time of a run.
        gate: mean gate weight of each source over seeds; None without a gate.
    """

    name: str
    label: str
    note: str
    sources: tuple[str, ...]
    accuracy: Interval
    macro_f1: Interval
    runs: tuple[float, ...]
    accuracy_gain: Interval | None
    macro_f1_gain: Interval | None
    seconds: float
    gate: dict[str, float] | None

    @property
    def accuracy_verdict(self) -> Verdict | None:
        """What the accuracy's difference to pooled allows one to say."""
        return None if self.accuracy_gain is None else verdict(self.accuracy_gain)

    @property
    def macro_f1_verdict(self) -> Verdict | None:
        """What the macro-F1's difference to pooled allows one to say."""
        return None if self.macro_f1_gain is None else verdict(self.macro_f1_gain)


@dataclass(frozen=True)
class ControlSummary:
    """A method on names as written and lower-cased.

    Attributes:
        name: method.
        label: method as the report calls it.
        written: accuracy on names as written.
        lower: accuracy on lower-cased names.
        shift: paired difference of the two (lower - written): what lower-casing does by itself.
        written_gain: paired difference to pooled, both on names as written; None for pooled.
        lower_gain: paired difference to pooled, both lower-cased; None for pooled.
        change: paired difference of the two gains (written - lower); None for pooled.
    """

    name: str
    label: str
    written: Interval
    lower: Interval
    shift: Interval
    written_gain: Interval | None
    lower_gain: Interval | None
    change: Interval | None


@dataclass(frozen=True)
class TargetSummary:
    """Everything the runs say about one target.

    Attributes:
        target: language code.
        sources: its panel.
        same_convention: sources that capitalise as the target does.
        seeds: number of seeds.
        methods: in the order of the plan.
        controls: the lower-cased control; empty when it was not run.
        majority: accuracy of always answering the most frequent class of the test names.
        num_test: test names.
        test_error: binomial standard error of pooled's accuracy on that many names.
    """

    target: str
    sources: tuple[str, ...]
    same_convention: tuple[str, ...]
    seeds: int
    methods: tuple[MethodSummary, ...]
    controls: tuple[ControlSummary, ...]
    majority: float
    num_test: int
    test_error: float

    def method(self, name: str) -> MethodSummary | None:
        """Summary of method `name`, None when it was not run."""
        return next((method for method in self.methods if method.name == name), None)

    def control(self, name: str) -> ControlSummary | None:
        """Lower-cased control of method `name`, None when it was not run."""
        return next((control for control in self.controls if control.name == name), None)

    def gate_share(self, name: str) -> float | None:
        """Share of method `name`'s gate weight on sources of the target's convention; None without a gate."""
        method = self.method(name)
        if method is None or not method.gate:
            return None
        return sum(method.gate.get(lang, 0.0) for lang in self.same_convention) / sum(method.gate.values())


def summarise(records: Records, data: NameData) -> tuple[TargetSummary, ...]:
    """Summaries of all targets in `records`, in their order.

    Raises:
        ValueError: a target without runs of the baseline, or a method whose seeds differ from the baseline's.
    """
    targets = dict.fromkeys(spec.target for spec in records)
    return tuple(_summarise_target(target, records, data) for target in targets)


def _summarise_target(target: str, records: Records, data: NameData) -> TargetSummary:
    written = _by_method(target, records, lowercase=False)
    lower = _by_method(target, records, lowercase=True)
    if BASELINE not in written:
        raise ValueError(f"target {target!r} has no run of {BASELINE!r}, which the others are compared with.")
    for name, runs in [*written.items(), *lower.items()]:
        if set(runs) != set(written[BASELINE]):
            raise ValueError(
                f"method {name!r} on {target!r} has seeds {sorted(runs)}, "
                f"{BASELINE!r} has {sorted(written[BASELINE])}; pairs need the same."
            )
    specs = {spec.method: spec for spec in records if spec.target == target and not spec.lowercase}
    panel = specs[BASELINE].sources
    baseline = t_interval(_scores(written[BASELINE], "accuracy"))
    labels = data.test(target).labels
    return TargetSummary(
        target=target,
        sources=panel,
        same_convention=same_convention_sources(target, panel),
        seeds=len(written[BASELINE]),
        methods=tuple(
            _summarise_method(method.name, method.label, method.note, specs[method.name].sources, written)
            for method in METHODS
            if method.name in written
        ),
        controls=tuple(
            _summarise_control(method.name, method.label, written, lower)
            for method in METHODS
            if method.name in lower and method.name in written
        ),
        majority=majority_rate(labels),
        num_test=len(labels),
        test_error=binomial_error(baseline.mean, len(labels)),
    )


_Runs = Mapping[int, CellOutcome]


def _by_method(target: str, records: Records, *, lowercase: bool) -> dict[str, dict[int, CellOutcome]]:
    found: dict[str, dict[int, CellOutcome]] = {}
    for spec, outcome in records.items():
        if spec.target == target and spec.lowercase == lowercase:
            found.setdefault(spec.method, {})[spec.seed] = outcome
    return found


def _scores(runs: _Runs, score: str) -> list[float]:
    return [getattr(runs[seed], score) for seed in sorted(runs)]


def _gain(name: str, score: str, written: Mapping[str, _Runs]) -> Interval | None:
    if name == BASELINE:
        return None
    return paired_difference(_scores(written[name], score), _scores(written[BASELINE], score))


def _summarise_method(
    name: str, label: str, note: str, sources: tuple[str, ...], written: Mapping[str, _Runs]
) -> MethodSummary:
    runs = written[name]
    gates = [outcome.gate for outcome in runs.values() if outcome.gate is not None]
    gate = None
    if gates:
        languages = [lang for lang in sources if any(lang in weights for weights in gates)]
        gate = {lang: sum(weights.get(lang, 0.0) for weights in gates) / len(gates) for lang in languages}
    return MethodSummary(
        name=name,
        label=label,
        note=note,
        sources=sources,
        accuracy=t_interval(_scores(runs, "accuracy")),
        macro_f1=t_interval(_scores(runs, "macro_f1")),
        runs=tuple(_scores(runs, "accuracy")),
        accuracy_gain=_gain(name, "accuracy", written),
        macro_f1_gain=_gain(name, "macro_f1", written),
        seconds=sum(outcome.seconds for outcome in runs.values()) / len(runs),
        gate=gate,
    )


def _summarise_control(
    name: str, label: str, written: Mapping[str, _Runs], lower: Mapping[str, _Runs]
) -> ControlSummary:
    w, low = _scores(written[name], "accuracy"), _scores(lower[name], "accuracy")
    written_gain = lower_gain = change = None
    if name != BASELINE and BASELINE in lower:
        gain_w = [a - b for a, b in zip(w, _scores(written[BASELINE], "accuracy"), strict=True)]
        gain_l = [a - b for a, b in zip(low, _scores(lower[BASELINE], "accuracy"), strict=True)]
        written_gain, lower_gain = t_interval(gain_w), t_interval(gain_l)
        change = paired_difference(gain_w, gain_l)
    return ControlSummary(
        name=name,
        label=label,
        written=t_interval(w),
        lower=t_interval(low),
        shift=paired_difference(low, w),
        written_gain=written_gain,
        lower_gain=lower_gain,
        change=change,
    )


def capitalisation(languages: tuple[str, ...], data: NameData) -> list[tuple[str, bool, dict[str, float]]]:
    """For each language: the table's convention and the share of capitalised training names of each class."""
    return [
        (
            lang,
            capitalises(lang),
            {name: capitalised_share(data.train(lang), label) for label, name in enumerate(CLASSES)},
        )
        for lang in languages
    ]
