"""What the report says of scores: a figure and tables for each labelled set, over runs and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xferkit.metrics import Interval, paired_difference, verdict
from xferkit.report.format import percent
from xferkit.report.svg import Bar, BarPanel, Row, bar_panels
from xferkit.runs.page_runs import LoadedRun
from xferkit.runs.summary import SetSummary, summarise

__all__ = ["score_sections"]

_ROLES = {"test": "Test", "dev": "Development data"}
#: Rows of the table by label; the rarer ones are in result.json.
_MOST_LABELS = 60


def score_sections(runs: Sequence[LoadedRun]) -> list[dict[str, Any]]:
    """Content of a section for each labelled set, tests first; rows are runs."""
    summaries = {run.name: {(s.role, s.language): s for s in summarise(run.results)} for run in runs}
    keys = dict.fromkeys(key for found in summaries.values() for key in found)
    ordered = sorted(keys, key=lambda key: key[0] != "test")
    return [_section(key, [r for r in runs if key in summaries[r.name]], summaries) for key in ordered]


def _section(
    key: tuple[str, str],
    runs: Sequence[LoadedRun],
    summaries: Mapping[str, Mapping[tuple[str, str], SetSummary]],
) -> dict[str, Any]:
    found = [summaries[run.name][key] for run in runs]
    base = found[0]
    rows = []
    for run, summary in zip(runs, found, strict=True):
        gain = None if summary is base else _gain(summary, base)
        rows.append(
            {
                "run": run.name,
                "method": run.method,
                "seeds": summary.interval.n,
                "interval": summary.interval,
                "sd": summary.sd,
                "accuracy": summary.accuracy,
                "macro_f1": summary.macro_f1,
                "gain": gain,
                "verdict": None if gain is None else verdict(gain),
            }
        )
    names = dict.fromkeys(summary.name for summary in found)
    return {
        "title": f"{_ROLES[key[0]]}: {key[1]}",
        "score": " / ".join(names),
        "svg": _figure(key, runs, found),
        "rows": rows,
        "compared": runs[0].name if len(runs) > 1 else None,
        "texts": base.texts,
        "majority": base.majority,
        "labels": _labels(key, runs),
    }


def _gain(summary: SetSummary, base: SetSummary) -> Interval | None:
    """Paired difference over the seeds that both have; None where they share none or measure different things."""
    seeds = [seed for seed in summary.per_seed if seed in base.per_seed]
    if not seeds or summary.name != base.name or summary.texts != base.texts:
        return None
    return paired_difference([summary.per_seed[s] for s in seeds], [base.per_seed[s] for s in seeds])


def _figure(key: tuple[str, str], runs: Sequence[LoadedRun], found: Sequence[SetSummary]) -> Any:
    bars = [
        Bar(s.interval.mean, s.interval.half_width, tuple(s.per_seed.values()), percent(s.interval.mean))
        for s in found
    ]
    ends = [found[0].majority]
    for s in found:
        half = 0.0 if math.isnan(s.interval.half_width) else s.interval.half_width
        ends += [s.interval.mean + half, *s.per_seed.values()]
    high = min(1.0, max(0.1, math.ceil(max(ends) * 10) / 10))
    step = 10 if high <= 0.5 else 20
    ticks = tuple((t / 100, str(t)) for t in range(0, 101, step) if t / 100 <= high + 1e-9)
    lines = ((found[0].majority, "most frequent label"),) if 0 < found[0].majority <= high else ()
    rows = [Row(run.name, "main" if i or len(runs) == 1 else "base") for i, run in enumerate(runs)]
    panel = BarPanel(f"{found[0].name}, %", tuple(bars), high, ticks, lines)
    return bar_panels(f"{_ROLES[key[0]]} {key[1]}", rows, [panel])


def _labels(key: tuple[str, str], runs: Sequence[LoadedRun]) -> dict[str, Any] | None:
    """F1 by label (by span type, for spans), mean over seeds; for tests alone."""
    role, language = key
    if role != "test":
        return None
    first = next(iter(runs[0].results.values())).test[language]
    part = "labels" if first["spans"] is None else "spans"
    table: dict[str, dict[str, list[float]]] = {}
    support: dict[str, int] = {}
    for run in runs:
        for result in run.results.values():
            scores = result.test.get(language, {}).get(part) or {}
            for name, values in scores.items():
                table.setdefault(name, {}).setdefault(run.name, []).append(float(values["f1"]))
                support[name] = max(support.get(name, 0), int(values["support"]))
    rows = [
        {
            "name": name,
            "support": support[name],
            "scores": [_mean(table[name].get(run.name, [])) for run in runs],
        }
        for name in sorted(table, key=lambda name: (-support[name], name))[:_MOST_LABELS]
    ]
    what = "label" if part == "labels" else "span type"
    return {"what": what, "runs": [run.name for run in runs], "rows": rows}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
