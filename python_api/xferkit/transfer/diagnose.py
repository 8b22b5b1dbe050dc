"""``diagnose``: does this source help or hurt me? For any training that can be called as a function."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xferkit.transfer.calling import CallStyle, call_style, require_picklable
from xferkit.transfer.diagnosis import Diagnosis, assemble
from xferkit.transfer.guard import refuse_in_worker
from xferkit.transfer.identity import function_conditions, settings_text
from xferkit.transfer.kept import finished_runs, opened
from xferkit.transfer.plan import Budget, Matching, counted, make_plan
from xferkit.transfer.work import Estimate, RunProgress, Work

__all__ = ["diagnose"]

_FULL_MATCHINGS: tuple[Matching, ...] = ("per_task_steps", "total_steps")


def diagnose(
    train_fn: Callable[..., Mapping[str, Any]],
    tasks: Sequence[str],
    seeds: int | Sequence[int] = 5,
    *,
    target: str | Sequence[str] | None = None,
    budget: Budget = "pairs",
    groups: Mapping[str, Sequence[str]] | None = None,
    matchings: Matching | Sequence[Matching] | None = None,
    higher_is_better: bool | Mapping[str, bool] = True,
    confidence: float = 0.95,
    out: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int = 0,
    on_progress: Callable[[RunProgress], None] | None = None,
    confirm: Callable[[Estimate], bool] | None = None,
) -> Diagnosis:
    """Which tasks help a target, which hurt, by how much, and how sure that is. For any framework.

    ``train_fn(tasks, seed)`` trains the named tasks together and returns ``{task: score}`` on their test data: the
    same algorithm for every set of tasks, one task included. The gain of a target from a source is its score when
    trained with it minus its score without, of one seed, turned so that positive means "helps"; a cell's verdict
    comes from the paired t-interval over seeds, with Holm over all cells.

    How much training a task has in company is up to the function, unless it has a parameter ``matching`` (it is given
    ``"per_task_steps"`` or ``"total_steps"``, see :data:`~xferkit.transfer.plan.Matching`) or ``run`` (a
    :class:`~xferkit.transfer.plan.Run`, whose ``steps(alone)`` gives each task's steps). S, the steps of a task alone,
    must be the same for all tasks under ``total_steps``.

    Instead of a score it may return one number per test example of a task, the same examples in the same order in
    every run; their mean is the score, and the cell gets a bootstrap interval over test examples too.

    With `out`, every finished run is a file there; the same call after a stop, a kill or a power cut does what is
    missing. A run is used again only where nothing that is seen to decide it has changed, so more seeds, tasks or a
    larger budget cost only what is new. Seen are its tasks, seed and matching, `settings`, the text of ``train_fn`` and
    what it holds, and of the code that it names outside of libraries: functions, classes and constants, and those that
    these name (numbers, texts, paths, tuples of them; also in modules of yours). Not seen are files, mutable globals
    (lists, dictionaries, objects) and libraries: `settings` is the place to name these. Objects that ``train_fn`` holds
    count by their fields at the call: one that keeps what it has done is another one at the next call. A note says how
    many runs are of earlier calls, how many are not used and what changed since, and, without `settings`, what
    ``train_fn`` holds that cannot be seen.

    Args:
        train_fn: the training. With `workers`, picklable: a function of a module, or a partial of one.
        tasks: a list of two or more names.
        seeds: how many (1 to n), or which.
        target: the task in question, or several; None: each one.
        budget: ``pairs``: each source with the target; ``groups``: `groups` alone; ``full``: pairs, all tasks,
            all but one.
        groups: sources that are tested together, by a name.
        matchings: which of ``per_task_steps`` and ``total_steps`` to run; None: the first, and both with ``full``.
            For a function without ``matching`` and ``run``: the one that it follows; None: none (``own``).
        higher_is_better: False for losses and errors; by task where they differ.
        confidence: of each interval, and 1 minus the chance that any verdict is false; in (0, 1).
        out: folder of finished runs; None: they are kept nowhere.
        settings: what else decides results (data, sizes, versions), plain JSON values: other ones, other runs.
        workers: processes of one thread each; 0: none, everything in this process. Each imports the script that calls,
            so there the call stands under ``if __name__ == "__main__":``.
        on_progress: called when a run ended.
        confirm: asked when, after a timed first run, more than an hour is left; False stops. None: go on.

    Raises:
        ValueError: an argument is not as expected.
        Declined: `confirm` said no.
        RunError: a run failed or returned something else (the message names the run, the cause shows where), the script
            lacks its guard, another process writes to `out`, or it cannot be written to. Finished runs are kept.
        KeyboardInterrupt: Ctrl-C; with `out` it carries a note on what is kept.
    """
    style = call_style(train_fn)
    chosen = _matchings(style, matchings, budget)
    plan = make_plan(tasks, seeds, target=target, budget=budget, groups=groups, matchings=chosen)
    direction = _directions(higher_is_better, plan.targets)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers!r}")
    settings_text(settings)
    if workers:
        refuse_in_worker()
        require_picklable(train_fn)
    notes: list[str] = []
    conditions = {} if out is None else function_conditions(train_fn, settings, notes.append)
    with opened(out, conditions, notes) as store:
        outcomes = finished_runs(plan, store, notes)
        try:
            Work(plan, outcomes, store, workers, on_progress, confirm).do((train_fn, style))
        except KeyboardInterrupt as stop:
            if out is not None:
                kept = f"{counted(len(outcomes), 'run')} {'is' if len(outcomes) == 1 else 'are'}"
                stop.add_note(f"{kept} kept in {os.fspath(out)}; the same call goes on.")
            raise
    answer = assemble(plan, outcomes, higher_is_better=direction, confidence=confidence)
    return dataclasses.replace(answer, notes=(*_method_notes(answer, style), *notes))


def _matchings(
    style: CallStyle, given: Matching | Sequence[Matching] | None, budget: str
) -> tuple[Matching, ...]:
    if given is None:
        if style == "plain":
            return ("own",)
        return _FULL_MATCHINGS if budget == "full" else _FULL_MATCHINGS[:1]
    chosen: tuple[Matching, ...] = (given,) if isinstance(given, str) else tuple(given)
    if style == "plain" and len(chosen) > 1:
        raise ValueError(
            f"train_fn(tasks, seed) trains one way and cannot follow the matchings {', '.join(chosen)}; give it a "
            "parameter `matching` or `run`, or name the one that it follows"
        )
    return chosen


def _directions(given: bool | Mapping[str, bool], targets: Sequence[str]) -> dict[str, bool]:
    if isinstance(given, bool):
        return dict.fromkeys(targets, given)
    if not isinstance(given, Mapping):
        raise ValueError(f"higher_is_better must be True, False or {{task: bool}}, got {given!r}")
    for task in targets:
        if not isinstance(given.get(task), bool):
            raise ValueError(f"higher_is_better must be True or False for {task!r}, got {given.get(task)!r}")
    return {task: given[task] for task in targets}


def _method_notes(answer: Diagnosis, style: CallStyle) -> list[str]:
    plan, percent = answer.plan, f"{100.0 * answer.confidence:g} %"
    several = len(plan.comparisons) > 1
    verdicts = (
        f"verdicts hold for all {len(plan.comparisons)} comparisons together (Holm)"
        if several
        else "the verdict is that of the one comparison"
    )
    notes = [
        f"Gains are paired over seeds {', '.join(map(str, plan.seeds))}; intervals are {percent} Student t-intervals "
        f"of one comparison each; {verdicts}."
        if len(plan.seeds) > 1
        else f"Gains are of seed {plan.seeds[0]} alone; one seed has no interval and no verdict.",
        "A negative gain means that the source hurts; the negative transfer gap is minus the gain, in the score "
        "returned.",
        _unit_note(answer),
    ]
    if plan.matchings == ("own",):
        notes.append(
            "The training was not matched: a gain may come from more or fewer steps on the target as well as from "
            "the source."
        )
    elif style == "plain":
        notes.append(f"That training follows {plan.matchings[0]} is the caller's word; it was not checked.")
    return notes


def _unit_note(answer: Diagnosis) -> str:
    """In which unit gains are told; the numbers themselves do not say it."""
    raw = list(dict.fromkeys(cell.target for cell in answer.cells if not cell.points))
    if not raw:
        return "Gains are told in points: hundredths of the score returned."
    of = "" if len(raw) == len(answer.plan.targets) else f" of {', '.join(raw)}"
    rest = ", the others in points (hundredths of it)" if of else ""
    return f"Gains{of} are told in the unit of the score returned{rest}."
