"""A diagnosis from its configuration to its report: observe, group, compare, explain, repair, write."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xferkit.diagnosis.config import DiagnosisConfig, data_folder, open_problem
from xferkit.diagnosis.engine import Engine
from xferkit.diagnosis.fixes import FixRace, candidates, race, race_specs
from xferkit.diagnosis.plans import (
    LEAST_EXAMPLES,
    all_tasks_spec,
    capacity_specs,
    mask_examples,
    mask_spec,
    matrix_diagnosis,
    matrix_plan,
    matrix_specs,
    other_scores,
)
from xferkit.diagnosis.problem import Problem, RunResult
from xferkit.diagnosis.why import find_causes, mean_cosines, repeated_texts, source_clusters
from xferkit.metrics import Interval
from xferkit.runs.environment import num_cores
from xferkit.runs.errors import RunError
from xferkit.transfer import Diagnosis, Estimate
from xferkit.transfer.causes import Cause, RankedCauses, SourceClusters, capacity, gate_choice
from xferkit.transfer.plan import counted

__all__ = ["FEW_EXAMPLES", "DiagnosisReport", "run_diagnosis"]

Say = Callable[[str], None]

#: Fewer development examples of the target are told.
FEW_EXAMPLES = 200


@dataclass(frozen=True)
class DiagnosisReport:
    """Everything that came out.

    Attributes:
        config: what was asked for.
        problem: what it was asked of.
        groups: sources by the name of their group.
        clusters: how the groups came about.
        cosines: of each pair of tasks that were looked at, mean over looks and seeds.
        matrix: the transfer matrix, on development data.
        other_scores: for each of the matrix's scores, those by other measures.
        causes: by group, and ``""`` for all tasks together.
        race: the remedies, where they were tried.
        facts: how long it took, how many runs, versions.
    """

    config: DiagnosisConfig
    problem: Problem
    groups: dict[str, tuple[str, ...]]
    clusters: SourceClusters
    cosines: dict[str, dict[str, float]]
    matrix: Diagnosis
    other_scores: list[dict[str, Interval]]
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
    from xferkit.diagnosis.report import found_causes, write_report

    if workers is None:
        workers = num_cores()
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; expected a folder for the diagnosis, or a name that is free")
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
        with engine.store.locked(), engine:
            report = _diagnose(config, problem, engine, say)
            folder = "" if config.problem == "names" else f"{data_folder(config, data).resolve()}, "
            report.facts.update(data_folder=folder, command=shlex.join(sys.argv))
            for sentence in found_causes(report):
                say(sentence)
            return write_report(report, out)
    except OSError as error:
        raise RunError(f"cannot write to {error.filename or out}: {error.strerror or error}") from error


def _diagnose(config: DiagnosisConfig, problem: Problem, engine: Engine, say: Say) -> DiagnosisReport:
    begin = time.monotonic()
    say(problem.describe())
    dev = problem.sizes()[problem.target].get("dev", 0)
    if dev < FEW_EXAMPLES:
        say(f"Scores rest on {dev} development examples of {problem.target}: they move in coarse steps.")
    observe = [all_tasks_spec(problem, seed) for seed in config.seeds]
    say(f"Training all tasks together and looking at their gradients: {counted(len(observe), 'run')}.")
    _expect(config, problem, engine, _guessed_groups(problem))
    observed = engine.run(observe)
    looked = [observed[spec] for spec in observe]
    clusters = source_clusters(problem, looked)
    groups = _groups(clusters)
    say(clusters.sentence())
    repeated = repeated_texts(problem, groups)
    for sentence in repeated:
        say(sentence)
    _expect(config, problem, engine, groups)
    plan = matrix_plan(problem, config.seeds, config.budget, groups)
    specs = matrix_specs(problem, plan)
    say(plan.describe())
    results = engine.run([*specs.values()]) | observed
    matrix = matrix_diagnosis(problem, plan, specs, results)
    for sentence in matrix.sentences:
        say(sentence)
    found, reasons = _capacity(config, problem, engine, groups)
    masked, reason = _masked(config, problem, engine, groups, say)
    reasons |= reason
    tried = None
    if config.try_fixes:
        say("Trying what may repair it.")
        engine.ask()
        tried = race(
            problem,
            candidates(problem, groups),
            engine.run,
            race_seeds=config.race_seeds,
            fresh_seeds=config.fresh_seeds,
            say=say,
            expect=partial(engine.expect, "fixes"),
        )
        say(tried.sentence)
    gates, reason = _gates(config, problem, engine, matrix)
    reasons |= reason
    causes = find_causes(problem, looked, groups, clusters, masked, [*found, *gates], reasons)
    facts = {
        "wall_seconds": time.monotonic() - begin,
        "runs": engine.done + engine.reused,
        "runs_reused": engine.reused,
        "workers": engine.workers,
        "repeated": repeated,
        "conditions": dict(engine.conditions),
    }
    cosines, others = mean_cosines(problem, looked), other_scores(matrix, specs, results)
    return DiagnosisReport(config, problem, groups, clusters, cosines, matrix, others, causes, tried, facts)


def _guessed_groups(problem: Problem) -> dict[str, tuple[str, ...]]:
    """Before the groups are known: as if there were two."""
    sources = [task for task in problem.tasks if task != problem.target]
    half = max(1, len(sources) // 2)
    return {"a": tuple(sources[:half]), **({"b": tuple(sources[half:])} if sources[half:] else {})}


def _expect(
    config: DiagnosisConfig, problem: Problem, engine: Engine, groups: Mapping[str, tuple[str, ...]]
) -> None:
    """Tell the engine all runs that will be asked for, as if these were the groups."""
    plan = matrix_plan(problem, config.seeds, config.budget, groups)
    engine.expect("looks", [all_tasks_spec(problem, seed) for seed in config.seeds])
    engine.expect("matrix", matrix_specs(problem, plan).values())
    engine.expect("capacity", (capacity_specs(problem, config.budget, groups, config.seeds) or {}).values())
    if mask_examples(problem, groups) >= LEAST_EXAMPLES:
        engine.expect("masks", [mask_spec(problem, groups, seed) for seed in config.seeds])
    if config.try_fixes:
        fixes = candidates(problem, groups)
        engine.expect("fixes", race_specs(problem, fixes, config.race_seeds, config.fresh_seeds))


def _masked(
    config: DiagnosisConfig,
    problem: Problem,
    engine: Engine,
    groups: Mapping[str, tuple[str, ...]],
    say: Say,
) -> tuple[list[RunResult], dict[str, str]]:
    """Runs with masks of the groups, or why there are none."""
    few = mask_examples(problem, groups)
    if few < LEAST_EXAMPLES:
        return [], {"mask overlap": f"{few} examples a mask are too few; {LEAST_EXAMPLES} are needed"}
    say("Training masks of the target and of each group.")
    specs = [mask_spec(problem, groups, seed) for seed in config.seeds]
    found = engine.run(specs)
    masked = [found[spec] for spec in specs]
    return masked, {} if all(r.masks for r in masked) else {"mask overlap": "the problem trains no masks"}


def _groups(clusters: SourceClusters) -> dict[str, tuple[str, ...]]:
    """Clusters by a name: their members where they are few, else the most typical one, or how many where it is all."""
    found = {}
    for cluster in clusters.clusters:
        names = cluster.sources
        label = ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} alike"
        label = f"all {len(names)} sources" if len(clusters.clusters) == 1 and len(names) > 3 else label
        found[label] = names
    return found


def _gates(
    config: DiagnosisConfig, problem: Problem, engine: Engine, matrix: Diagnosis
) -> tuple[list[Cause], dict[str, str]]:
    """Whether a gate prefers what helps, where the remedies trained one."""
    weights = engine.gates("man_moe") or engine.gates("language_gate")
    if not weights:
        why = "no gate was trained" if config.try_fixes else "no gate was trained; --try-fixes trains some"
        return [], {"gate weights": why}
    sources = [
        task for task in problem.tasks if task != problem.target and all(task in row for row in weights)
    ]
    if len(sources) < 2:
        return [], {"gate weights": "there is a single source"}
    kind = "pair" if problem.target in problem.tasks else "leave_one_out"
    first = matrix.plan.matchings[0]
    single = {c.sources[0]: c.gain for c in matrix.cells if (c.kind, c.matching) == (kind, first)}
    gains = [single[task] for task in sources] if all(task in single for task in sources) else None
    rows = [[row[task] / sum(row[t] for t in sources) for task in sources] for row in weights]
    return [gate_choice(rows, sources, gains=gains)], {}


def _capacity(
    config: DiagnosisConfig,
    problem: Problem,
    engine: Engine,
    groups: Mapping[str, tuple[str, ...]],
) -> tuple[list[Cause], dict[str, str]]:
    """The gap at half of the width against that at the whole."""
    if config.budget == "quick":
        return [], {"capacity": "one width was trained; --budget pairs trains two"}
    specs = capacity_specs(problem, config.budget, groups, config.seeds)
    if specs is None:
        return [], {"capacity": "there is no set of tasks to compare with"}
    found = engine.run(specs.values())
    scores: dict[tuple[float, bool], list[float]] = {}
    for (width, with_sources, _), spec in specs.items():
        scores.setdefault((width, with_sources), []).append(found[spec].scores[problem.target])
    return [
        capacity(
            scores[0.5, True],
            scores[0.5, False],
            scores[1.0, True],
            scores[1.0, False],
            higher_is_better=problem.higher_is_better,
            widths=("half-width", "full-width"),
            points=problem.higher_is_better,
        )
    ], {}
