"""What the report says of a single run: how it went, its curves, and how much each source counts."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from xferkit.metrics import t_interval
from xferkit.report.curves import Curve, CurvePanel, curve_panels
from xferkit.report.format import duration, percent
from xferkit.report.svg import Bar, BarPanel, Row, bar_panels
from xferkit.runs.files import read_sealed
from xferkit.runs.folder import read_run
from xferkit.runs.pairs.config import PAIR_METHODS
from xferkit.runs.seed import SeedResult

__all__ = ["LoadedRun", "load_run", "run_section"]

#: Points of a curve that are drawn at most; more cannot be told apart.
_MOST_POINTS = 400
_MAX_LINE = 2**20


@dataclass(frozen=True)
class LoadedRun:
    """A run as its folder holds it.

    Attributes:
        path: the folder.
        name: what it is called on the page.
        content: its run.json.
        results: of its finished seeds.
        warnings: what a reader should know.
    """

    path: Path
    name: str
    content: dict[str, Any]
    results: dict[int, SeedResult]
    warnings: tuple[str, ...]

    @property
    def method(self) -> str:
        """Its method, as people write it."""
        return str(self.content["method"]).replace("_", "-")

    @property
    def title(self) -> str:
        """A heading for a page about it alone."""
        facts = self.content["facts"]
        target = f" to {facts['target']}" if facts.get("target") else ""
        return f"{self.method}: {', '.join(facts.get('sources', ()))}{target}"

    def renamed(self, name: str) -> LoadedRun:
        """The same under another name."""
        return replace(self, name=name)


def load_run(path: Path) -> LoadedRun:
    """Read a run's folder.

    Raises:
        ValueError: no run, a damaged one, one on pairs of texts, or one without a finished seed.
    """
    content = read_run(path)
    if content["method"] in PAIR_METHODS:
        raise ValueError(
            f"{path} is a run on pairs of texts, for which there is no page yet; its scores are under results in "
            f"{path / 'run.json'}"
        )
    results: dict[int, SeedResult] = {}
    for seed in content["seeds"]:
        file = path / f"seed-{seed}" / "result.json"
        if file.exists():
            results[seed] = SeedResult.from_json(read_sealed(file))
    if not results:
        raise ValueError(
            f"{path}: no seed is finished; expected at least one (the command that began it goes on)"
        )
    warnings = []
    missing = [str(seed) for seed in content["seeds"] if seed not in results]
    if missing:
        warnings.append(f"{path.name}: seeds {', '.join(missing)} are not finished and not on this page.")
    if content["config"].get("trainer.select") == "target_dev":
        warnings.append(
            f"{path.name}: labels of the target's development data chose the weights; this is not zero-resource."
        )
    codes = {(json.dumps(s["versions"], sort_keys=True), s["commit"]) for s in content["sessions"]}
    if len(codes) > 1:
        warnings.append(f"{path.name}: its sessions ran with different versions or code, see run.json.")
    return LoadedRun(path, path.resolve().name, content, results, tuple(warnings))


def run_section(run: LoadedRun) -> dict[str, Any]:
    """Content of the run's section of the page."""
    return {
        "name": run.name,
        "method": run.method,
        "sentence": _sentence(run),
        "curves": _curves(run),
        "weights": _weights(run),
        "facts": _facts(run),
    }


def _sentence(run: LoadedRun) -> str:
    facts, results = run.content["facts"], list(run.results.values())
    rows = facts.get("rows", {})
    sizes = ", ".join(
        f"{lang} {rows[f'train/{lang}'].get('used', rows[f'train/{lang}']['out']):,}"
        for lang in facts.get("sources", ())
        if f"train/{lang}" in rows
    )
    target = f"; text of {facts['target']} without labels" if facts.get("target") else ""
    seconds = sum(result.seconds for result in results) / len(results)
    return (
        f"Trained on {sizes} labelled texts{target}; {len(facts.get('labels', ()))} labels, "
        f"{results[0].steps:,} steps, {results[0].parameters:,} trained parameters, {duration(seconds)} a seed."
    )


