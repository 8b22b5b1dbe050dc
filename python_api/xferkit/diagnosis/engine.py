"""Runs of a problem: done on several processes, kept on the disk, and estimated before anybody has waited for long."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from xferkit.diagnosis.problem import Problem, RunResult, RunSpec, metric_name
from xferkit.experiments.cells import CellStore
from xferkit.experiments.pool import WorkerPool
from xferkit.experiments.progress import make_progress
from xferkit.report.format import duration
from xferkit.runs.environment import code_fingerprint, versions
from xferkit.transfer import Declined, Estimate
from xferkit.transfer.plan import counted

__all__ = ["ASK_SECONDS", "Engine", "Results", "SpecCell"]

#: Longer estimates are confirmed first.
ASK_SECONDS = 3600.0

# Of a mask, against a task alone: about as many steps, forward and backward, and the gates.
_MASK_COST = 0.8

# Mixtures, gates and surgery on gradients, against pooling: two to six times, by the number of tasks.
_METHOD_COST = 4.0

_CODE = (
    "data",
    "diagnosis",
    "experiments",
    "masks",
    "methods",
    "metrics",
    "models",
    "objectives",
    "surgery",
    "trainers",
    "transfer",
)


@dataclass(frozen=True)
class SpecCell:
    """A run as the pool and the store know it.

    Attributes:
        spec: fields of the :class:`~xferkit.diagnosis.problem.RunSpec` as JSON.
        label: one phrase for progress.
        cost: about how many times as long as a task alone it takes, until runs of its kind have been timed.
    """

    spec: str
    label: str
    cost: float

    @classmethod
    def of(cls, spec: RunSpec) -> SpecCell:
        """The cell of a run."""
        method = "" if spec.method == "pooled" else f", {spec.method}"
        extra = [f"{name} {value}" for name, value in (spec.options or {}).items()]
        extra += [f"weight of {task} {value:g}" for task, value in (spec.weights or {}).items()]
        extra += [] if spec.temperature is None else [f"temperature {spec.temperature:g}"]
        extra += [] if spec.width == 1.0 else [f"width {spec.width:g}"]
        extra += ["masks"] if spec.masks else []
        tasks = "+".join(spec.tasks) if len(spec.tasks) <= 4 else f"{len(spec.tasks)} tasks"
        cost = float(len(spec.tasks)) if spec.matching == "per_task_steps" else 1.0
        cost += _MASK_COST * (2 + len(spec.masks)) if spec.masks else 0.0
        label = f"{tasks}{method}{''.join(f', {e}' for e in extra)}, seed {spec.seed}, {spec.part}"
        cost *= 1.0 if spec.method == "pooled" else _METHOD_COST
        return cls(json.dumps(asdict(spec), sort_keys=True), label, cost * spec.width)

    @property
    def method(self) -> str:
        """Runs of one name take about the same time."""
        fields = json.loads(self.spec)
        return f"{fields['method']} {self.cost:g} {bool(fields['observe'])} {len(fields['masks'])}"

    def describe(self) -> str:
        """One phrase for progress and messages."""
        return self.label

    def run_spec(self) -> RunSpec:
        """The run."""
        fields = json.loads(self.spec)
        masks = tuple(map(tuple, fields["masks"]))
        return RunSpec(**{**fields, "tasks": tuple(fields["tasks"]), "masks": masks})


class Results:
    """Results by their runs."""

    def __init__(self, found: Mapping[SpecCell, RunResult]) -> None:
        self._found = dict(found)

    def __getitem__(self, spec: RunSpec) -> RunResult:
        return self._found[SpecCell.of(spec)]

    def __len__(self) -> int:
        return len(self._found)

    def __or__(self, other: Results) -> Results:
        return Results(self._found | other._found)


def _train(cell: SpecCell, problem: Problem) -> RunResult:
    return problem.train(cell.run_spec())


class Engine:
    """Does runs and keeps them: the same folder goes on where it was stopped, and no run is done twice.

    Before anybody waits for long it tells how many runs are left and how long they take, and asks before more than an
    hour: after a first, timed run, and again when more turns out to be needed than was told.

    Args:
        problem: what is trained.
        folder: where finished runs lie.
        workers: processes of one thread each; 0: none.
        confirm: asked before more than an hour; False stops. None: go on.
        note: told sentences on what is left and on damaged files.
    """

    def __init__(
        self,
        problem: Problem,
        folder: Path,
        *,
        workers: int = 0,
        confirm: Callable[[Estimate], bool] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.problem, self.workers = problem, workers
        self._pool = WorkerPool(problem, workers)
        self._confirm, self._note = confirm, note
        conditions = {
            "code": code_fingerprint(_CODE),
            "data": problem.fingerprint(),
            "problem": json.dumps(
                [problem.name, problem.target, problem.settings()], sort_keys=True, default=str
            ),
            **versions(),
        }
        self.conditions = conditions
        self.store = CellStore[SpecCell, RunResult](
            folder, conditions, decode=RunResult.from_json, stem=_stem, warn=note, owner="diagnosis"
        )
        self.reused = self.done = 0
        self._known: dict[SpecCell, RunResult] = {}
        self._expected: dict[str, list[SpecCell]] = {}
        self._told: float | None = None
        self._resumed = False
        self._confirmed = 0.0

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, which stay from one call of :meth:`run` to the next."""
        self._pool.__exit__(kind, error, trace)

    def expect(self, stage: str, specs: Iterable[RunSpec]) -> None:
        """Name the runs that a later stage will ask for, as well as they are known; they replace what was named for it.

        Runs that will only be known by what comes out may be stood for by others that take as long.
        """
        cells = dict.fromkeys(SpecCell.of(spec) for spec in specs)
        self._expected[stage] = [cell for cell in cells if not self.store.path(cell).exists()]

    def run(self, specs: Iterable[RunSpec]) -> Results:
        """Results of all runs, those of earlier starts included.

        Raises:
            Declined: ``confirm`` said no.
            RunError: a run failed, or a worker was killed.
        """
        cells = list(dict.fromkeys(SpecCell.of(spec) for spec in specs))
        missing = self._missing(cells)
        if self.reused and not self._resumed:
            self._resumed = True
            self._note("Runs of an earlier start were found; they are not done again.")
        left = self._left(missing) if missing else []
        with make_progress(
            left, len(self._known) + len(left), max(self.workers, 1), self._phrase
        ) as progress:
            if missing and not self._known:
                first, missing = missing[:1], missing[1:]
                self._do(first, progress)
            if missing:
                self._tell(missing)
            self._do(missing, progress)
        return Results({cell: self._known[cell] for cell in cells})

    def ask(self) -> None:
        """Tell and ask, where the expected runs take much longer than was told last.

        Raises:
            Declined: ``confirm`` said no.
        """
        self._tell([])

    def gates(self, method: str) -> list[dict[str, float]]:
        """Gate weights of all runs of a method so far that trained on all tasks and were scored on development data."""
        found = []
        for cell, result in self._known.items():
            spec = cell.run_spec()
            if (
                spec.method == method
                and spec.part == "dev"
                and result.gates
                and spec.tasks == self.problem.tasks
            ):
                found.append(result.gates)
        return found

    def _missing(self, cells: Iterable[SpecCell]) -> list[SpecCell]:
        found = []
        for cell in cells:
            if cell not in self._known and (kept := self.store.load(cell)) is not None:
                self._known[cell] = kept
                self.reused += 1
            if cell not in self._known:
                found.append(cell)
        return found

    def _do(self, cells: list[SpecCell], progress: Any) -> None:
        def finished(cell: SpecCell, result: RunResult) -> None:
            self.store.save(cell, result)
            self._known[cell] = result
            self.done += 1
            progress.finished(cell, result)

        self._pool.run(cells, run=_train, started=progress.started, finished=finished)

    def _phrase(self, result: RunResult) -> str:
        """The target's score."""
        target, metric = self.problem.target, metric_name(self.problem.metric)
        return f"{metric} of {target} {100 * result.scores[target]:.1f}"

    def _tell(self, now: Iterable[SpecCell]) -> None:
        if not self._known:  # nothing was timed
            return
        estimate = self._estimate(now)
        if self._told is not None and estimate.seconds_left <= 1.25 * self._told:
            self._told = min(self._told, estimate.seconds_left)
            return
        self._told = estimate.seconds_left
        if estimate.runs_left:
            verb = "is" if estimate.runs_left == 1 else "are"
            self._note(
                f"{counted(estimate.runs_left, 'run')} {verb} left, about {duration(estimate.seconds_left)}."
            )
        if self._confirm is not None and estimate.seconds_left > max(ASK_SECONDS, 1.25 * self._confirmed):
            if not self._confirm(estimate):
                raise Declined("stopped before the long part; finished runs are kept")
            self._confirmed = estimate.seconds_left

    def _left(self, now: Iterable[SpecCell]) -> list[SpecCell]:
        cells = dict.fromkeys([*now, *(cell for stage in self._expected.values() for cell in stage)])
        return [cell for cell in cells if cell not in self._known]

    def _estimate(self, now: Iterable[SpecCell]) -> Estimate:
        """Of all runs that are expected, by the mean time of like runs so far, else by their cost."""
        left = self._left(now)
        seen: dict[str, list[float]] = {}
        for cell, result in self._known.items():
            seen.setdefault(cell.method, []).append(result.seconds)
        pace = sum(r.seconds for r in self._known.values()) / max(sum(c.cost for c in self._known), 1e-9)
        times = [fmean(seen[cell.method]) if cell.method in seen else pace * cell.cost for cell in left]
        at_once = max(1, min(self.workers, len(left)))
        seconds = max(max(times, default=0.0), sum(times) / at_once)
        return Estimate(len(left), seconds, self.done + self.reused)


def _stem(cell: SpecCell) -> str:
    fields: Mapping[str, Any] = json.loads(cell.spec)
    tasks = "+".join("".join(c if c.isalnum() else "_" for c in t)[:12] for t in fields["tasks"][:3])
    more = "+more" if len(fields["tasks"]) > 3 else ""
    return f"{fields['method']}-{tasks}{more}-s{fields['seed']}-{fields['part']}"
