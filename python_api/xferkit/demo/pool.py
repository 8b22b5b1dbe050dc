"""The demo's runs in worker processes: each gets the names it asks for, and is trained by the experiment's trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from xferkit.data.cldr import NameData
from xferkit.demo.plan import CellSpec, SimilaritySpec
from xferkit.demo.store import CellOutcome, SimilarityOutcome
from xferkit.experiments import pool

__all__ = ["AnyOutcome", "AnySpec", "MeasureCell", "RunCell", "measure_cell", "run_cells", "train_cell"]

#: Trains one cell on names (lower-cased ones where the cell says so). Picklable: a function of a module.
RunCell = Callable[[CellSpec, NameData], CellOutcome]
#: Makes one run that compares gradients, likewise.
MeasureCell = Callable[[SimilaritySpec, NameData], SimilarityOutcome]
#: A run of either kind, and its result.
AnySpec = CellSpec | SimilaritySpec
AnyOutcome = CellOutcome | SimilarityOutcome


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


def measure_cell(spec: SimilaritySpec, data: NameData) -> SimilarityOutcome:
    """Train `spec` and compare the languages' gradients, by the experiment's own means."""
    from xferkit.experiments.name_similarity import SimilarityCell, measure_similarity

    result = measure_similarity(
        SimilarityCell(
            languages=spec.languages,
            seed=spec.seed,
            focus=spec.focus,
            course=spec.course,
            samples=spec.samples,
            lowercase=spec.lowercase,
            steps=spec.steps,
        ),
        data,
    )
    return SimilarityOutcome.checked(vars(result))


def run_cells(
    specs: Iterable[AnySpec],
    data: Mapping[bool, NameData],
    *,
    workers: int,
    started: Callable[[AnySpec], None],
    finished: Callable[[AnySpec, AnyOutcome], None],
    run: RunCell = train_cell,
    measure: MeasureCell = measure_cell,
) -> None:
    """Run all `specs`; `finished` is called in this process as each one ends, in the order they end.

    Args:
        specs: the runs, of both kinds.
        data: names as written (False) and lower-cased (True).
        workers: processes; 0 runs everything in this one.
        started: called when a run is handed out.
        finished: called with each result.
        run: trains one cell.
        measure: makes one run that compares gradients.

    Raises:
        DemoError: a run failed or a worker was killed; the message names the run. Any other exception, Ctrl-C
            above all, passes through after the workers have been ended.
    """
    pool.run_cells(
        specs,
        dict(data),
        workers=workers,
        run=partial(_on_its_names, run, measure),
        started=started,
        finished=finished,
    )


def _on_its_names(
    run: RunCell, measure: MeasureCell, spec: AnySpec, data: Mapping[bool, NameData]
) -> AnyOutcome:
    names = data[spec.lowercase]
    return measure(spec, names) if isinstance(spec, SimilaritySpec) else run(spec, names)