def _facts(run: LoadedRun) -> list[tuple[str, str]]:
    content = run.content
    session = content["sessions"][-1]
    files = [f"{f['role']} {f['language']}: {f['path']} ({f['sha256'][:12]})" for f in content["files"]]
    changed = {k: v for k, v in content["config"].items() if k in _SHOWN_SETTINGS}
    return [
        ("folder", str(run.path)),
        ("files", "; ".join(files)),
        ("settings", ", ".join(f"{key} {value}" for key, value in changed.items())),
        (
            "selected step",
            ", ".join(f"seed {s}: {r.selected_step or r.steps}" for s, r in run.results.items()),
        ),
        ("begun", content["sessions"][0]["begun"]),
        ("sessions", str(len(content["sessions"]))),
        ("hardware", ", ".join(session["hardware"].values())),
        ("versions", ", ".join(f"{name} {version}" for name, version in session["versions"].items())),
        ("commit", str(session["commit"] or "installed package")),
    ]


_SHOWN_SETTINGS = ("steps", "batch_size", "trainer.select", "encoder.kind", "sampler", "dev_share", "ops")


# Curves


def _curves(run: LoadedRun) -> Markup | None:
    losses: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    scores: list[Curve] = []
    select = run.content["config"].get("trainer.select", "source_dev")
    part = "target_dev" if select == "target_dev" else "source_dev"
    for seed, result in run.results.items():
        points = []
        for entry in _metrics(run.path / f"seed-{seed}" / "metrics.jsonl"):
            step = int(entry["step"])
            for name, value in entry.get("metrics", {}).items():
                if not name.endswith("accuracy"):
                    losses[name][step].append(math.nan if value is None else float(value))
            score = entry.get("scores", {}).get(f"{part}/score")
            if score is not None:
                points.append((float(step), 100.0 * float(score)))
        if points:
            scores.append(Curve(f"seed {seed}", _thinned(points), result.selected_step))
    panels = []
    if losses:
        means = [
            Curve(name, _thinned([(float(step), sum(v) / len(v)) for step, v in sorted(steps.items())]))
            for name, steps in losses.items()
        ]
        panels.append(CurvePanel("Losses", tuple(means)))
    if scores:
        panels.append(CurvePanel(f"{part.replace('_', ' ')}, %", tuple(scores)))
    return curve_panels(f"Learning curves of {run.name}", panels) if panels else None


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    step = -(-len(points) // _MOST_POINTS)
    kept = list(points[::step]) if step else []
    return tuple(kept if not points or kept[-1] == points[-1] else [*kept, points[-1]])


def _metrics(path: Path) -> list[Mapping[str, Any]]:
    """The lines of a metrics.jsonl; a last one that is being written is left out."""
    found: list[Mapping[str, Any]] = []
    try:
        with open(path, encoding="utf-8") as file:
            while line := file.readline(_MAX_LINE):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                    found.append(entry)
    except (OSError, UnicodeDecodeError):
        return []
    return found


# Weights of sources


def _weights(run: LoadedRun) -> Markup | None:
    languages = dict.fromkeys(lang for r in run.results.values() for lang in r.source_weights)
    if not languages:
        return None
    sources = list(run.content["facts"]["sources"])
    panels = []
    highest = 1.0 / len(sources)
    for language in languages:
        found = [r.source_weights[language] for r in run.results.values() if language in r.source_weights]
        bars = []
        for source in sources:
            values = [float(weights.get(source, 0.0)) for weights in found]
            interval = t_interval(values)
            bars.append(Bar(interval.mean, math.nan, tuple(values), percent(interval.mean, 0)))
            highest = max(highest, *values)
        panels.append((language, tuple(bars)))
    high = min(1.0, 1.15 * highest)
    ticks = tuple((t / 100, str(t)) for t in range(0, 101, 20 if high > 0.5 else 10) if t / 100 <= high)
    rows = [Row(source, "main") for source in sources]
    even = ((1.0 / len(sources), "even split"),)
    return bar_panels(
        f"Weights of sources in {run.name}",
        rows,
        [BarPanel(f"for {language}, %", bars, high, ticks, even) for language, bars in panels],
    )
