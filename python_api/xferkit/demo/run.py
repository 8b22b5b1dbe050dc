"""The demo from plan to report: read names, train what is missing, write the files."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from xferkit.data.cldr import load_names
from xferkit.demo.environment import code_fingerprint, hardware, num_cores, versions
from xferkit.demo.errors import DemoError
from xferkit.demo.output import write_report
from xferkit.demo.page import language_names
from xferkit.demo.plan import PRESETS, CellSpec, Preset, SimilaritySpec, plan_cells, plan_similarity
from xferkit.demo.pool import (
    AnyOutcome,
    AnySpec,
    MeasureCell,
    RunCell,
    measure_cell,
    run_cells,
    train_cell,
)
from xferkit.demo.progress import make_progress
from xferkit.demo.result import Run
from xferkit.demo.sentences import three_sentences
from xferkit.demo.similarity import similarity_sentences, summarise_similarity
from xferkit.demo.store import CellOutcome, CellStore, SimilarityOutcome, SimilarityStore
from xferkit.demo.summary import summarise

__all__ = ["run_demo"]


def run_demo(
    out: str | os.PathLike[str],
    preset: str | Preset = "full",
    workers: int | None = None,
    run: RunCell = train_cell,
    measure: MeasureCell = measure_cell,
) -> Path:
    """Train what is missing in `out` and write the report; return the path of report.html.

    Finished runs lie in ``out/cells`` and are used again when data, code and versions are the same, so a demo
    that was stopped goes on where it was.

    Args:
        out: folder, made when it is not there.
        preset: a name of :data:`xferkit.demo.plan.PRESETS` or a preset of your own.
        workers: processes of one thread each; None: one a core; 0: none, everything in this process.
        run: trains one cell.
        measure: makes one run that compares gradients.

    Raises:
        ValueError: no such preset, a negative number of workers, or Babel is missing.
        DemoError: `out` cannot be used, another demo writes to it, or a run failed.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    begin = time.monotonic()
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; presets are {', '.join(PRESETS)}.")
        preset = PRESETS[preset]
    if workers is None:
        workers = num_cores()
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}.")
    cells: tuple[AnySpec, ...] = (*plan_cells(preset), *plan_similarity(preset))
    languages = tuple(dict.fromkeys(lang for cell in cells for lang in _languages(cell)))
    data = {lowercase: load_names(languages, lowercase=lowercase) for lowercase in (False, True)}

    folder = Path(out)
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot use {folder} as the output folder: {error.strerror or error}.") from error
    notes: list[str] = []
    conditions = {"code": code_fingerprint(), "data": data[False].fingerprint(), **versions()}
    try:
        store = _Stores(folder / "cells", conditions, notes.append)
        with store.transfer.locked():
            found = {cell: outcome for cell in cells if (outcome := store.load(cell)) is not None}
            missing = tuple(cell for cell in cells if cell not in found)
            records = dict(found)
            progress = make_progress(missing, len(cells), min(workers, len(missing)))
            with progress:
                for text in notes:
                    progress.note(text)
                if found:
                    progress.note(
                        f"{len(found)} of {len(cells)} runs are finished already in {folder / 'cells'}."
                    )

                def finished(spec: AnySpec, outcome: AnyOutcome) -> None:
                    store.save(spec, outcome)
                    records[spec] = outcome
                    progress.finished(spec, outcome)

                if missing:
                    run_cells(
                        missing,
                        data,
                        workers=min(workers, len(missing)),
                        started=progress.started,
                        finished=finished,
                        run=run,
                        measure=measure,
                    )
                done = [(cell, records[cell]) for cell in cells]
                trained = {s: o for s, o in done if isinstance(s, CellSpec) and isinstance(o, CellOutcome)}
                compared = {
                    s: o
                    for s, o in done
                    if isinstance(s, SimilaritySpec) and isinstance(o, SimilarityOutcome)
                }
                demo = Run(
                    preset=preset,
                    records=trained,
                    summaries=summarise(trained, data[False]),
                    data=data[False],
                    environment={**hardware(), **versions(), "code": conditions["code"][:16]},
                    date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    wall_seconds=time.monotonic() - begin,
                    reused=len(found),
                    workers=workers,
                    similarity_records=compared,
                    similarity=summarise_similarity(compared),
                )
                page = write_report(demo, folder, progress.note)
                names = language_names(languages)
                for sentence in three_sentences(demo.summaries[0], names):
                    progress.note(sentence)
                if demo.similarity is not None:
                    for sentence in similarity_sentences(demo.similarity, names):
                        progress.note(sentence)
                return page
    except OSError as error:
        where = error.filename or folder
        raise DemoError(f"cannot write to {where}: {error.strerror or error}.") from error


def _languages(cell: AnySpec) -> tuple[str, ...]:
    return cell.languages if isinstance(cell, SimilaritySpec) else (cell.target, *cell.sources)


class _Stores:
    """Finished runs of both kinds, in one folder under one lock."""

    def __init__(self, folder: Path, conditions: Mapping[str, str], warn: Callable[[str], None]) -> None:
        self.transfer = CellStore(folder, conditions, warn)
        self.similarity = SimilarityStore(folder, conditions, warn)

    def load(self, cell: AnySpec) -> AnyOutcome | None:
        """Result of a run when there is a valid one."""
        if isinstance(cell, SimilaritySpec):
            return self.similarity.load(cell)
        return self.transfer.load(cell)

    def save(self, cell: AnySpec, outcome: AnyOutcome) -> None:
        """Write the result of a run."""
        if isinstance(cell, SimilaritySpec) and isinstance(outcome, SimilarityOutcome):
            self.similarity.save(cell, outcome)
        elif isinstance(cell, CellSpec) and isinstance(outcome, CellOutcome):
            self.transfer.save(cell, outcome)
        else:
            raise TypeError(f"{cell.describe()} gave a {type(outcome).__name__}")
