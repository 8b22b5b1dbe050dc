"""A table from its configuration to its files: train what is missing, sum up, write the page."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xferkit.experiments.cells import CellStore
from xferkit.experiments.pool import run_cells
from xferkit.experiments.progress import make_progress
from xferkit.experiments.tables.facts import table_facts
from xferkit.experiments.tables.kinds import Table, open_table
from xferkit.runs.environment import code_fingerprint, num_cores, versions
from xferkit.runs.errors import RunError

__all__ = ["main", "run_opened", "run_table", "table_conditions"]


def run_table(
    config: Any,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    workers: int | None = None,
    run: Callable[[Any, Any], Any] | None = None,
) -> Path:
    """Train what is missing in `out` and write the table; return the path of report.html.

    Finished runs lie in ``out/cells`` and are used again when settings, data, code and versions are the same, so
    a table that was stopped goes on where it was.

    Args:
        config: a YAML file, or what was read from one (see :func:`~xferkit.experiments.tables.kinds.open_table`).
        data: folder of the data.
        out: folder, made when it is not there.
        workers: processes of one thread each; None: one a core; 0: none, everything in this process.
        run: trains one cell; None: as the experiment does.

    Raises:
        ValueError: the configuration or the data are not as expected, `out` cannot be used, or `workers` is
            negative.
        RunError: another process writes to `out`, it cannot be written to, or a run failed.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    return run_opened(open_table(config), data, out, workers, run)


def run_opened(
    table: Table[Any, Any],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    workers: int | None = None,
    run: Callable[[Any, Any], Any] | None = None,
) -> Path:
    """:func:`run_table` for a table, or another experiment of its form, that is there already."""
    begin = time.monotonic()
    if workers is None:
        workers = num_cores()
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    data, folder = Path(data), Path(out)
    if not data.is_dir():
        raise ValueError(f"{data} is no folder; expected the folder of the data")
    conditions = table_conditions(table, data)
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot use {folder} as the output folder: {error.strerror or error}") from error
    try:
        return _run(table, data, folder, workers, run or table.train, conditions, begin)
    except OSError as error:
        where = error.filename or folder
        raise RunError(f"cannot write to {where}: {error.strerror or error}") from error


def _run(
    table: Table[Any, Any],
    data: Path,
    folder: Path,
    workers: int,
    run: Callable[[Any, Any], Any],
    conditions: dict[str, str],
    begin: float,
) -> Path:
    notes: list[str] = []
    cells = table.cells()
    store = CellStore[Any, Any](
        folder / "cells", conditions, decode=table.decode, stem=table.stem, warn=notes.append, owner="table"
    )
    with store.locked():
        records = {cell: outcome for cell in cells if (outcome := store.load(cell)) is not None}
        reused = len(records)
        missing = tuple(cell for cell in cells if cell not in records)
        workers = min(workers, len(missing))
        with make_progress(missing, len(cells), workers, table.phrase) as progress:
            for text in notes:
                progress.note(text)
            if reused:
                progress.note(f"{reused} of {len(cells)} runs are finished already in {store.folder}.")

            def finished(cell: Any, outcome: Any) -> None:
                store.save(cell, outcome)
                records[cell] = outcome
                progress.finished(cell, outcome)

            if missing:
                given = table.given(data)
                run_cells(
                    missing, given, workers=workers, run=run, started=progress.started, finished=finished
                )
            ordered = {cell: records[cell] for cell in cells}
            facts = table_facts(
                conditions,
                runs=len(cells),
                reused=reused,
                workers=workers,
                wall_seconds=time.monotonic() - begin,
                run_seconds=sum(outcome.seconds for outcome in ordered.values()),
            )
            page = table.write(ordered, facts, folder, progress.note)
            for sentence in table.sentences(ordered):
                progress.note(sentence)
            return page


def table_conditions(table: Table[Any, Any], data: Path) -> dict[str, str]:
    """What decides the results of all runs beside the runs themselves: code, data, settings and versions."""
    code = hashlib.sha256(code_fingerprint(table.subpackages).encode())
    for module in table.modules:
        spec = importlib.util.find_spec(f"xferkit.experiments.{module}")
        if spec is not None and spec.origin is not None:
            code.update(Path(spec.origin).read_bytes())
    settings = {
        key: value
        for key, value in table.settings().items()
        if key not in ("trainer.progress", "trainer.title", "trainer.trackers")
    }
    return {
        "code": code.hexdigest(),
        "data": table.data_fingerprint(data),
        "settings": json.dumps(settings, sort_keys=True),
        **versions(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """``CONFIG --data DIR --out DIR [--workers N]``; returns 0, or raises what :func:`run_table` raises."""
    parser = argparse.ArgumentParser(prog="xferkit table", description=(__doc__ or "").strip())
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the table")
    parser.add_argument("--data", metavar="DIR", required=True, help="folder of the data")
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="folder of the table and of finished runs"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes of one thread (default: one a core)"
    )
    arguments = parser.parse_args(argv)
    page = run_table(arguments.config, arguments.data, arguments.out, arguments.workers)
    print(f"The table is {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
