"""The demo's runs in worker processes: each gets the names it asks for, and is trained by the experiment's trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from xferkit.data.cldr import NameData
from xferkit.demo.plan import CellSpec
from xferkit.demo.store import CellOutcome
from xferkit.experiments import pool

__all__ = ["RunCell", "run_cells", "train_cell"]

#: Trains one cell on names (lower-cased ones where the cell says so). Picklable: a function of a module.
RunCell = Callable[[CellSpec, NameData], CellOutcome]


def train_cell(spec: CellSpec, data: NameData) -> CellOutcome:
    """Train `spec` with the experiment's own trainer."""
    from xferkit.experiments.name_transfer import Cell, run_cell

    result = run_cell(
        Cell(
            target=spec.target,
            method=spec.method,
            seed=spec.seed,
            sources=spec.sources,
            lowercase=spec.lowercase,
            steps=spec.steps,
        ),
        data,
    )
    return CellOutcome.checked(
        {
            "accuracy": result.accuracy,
            "macro_f1": result.macro_f1,
            "seconds": result.seconds,
            "gate": result.gate,
            "steps": result.steps,
            "losses": result.losses,
        }
    )


def run_cells(
    specs: Iterable[CellSpec],
    data: Mapping[bool, NameData],
    *,
    workers: int,
    started: Callable[[CellSpec], None],
    finished: Callable[[CellSpec, CellOutcome], None],
    run: RunCell = train_cell,
) -> None:
    """Run all `specs`; `finished` is called in this process as each one ends, in the order they end.

    Args:
        specs: the runs.
        data: names as written (False) and lower-cased (True).
        workers: processes; 0 runs everything in this one.
        started: called when a run is handed out.
        finished: called with each result.
        run: trains one cell.

    Raises:
        DemoError: a run failed or a worker was killed; the message names the run. Any other exception, Ctrl-C
            above all, passes through after the workers have been ended.
    """
    pool.run_cells(
        specs,
        dict(data),
        workers=workers,
        run=partial(_on_its_names, run),
        started=started,
        finished=finished,
    )


def _on_its_names(run: RunCell, spec: CellSpec, data: Mapping[bool, NameData]) -> CellOutcome:
    return run(spec, data[spec.lowercase])
