"""Which runs a budget needs: task sets of the transfer matrix, for targets with labels and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from xferkit.diagnosis.engine import Results
from xferkit.diagnosis.problem import Problem, RunSpec
from xferkit.metrics import Interval, t_interval
from xferkit.transfer import Diagnosis, Matching, Plan, Run, assemble, make_plan
from xferkit.transfer.calling import Outcome

__all__ = [
    "LEAST_EXAMPLES",
    "LOOKS",
    "DiagnoseBudget",
    "all_tasks_spec",
    "capacity_specs",
    "mask_examples",
    "mask_spec",
    "matrix_diagnosis",
    "matrix_plan",
    "matrix_specs",
    "other_scores",
]

#: Looks at the gradients of the run of all tasks.
LOOKS = 8

#: Fewer examples a mask say nothing of a task.
LEAST_EXAMPLES = 50

DiagnoseBudget = Literal["quick", "pairs", "full"]
"""``quick``: clusters of sources by the cosine of their gradients, one matching; ``pairs``: single sources (all but
one, where the target has no labels) and clusters; ``full``: every comparison, and both matchings where the target has
labels."""


def matrix_plan(
    problem: Problem, seeds: Sequence[int], budget: DiagnoseBudget, groups: Mapping[str, Sequence[str]]
) -> Plan:
    """The comparisons: with the sources against without, or, for a target without labels, all against all but some."""
    labelled = problem.target in problem.tasks
    matchings: tuple[Matching, ...] = ("per_task_steps",)
    if labelled:
        if budget == "full":
            matchings = ("per_task_steps", "total_steps")
        kind = {"quick": "groups", "pairs": "pairs", "full": "full"}[budget]
        return make_plan(
            problem.tasks,
            seeds,
            target=problem.target,
            budget=kind,  # type: ignore[arg-type]
            groups=groups,
            matchings=matchings,
        )
    some = {name: members for name, members in groups.items() if set(members) < set(problem.tasks)}
    return make_plan(
        (*problem.tasks, problem.target),
        seeds,
        target=problem.target,
        # One group of all sources cannot be left out: then source by source.
        budget="leave_groups_out" if budget == "quick" and some else "leave_out",
        groups=some,
        matchings=("total_steps",),
        trained=False,
    )


def all_tasks_spec(problem: Problem, seed: int) -> RunSpec:
    """The run of all tasks, whose gradients are looked at."""
    matching: Matching = "per_task_steps" if problem.target in problem.tasks else "total_steps"
    return RunSpec(problem.tasks, seed, matching, observe=LOOKS)  # type: ignore[arg-type]


def mask_examples(problem: Problem, groups: Mapping[str, Sequence[str]]) -> int:
    """Examples of each mask: half of the target's, fewer where a group has fewer with equally many of each member.

    Of training examples, or of development examples where the target has no labels to train on.
    """
    sizes, split = problem.sizes(), "train" if problem.target in problem.tasks else "dev"
    own = sizes[problem.target].get(split, 0) // 2
    return min(
        own, *(len(group) * min(sizes[task].get(split, 0) for task in group) for group in groups.values())
    )


def mask_spec(problem: Problem, groups: Mapping[str, Sequence[str]], seed: int) -> RunSpec:
    """The run of all tasks again, of whose model masks are trained for the target and each group."""
    return replace(all_tasks_spec(problem, seed), observe=0, masks=tuple(tuple(g) for g in groups.values()))


def capacity_specs(
    problem: Problem, budget: DiagnoseBudget, groups: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> dict[tuple[float, bool, int], RunSpec] | None:
    """Runs at half of the width and at the whole, with all sources and without (without labels: the first group).

    By width, whether the sources are there, and seed; None where the budget has none, or nothing is left to compare.
    """
    labelled, first = problem.target in problem.tasks, next(iter(groups.values()), ())
    without = (problem.target,) if labelled else tuple(t for t in problem.tasks if t not in first)
    if budget == "quick" or not without or without == problem.tasks:
        return None
    found = {}
    for seed in seeds:
        everything = all_tasks_spec(problem, seed)
        for width in (0.5, 1.0):
            # At the whole width the runs are those of the matrix, which are there.
            same = everything if width == 1.0 else replace(everything, width=width, observe=0)
            found[width, True, seed] = same
            matching = "per_task_steps" if len(without) == 1 else everything.matching
            found[width, False, seed] = RunSpec(without, seed, matching, width=width)
    return found


def matrix_specs(problem: Problem, plan: Plan) -> dict[Run, RunSpec]:
    """A run of the problem for each run of the plan, scored on development data: what is found may be acted on."""
    found = {}
    for run in plan.runs:
        everything = all_tasks_spec(problem, run.seed)
        tasks = tuple(task for task in problem.tasks if task in run.tasks)
        matching: Matching = "total_steps" if run.matching == "total_steps" else "per_task_steps"
        same = tasks == everything.tasks and matching == everything.matching
        found[run] = everything if same else RunSpec(tasks, run.seed, matching)  # type: ignore[arg-type]
    return found


def other_scores(
    matrix: Diagnosis, specs: Mapping[Run, RunSpec], results: Results
) -> list[dict[str, Interval]]:
    """The target's scores by other measures, over seeds: for each row of the matrix's scores, by measure."""
    found = []
    for score in matrix.scores:
        runs = (Run(score.tasks, seed, score.matching) for seed in matrix.plan.seeds)  # type: ignore[arg-type]
        also = [results[specs[run]].also for run in runs]
        found.append({name: t_interval([row[name] for row in also]) for name in also[0]})
    return found


def matrix_diagnosis(
    problem: Problem, plan: Plan, specs: Mapping[Run, RunSpec], results: Results
) -> Diagnosis:
    """The transfer matrix from the results of its runs."""
    outcomes = {}
    for run, spec in specs.items():
        result = results[spec]
        # A score that is no mean over examples comes without them.
        examples = {task: [float(v) for v in row] for task, row in result.correct.items() if row}
        outcomes[run] = Outcome(dict(result.scores), examples, result.seconds)
    return assemble(plan, outcomes, higher_is_better={problem.target: problem.higher_is_better})
