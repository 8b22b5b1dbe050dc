"""A diagnosis from its configuration to its report: observe, group, compare, explain, repair, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xferkit.diagnosis.config import DiagnosisConfig, open_problem
from xferkit.diagnosis.engine import Engine, Results
from xferkit.diagnosis.fixes import FixRace, candidates, race
from xferkit.diagnosis.plans import all_tasks_spec, matrix_diagnosis, matrix_plan, matrix_specs
from xferkit.diagnosis.problem import Matching, Problem, RunSpec
from xferkit.diagnosis.why import find_causes, source_clusters
from xferkit.runs.environment import num_cores
from xferkit.runs.errors import RunError
from xferkit.transfer import Diagnosis, Estimate
from xferkit.transfer.causes import Cause, RankedCauses, SourceClusters, capacity, gate_choice

__all__ = ["DiagnosisReport", "run_diagnosis"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class DiagnosisReport:
    """Everything that came out.

    Attributes:
        config: what was asked for.
        problem: what it was asked of.
        groups: sources by the name of their group.
        clusters: how the groups came about.
        matrix: the transfer matrix, on development data.
        causes: by group, and ``""`` for all tasks together.
        race: the remedies, where they were tried.
        facts: how long it took, how many runs, versions.
    """

    config: DiagnosisConfig
    problem: Problem
    groups: dict[str, tuple[str, ...]]
    clusters: SourceClusters
    matrix: Diagnosis
    causes: dict[str, RankedCauses]
    race: FixRace | None
    facts: dict[str, Any]


def run_diagnosis(
    config: DiagnosisConfig,
    out: Path,
    *,
    data: str | Path | None = None,
    workers: int | None = None,
    confirm: Callable[[Estimate], bool] | None = None,
    say: Say = print,
) -> Path:
    """Diagnose and write the report; return the path of report.html.

    Finished runs lie in ``out/cells``; the same call goes on where it was stopped.

    Args:
        config: what is asked.
        out: folder, made when it is not there.
        data: folder of the data; None: the variable XFER_DATA, or the current folder.
        workers: processes of one thread each; None: one a core; 0: none.
        confirm: asked before more than an hour; False stops.
        say: told sentences.

    Raises:
        ValueError: the configuration or the data are not as expected, or `out` cannot be used.
        RunError: another process writes to `out`, or a run failed.
    """
    from xferkit.diagnosis.report import write_report

    if workers is None:
        workers = num_cores()
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    problem = open_problem(config, data)
    sources = [task for task in problem.tasks if task != problem.target]
    needed = 1 if problem.target in problem.tasks else 2
    if len(sources) < needed:
        labels = "" if needed == 1 else ", since the target has no labels to train on"
        raise ValueError(
            f"the target {problem.target!r} has {len(sources)} source{'' if len(sources) == 1 else 's'}; expected at "
            f"least {needed}{labels}"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        engine = Engine(problem, out / "cells", workers=workers, confirm=confirm, note=say)
        with engine.store.locked():
            return write_report(_diagnose(config, problem, engine, say), out, say)
    except OSError as error:
        raise RunError(f"cannot write to {error.filename or out}: {error.strerror or error}") from error


def _diagnose(config: DiagnosisConfig, problem: Problem, engine: Engine, say: Say) -> DiagnosisReport:
    begin = time.monotonic()
    say(problem.describe())
    observe = [all_tasks_spec(problem, seed) for seed in config.seeds]
    say(f"Training all tasks together and looking at their gradients: {len(observe)} runs.")
    fixes_cost = _fixes_cost(config, problem) if config.try_fixes else 0.0
    more = sum(_cost(spec) for spec in _specs_of(config, problem, {})) + fixes_cost
    observed = engine.run(observe, still_to_come=more)
    looked = [observed[spec] for spec in observe]
    clusters = source_clusters(problem, looked)
    groups = _groups(clusters)
    say(clusters.sentence())
    plan = matrix_plan(problem, config.seeds, config.budget, groups)
    specs = matrix_specs(problem, plan)
    say(plan.describe())
    results = engine.run([*specs.values()], still_to_come=fixes_cost) | observed
    matrix = matrix_diagnosis(problem, plan, specs, results)
    for sentence in matrix.sentences:
        say(sentence)
    extra, reasons = _capacity(config, problem, engine, groups, results)
    tried = None
    if config.try_fixes:
        say("Trying what may repair it.")
        tried = race(
            problem,
            candidates(problem, groups),
            engine.run,
            race_seeds=config.race_seeds,
            fresh_seeds=config.fresh_seeds,
            say=say,
        )
        say(tried.sentence)
    gates = _gates(problem, engine, matrix)
    causes = find_causes(problem, looked, groups, clusters, [*extra, *gates], reasons, say)
    facts = {
        "wall_seconds": time.monotonic() - begin,
        "runs": engine.done + engine.reused,
        "runs_reused": engine.reused,
        "workers": engine.workers,
        "conditions": dict(engine.conditions),
    }
    return DiagnosisReport(config, problem, groups, clusters, matrix, causes, tried, facts)


def _groups(clusters: SourceClusters) -> dict[str, tuple[str, ...]]:
    """Clusters by a name: their members where they are few, else the most typical one."""
    found = {}
    for cluster in clusters.clusters:
        names = cluster.sources
        label = ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} alike"
        found[label] = names
    return found


def _gates(problem: Problem, engine: Engine, matrix: Diagnosis) -> list[Cause]:
    """Whether a gate prefers what helps, where the remedies trained one."""
    weights = engine.gates("man_moe") or engine.gates("language_gate")
    sources = [task for task in problem.tasks if all(task in row for row in weights)]
    if not weights or len(sources) < 2:
        return []
    single = {c.sources[0]: c.gain for c in matrix.cells if len(c.sources) == 1}
    gains = [single[task] for task in sources] if all(task in single for task in sources) else None
    rows = [[row[task] / sum(row[t] for t in sources) for task in sources] for row in weights]
    return [gate_choice(rows, sources, gains=gains)]


def _cost(spec: RunSpec) -> float:
    from xferkit.diagnosis.engine import SpecCell

    return SpecCell.of(spec).cost


def _specs_of(
    config: DiagnosisConfig, problem: Problem, groups: Mapping[str, tuple[str, ...]]
) -> list[RunSpec]:
    """Runs of the matrix before the groups are known: as if there were two."""
    sources = [task for task in problem.tasks if task != problem.target]
    half = max(1, len(sources) // 2)
    guess = groups or {"a": tuple(sources[:half]), **({"b": tuple(sources[half:])} if sources[half:] else {})}
    return list(matrix_specs(problem, matrix_plan(problem, config.seeds, config.budget, guess)).values())


def _fixes_cost(config: DiagnosisConfig, problem: Problem) -> float:
    """About what a race costs: every candidate once, half of them again for each further seed, and two in the end."""
    everything = all_tasks_spec(problem, config.seeds[0])
    rounds = 1 + 0.5 * (len(config.race_seeds) - 1)
    return _cost(everything) * (14 * rounds + 2 * len(config.fresh_seeds))


def _capacity(
    config: DiagnosisConfig,
    problem: Problem,
    engine: Engine,
    groups: Mapping[str, tuple[str, ...]],
    results: Results,
) -> tuple[list[Cause], dict[str, str]]:
    """The gap at half of the width against that at the whole, for all sources or, without labels, the first group."""
    if config.budget == "quick":
        return [], {"capacity": "one width was trained; --budget pairs trains two"}
    labelled = problem.target in problem.tasks
    first = next(iter(groups.values()), ())
    without = (problem.target,) if labelled else tuple(t for t in problem.tasks if t not in first)
    if not without or without == problem.tasks:
        return [], {"capacity": "there is no set of tasks to compare with"}
    matching: Matching = "per_task_steps" if labelled else "total_steps"
    scores: dict[tuple[float, bool], list[float]] = {}
    specs = {
        (width, with_sources, seed): RunSpec(
            problem.tasks if with_sources else without,
            seed,
            matching,
            width=width,
        )
        for width in (0.5, 1.0)
        for with_sources in (True, False)
        for seed in config.seeds
    }
    found = engine.run(specs.values())
    for (width, with_sources, _), spec in specs.items():
        scores.setdefault((width, with_sources), []).append(found[spec].scores[problem.target])
    return [
        capacity(
            scores[0.5, True],
            scores[0.5, False],
            scores[1.0, True],
            scores[1.0, False],
            higher_is_better=problem.higher_is_better,
            widths=("half of the width", "the whole width"),
        )
    ], {}
