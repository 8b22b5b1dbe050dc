"""The runs of a plan that are missing: done, kept, and their time estimated before anybody has waited for long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xferkit.experiments.cells import CellStore
from xferkit.experiments.pool import run_cells
from xferkit.runs.errors import RunError
from xferkit.transfer.calling import CallStyle, Outcome, train
from xferkit.transfer.guard import starting_workers
from xferkit.transfer.plan import Plan, Run, counted

__all__ = ["ASK_SECONDS", "Declined", "Estimate", "RunProgress", "Work"]

#: Longer estimates are confirmed first.
ASK_SECONDS = 3600.0


class Declined(RunError):
    """The person did not want to wait; finished runs are kept."""


class _RaisedInWorker(Exception):
    """The traceback of a worker, as text, in the place of the exception that was raised there."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0].rstrip()}"


@dataclass(frozen=True)
class Estimate:
    """What is left, by the runs so far.

    Attributes:
        runs_left: trainings that are missing.
        seconds_left: about how long they take on all workers.
        done: trainings that are finished.
    """

    runs_left: int
    seconds_left: float
    done: int


@dataclass(frozen=True)
class RunProgress:
    """A training that ended.

    Attributes:
        done: trainings that are finished, earlier ones too.
        total: trainings of the plan.
        run: the one that ended.
        seconds: how long it took.
        seconds_left: about how long the others take.
    """

    done: int
    total: int
    run: Run
    seconds: float
    seconds_left: float


class Work:
    """Does what `outcomes` lacks of the runs of `plan`, and adds it there.

    Args:
        plan: the runs.
        outcomes: finished ones, filled up.
        store: keeps each finished run; None: nothing does.
        workers: processes; 0: none.
        on_progress: called when a run ended.
        confirm: asked once, as soon as more than an hour seems to be left; the first run is done alone for that.
    """

    def __init__(
        self,
        plan: Plan,
        outcomes: dict[Run, Outcome],
        store: CellStore[Run, Outcome] | None,
        workers: int,
        on_progress: Callable[[RunProgress], None] | None,
        confirm: Callable[[Estimate], bool] | None,
    ) -> None:
        self._plan, self._outcomes, self._store = plan, outcomes, store
        self._workers, self._on_progress, self._confirm = workers, on_progress, confirm
        self._examples: dict[str, tuple[Run, int]] = {}
        for run, outcome in outcomes.items():
            self._check_examples(run, outcome)

    def do(self, given: tuple[Callable[..., Any], CallStyle]) -> None:
        """Do the missing runs.

        Raises:
            Declined: `confirm` said no.
            RunError: a run failed (its cause is what it raised, or the traceback of the worker), or scored another
                number of test examples than the others; or the script lacks its guard.
        """
        self._ask()
        if not self._outcomes and self._confirm is not None:
            self._run(self._missing()[:1], given)
        self._run(self._missing(), given)

    def _missing(self) -> list[Run]:
        return [run for run in self._plan.runs if run not in self._outcomes]

    def _run(self, runs: Sequence[Run], given: tuple[Callable[..., Any], CallStyle]) -> None:
        if not runs:
            return
        workers = min(self._workers, len(runs))
        try:
            with starting_workers() if workers else contextlib.nullcontext():
                run_cells(
                    runs, given, workers=workers, run=train, started=lambda run: None, finished=self._finished
                )
        except RunError as error:
            if error.details and error.__cause__ is None:
                raise error from _RaisedInWorker(error.details)
            raise

    def _finished(self, run: Run, outcome: Outcome) -> None:
        self._check_examples(run, outcome)
        if self._store is not None:
            self._store.save(run, outcome)
        self._outcomes[run] = outcome
        if self._on_progress is not None:
            done, total = len(self._outcomes), self._plan.num_runs
            self._on_progress(RunProgress(done, total, run, outcome.seconds, self._seconds_left()))
        self._ask()

    def _ask(self) -> None:
        seconds, missing = self._seconds_left(), len(self._missing())
        if self._confirm is None or seconds <= ASK_SECONDS:
            return
        confirm, self._confirm = self._confirm, None
        if not confirm(Estimate(missing, seconds, len(self._outcomes))):
            kept = "" if self._store is None else f"; finished ones are kept in {self._store.folder}"
            raise Declined(
                f"stopped before {counted(missing, 'run')} of about {seconds / 3600:.1f} hours{kept}."
            )

    def _check_examples(self, run: Run, outcome: Outcome) -> None:
        for task, row in outcome.examples.items():
            first, expected = self._examples.setdefault(task, (run, len(row)))
            if len(row) != expected:
                raise RunError(
                    f"the run {run.describe()} scored {counted(len(row), 'test example')} of {task!r} and the run "
                    f"{first.describe()} {expected}; all must score the same ones in the same order."
                )

    def _seconds_left(self) -> float:
        """A run takes the mean of its like; without one, its share of all time so far by its cost.

        All together take as long as all workers need for them, and no less than the longest alone.
        """
        by_kind: dict[str, list[float]] = {}
        for run, outcome in self._outcomes.items():
            by_kind.setdefault(run.method, []).append(outcome.seconds)
        missing = self._missing()
        if not by_kind or not missing:
            return 0.0
        spent = sum(sum(times) for times in by_kind.values())
        per_cost = spent / sum(run.cost for run in self._outcomes)
        left = []
        for run in missing:
            like = by_kind.get(run.method)
            left.append(sum(like) / len(like) if like else per_cost * run.cost)
        return max(max(left), sum(left) / min(max(1, self._workers), len(left)))
