"""Which runs a budget needs: task sets of the transfer matrix, for targets with labels and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from xferkit.diagnosis.engine import Results
from xferkit.diagnosis.problem import Problem, RunSpec
from xferkit.transfer import Diagnosis, Matching, Plan, Run, assemble, make_plan
from xferkit.transfer.calling import Outcome

__all__ = ["LOOKS", "DiagnoseBudget", "all_tasks_spec", "matrix_diagnosis", "matrix_plan", "matrix_specs"]

#: Looks at the gradients of the run of all tasks.
LOOKS = 8

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
    )


def all_tasks_spec(problem: Problem, seed: int) -> RunSpec:
    """The run of all tasks, whose gradients are looked at."""
    matching: Matching = "per_task_steps" if problem.target in problem.tasks else "total_steps"
    return RunSpec(problem.tasks, seed, matching, observe=LOOKS)  # type: ignore[arg-type]


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


def matrix_diagnosis(
    problem: Problem, plan: Plan, specs: Mapping[Run, RunSpec], results: Results
) -> Diagnosis:
    """The transfer matrix from the results of its runs."""
    outcomes = {}
    for run, spec in specs.items():
        result = results[spec]
        examples = {task: [float(v) for v in row] for task, row in result.correct.items()}
        outcomes[run] = Outcome(dict(result.scores), examples, result.seconds)
    return assemble(plan, outcomes, higher_is_better={problem.target: problem.higher_is_better})
