"""The demo from plan to report: read names, train what is missing, write the files."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

from xferkit.data.cldr import load_names
from xferkit.demo.environment import code_fingerprint, hardware, num_cores, versions
from xferkit.demo.errors import DemoError
from xferkit.demo.output import write_report
from xferkit.demo.page import language_names
from xferkit.demo.plan import PRESETS, Preset, plan_cells
from xferkit.demo.pool import RunCell, run_cells, train_cell
from xferkit.demo.progress import make_progress
from xferkit.demo.result import Run
from xferkit.demo.sentences import three_sentences
from xferkit.demo.store import CellStore
from xferkit.demo.summary import summarise

__all__ = ["run_demo"]


def run_demo(
    out: str | os.PathLike[str],
    preset: str | Preset = "full",
    workers: int | None = None,
    run: RunCell = train_cell,
) -> Path:
    """Train what is missing in `out` and write the report; return the path of report.html.

    Finished runs lie in ``out/cells`` and are used again when data, code and versions are the same, so a demo
    that was stopped goes on where it was.

    Args:
        out: folder, made when it is not there.
        preset: a name of :data:`xferkit.demo.plan.PRESETS` or a preset of your own.
        workers: processes of one thread each; None: one a core; 0: none, everything in this process.
        run: trains one cell.

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
    cells = plan_cells(preset)
    languages = tuple(dict.fromkeys(lang for cell in cells for lang in (cell.target, *cell.sources)))
    data = {lowercase: load_names(languages, lowercase=lowercase) for lowercase in (False, True)}

    folder = Path(out)
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot use {folder} as the output folder: {error.strerror or error}.") from error
    notes: list[str] = []
    conditions = {"code": code_fingerprint(), "data": data[False].fingerprint(), **versions()}
    try:
        store = CellStore(folder / "cells", conditions, notes.append)
        with store.locked():
            found = {cell: outcome for cell in cells if (outcome := store.load(cell)) is not None}
            missing = tuple(cell for cell in cells if cell not in found)
            records = dict(found)
            progress = make_progress(missing, len(cells), min(workers, len(missing)))
            with progress:
                for text in notes:
                    progress.note(text)
                if found:
                    progress.note(
                        f"{len(found)} of {len(cells)} runs are finished already in {store.folder}."
                    )

                def finished(spec, outcome):  # type: ignore[no-untyped-def]
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
                    )
                ordered = {cell: records[cell] for cell in cells}
                demo = Run(
                    preset=preset,
                    records=ordered,
                    summaries=summarise(ordered, data[False]),
                    data=data[False],
                    environment={**hardware(), **versions(), "code": conditions["code"][:16]},
                    date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    wall_seconds=time.monotonic() - begin,
                    reused=len(found),
                    workers=workers,
                )
                page = write_report(demo, folder, progress.note)
                for sentence in three_sentences(demo.summaries[0], language_names(languages)):
                    progress.note(sentence)
                return page
    except OSError as error:
        where = error.filename or folder
        raise DemoError(f"cannot write to {where}: {error.strerror or error}.") from error
