"""What each figure of the demo shows, for SVG and PNG alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xferkit.demo.plan import BASELINE, ORACLE, REFERENCE
from xferkit.demo.summary import ControlSummary, MethodSummary, TargetSummary
from xferkit.metrics import Interval
from xferkit.report.axes import difference_ticks
from xferkit.report.format import percent, points, spread
from xferkit.report.svg import Bar, BarPanel, Difference, Row, Style

__all__ = [
    "control_figure",
    "difference_rows",
    "difference_ticks",
    "gate_figure",
    "score_figure",
    "summary_figure",
]

_STYLES: dict[str, Style] = {BASELINE: "base", ORACLE: "reference", REFERENCE: "reference"}
_Figure = tuple[list[Row], list[BarPanel]]


def _rows(methods: Sequence[MethodSummary] | Sequence[ControlSummary]) -> list[Row]:
    return [Row(method.label, _STYLES.get(method.name, "main")) for method in methods]


def _bar(interval: Interval, dots: tuple[float, ...] = ()) -> Bar:
    return Bar(interval.mean, interval.half_width, dots, percent(interval.mean))


def _axis(intervals: Sequence[Interval]) -> tuple[float, tuple[tuple[float, str], ...]]:
    ends = [i.mean + (0.0 if math.isnan(i.half_width) else i.half_width) for i in intervals]
    high = min(1.0, math.ceil(max(ends) * 10 + 0.2) / 10)
    return high, tuple((tick / 10, f"{tick * 10}") for tick in range(0, round(high * 10) + 1, 2))


def _panel(
    title: str, intervals: Sequence[Interval], bars: Sequence[Bar], lines: tuple[tuple[float, str], ...] = ()
) -> BarPanel:
    high, ticks = _axis(intervals)
    return BarPanel(title, tuple(bars), high, ticks, lines)


def score_figure(summary: TargetSummary) -> _Figure:
    """Accuracy and macro-F1 of every method, with the accuracy of the most frequent class as a line."""
    accuracy = [method.accuracy for method in summary.methods]
    macro_f1 = [method.macro_f1 for method in summary.methods]
    return _rows(summary.methods), [
        _panel(
            "Accuracy, %",
            accuracy,
            [_bar(method.accuracy, method.runs) for method in summary.methods],
            ((summary.majority, "most frequent class"),),
        ),
        _panel("Macro-F1, %", macro_f1, [_bar(score) for score in macro_f1]),
    ]


def summary_figure(summary: TargetSummary) -> _Figure:
    """Accuracy alone: the picture that stands for the demo."""
    rows, panels = score_figure(summary)
    return rows, panels[:1]


def difference_rows(summary: TargetSummary) -> list[Difference]:
    """Paired differences to pooled in accuracy, in points."""
    return [
        Difference(
            method.label,
            100 * gain.mean,
            100 * gain.half_width,
            str(method.accuracy_verdict),
            f"{points(gain.mean)}  [{spread(gain)}]  {method.accuracy_verdict}",
        )
        for method in summary.methods
        if (gain := method.accuracy_gain) is not None
    ]


def gate_figure(summary: TargetSummary, language_names: dict[str, str]) -> _Figure | None:
    """Mean gate weight of every source, grouped by spelling convention; None when nothing has a gate."""
    gated = [(method.label, gate) for method in summary.methods if (gate := method.gate)]
    if not gated:
        return None
    rows: list[Row] = []
    order: list[str | None] = []

    def add(heading: str, style: Style, group: list[str]) -> None:
        if group:
            rows.extend([Row(heading), *(Row(language_names[lang], style) for lang in group)])
            order.extend([None, *group])

    same = summary.same_convention
    add(f"as {language_names[summary.target]} writes", "main", [s for s in summary.sources if s in same])
    add("the other way", "other", [s for s in summary.sources if s not in same])
    even = 1 / len(summary.sources)
    high = max(even * 1.2, *(weight for _, gate in gated for weight in gate.values())) * 1.02
    ticks = tuple((t / 100, str(t)) for t in range(0, 101, 10 if high > 0.25 else 5) if t / 100 <= high)

    def bar(gate: dict[str, float], lang: str | None) -> Bar | None:
        if lang is None:
            return None
        return Bar(gate.get(lang, 0.0), text=percent(gate.get(lang, 0.0), 0))

    return rows, [
        BarPanel(label, tuple(bar(gate, lang) for lang in order), high, ticks, ((even, "even split"),))
        for label, gate in gated
    ]


def control_figure(summary: TargetSummary) -> _Figure | None:
    """Accuracy on names as written and on lower-cased names; None when the control was not run."""
    if not summary.controls:
        return None
    high, ticks = _axis([i for control in summary.controls for i in (control.written, control.lower)])
    majority = ((summary.majority, "most frequent class"),)
    return _rows(summary.controls), [
        BarPanel(
            "Names as written, %", tuple(_bar(c.written) for c in summary.controls), high, ticks, majority
        ),
        BarPanel("Lower-cased, %", tuple(_bar(c.lower) for c in summary.controls), high, ticks, majority),
    ]
