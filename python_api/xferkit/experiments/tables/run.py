"""A table from its configuration to its files: train what is missing, sum up, write the page."""

from __future__ import annotations

import argparse
import datetime
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
from xferkit.experiments.tables.claims import sentences
from xferkit.experiments.tables.config import TableConfig, load_table_config
from xferkit.experiments.tables.figures import gate_maps
from xferkit.experiments.tables.files import cells_csv, results_json, table_csv, table_markdown, table_tex
from xferkit.experiments.tables.page import table_html
from xferkit.experiments.tables.plan import plan_cells
from xferkit.experiments.tables.summary import PanelResult, score_name, summarise
from xferkit.experiments.tagging_cell import TaggingCell, TaggingOutcome, TaggingSettings
from xferkit.experiments.tagging_data import files_fingerprint
from xferkit.report.files import write_atomic
from xferkit.report.format import duration
from xferkit.runs.environment import code_fingerprint, hardware, num_cores, source_commit, versions
from xferkit.runs.errors import RunError
from xferkit.runs.schema import plain

__all__ = ["RunCell", "main", "run_table"]

#: What a run is given: the settings and the data folder.
Given = tuple[TaggingSettings, Path]
#: Trains one cell. Picklable: a function of a module.
RunCell = Callable[[TaggingCell, Given], TaggingOutcome]

#: Subpackages of xferkit that decide a result; of the experiments, the modules of the cell alone do.
_DECISIVE = ("data", "methods", "metrics", "models", "objectives", "trainers")
_CELL_MODULES = ("tagging_cell", "tagging_data", "tagging_scores", "tagging_transfer")


def train_cell(cell: TaggingCell, given: Given) -> TaggingOutcome:
    """Train `cell` with the experiment's own trainer."""
    from xferkit.experiments.tagging_transfer import run_tagging_cell

    return run_tagging_cell(cell, *given)


def run_table(
    config: str | os.PathLike[str] | TableConfig,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    workers: int | None = None,
    run: RunCell = train_cell,
) -> Path:
    """Train what is missing in `out` and write the table; return the path of report.html.

    Finished runs lie in ``out/cells`` and are used again when settings, data, code and versions are the same, so
    a table that was stopped goes on where it was. Beside the page stand ``table.md``, ``table.csv``,
    ``table.tex``, ``cells.csv``, ``results.json`` and, with matplotlib, a PNG of the gates of each source set.

    Args:
        config: a YAML file, or what was read from one.
        data: folder of the data.
        out: folder, made when it is not there.
        workers: processes of one thread each; None: one a core; 0: none, everything in this process.
        run: trains one cell.

    Raises:
        ValueError: the configuration or the data are not as expected, `out` cannot be used, or `workers` is
            negative.
        RunError: another process writes to `out`, it cannot be written to, or a run failed.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    begin = time.monotonic()
    if not isinstance(config, TableConfig):
        config = load_table_config(config)
    if workers is None:
        workers = num_cores()
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    data, folder = Path(data), Path(out)
    cells = plan_cells(config)
    if not data.is_dir():
        raise ValueError(f"{data} is no folder; expected the folder of the data")
    conditions = _conditions(config, data, cells)
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot use {folder} as the output folder: {error.strerror or error}") from error
    try:
        return _run(config, data, folder, workers, run, cells, conditions, begin)
    except OSError as error:
        where = error.filename or folder
        raise RunError(f"cannot write to {where}: {error.strerror or error}") from error


def _run(
    config: TableConfig,
    data: Path,
    folder: Path,
    workers: int,
    run: RunCell,
    cells: Sequence[TaggingCell],
    conditions: dict[str, str],
    begin: float,
) -> Path:
    notes: list[str] = []
    store = CellStore[TaggingCell, TaggingOutcome](
        folder / "cells",
        conditions,
        decode=TaggingOutcome.checked,
        stem=lambda cell: cell.stem,
        warn=notes.append,
        owner="table",
    )
    with store.locked():
        records = {cell: outcome for cell in cells if (outcome := store.load(cell)) is not None}
        reused = len(records)
        missing = tuple(cell for cell in cells if cell not in records)
        workers = min(workers, len(missing))
        with make_progress(missing, len(cells), workers, _scores(config)) as progress:
            for text in notes:
                progress.note(text)
            if reused:
                progress.note(f"{reused} of {len(cells)} runs are finished already in {store.folder}.")

            def finished(cell: TaggingCell, outcome: TaggingOutcome) -> None:
                store.save(cell, outcome)
                records[cell] = outcome
                progress.finished(cell, outcome)

            given = (config.settings, data)
            if missing:
                run_cells(
                    missing, given, workers=workers, run=run, started=progress.started, finished=finished
                )
            ordered = {cell: records[cell] for cell in cells}
            panels = summarise(config, ordered)
            facts = _facts(ordered, conditions, reused, workers, time.monotonic() - begin)
            page = _write(config, panels, ordered, facts, folder, progress.note)
            for sentence in sentences(panels):
                progress.note(sentence)
            return page


def _scores(config: TableConfig) -> Callable[[TaggingOutcome], str]:
    name = score_name(config)

    def phrase(outcome: TaggingOutcome) -> str:
        return ", ".join(f"{lang} {100 * scores[name]:.1f}" for lang, scores in outcome.targets.items())

    return phrase


def _conditions(config: TableConfig, data: Path, cells: Sequence[TaggingCell]) -> dict[str, str]:
    wanted = {(split, lang) for cell in cells for split in ("train", "dev") for lang in cell.sources}
    wanted |= {(split, lang) for cell in cells for split in ("unlabelled", "test") for lang in cell.targets}
    code = hashlib.sha256(code_fingerprint(_DECISIVE).encode())
    for module in _CELL_MODULES:
        spec = importlib.util.find_spec(f"xferkit.experiments.{module}")
        if spec is not None and spec.origin is not None:
            code.update(Path(spec.origin).read_bytes())
    settings = {
        key: value
        for key, value in plain(config.settings).items()
        if key not in ("trainer.progress", "trainer.title", "trainer.trackers")
    }
    return {
        "code": code.hexdigest(),
        "data": files_fingerprint(config.settings.files, data, wanted),  # type: ignore[arg-type]
        "settings": json.dumps(settings, sort_keys=True),
        **versions(),
    }


def _facts(
    records: dict[TaggingCell, TaggingOutcome],
    conditions: dict[str, str],
    reused: int,
    workers: int,
    wall_seconds: float,
) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "runs": len(records),
        "runs_reused": reused,
        "workers": workers,
        "wall_seconds": wall_seconds,
        "run_seconds": sum(outcome.seconds for outcome in records.values()),
        "data_sha256": conditions["data"],
        "code_sha256": conditions["code"],
        "commit": source_commit(),
        "environment": {**hardware(), **versions()},
    }


def _shown(facts: dict[str, Any]) -> list[tuple[str, str]]:
    where = f"{facts['workers']} workers of one thread" if facts["workers"] else "one process"
    taken = (
        f"; {facts['runs_reused']} runs were taken over from an earlier start" if facts["runs_reused"] else ""
    )
    spent = f"{duration(facts['wall_seconds'])} with {where}{taken}; {duration(facts['run_seconds'])} of runs in all"
    return [
        ("Date", facts["date"]),
        ("Time", f"{facts['runs']} runs; {spent}"),
        ("Data", f"SHA-256 {facts['data_sha256'][:16]}"),
        ("Code", f"SHA-256 {facts['code_sha256'][:16]}; commit {facts['commit'] or 'unknown'}"),
        *facts["environment"].items(),
    ]


def _write(
    config: TableConfig,
    panels: Sequence[PanelResult],
    records: dict[TaggingCell, TaggingOutcome],
    facts: dict[str, Any],
    folder: Path,
    note: Callable[[str], None],
) -> Path:
    results = results_json(config, panels, records, facts)
    write_atomic(
        folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    write_atomic(folder / "cells.csv", cells_csv(config, records))
    write_atomic(folder / "table.csv", table_csv(panels))
    write_atomic(folder / "table.md", table_markdown(config, panels))
    write_atomic(folder / "table.tex", table_tex(config, panels))
    if importlib.util.find_spec("matplotlib") is None:
        note("matplotlib is not installed, so no PNGs are written; run: pip install 'xfercore[demo]'")
    else:
        _write_pngs(panels, folder)
    page = folder / "report.html"
    write_atomic(page, table_html(config, panels, records, _shown(facts)))
    return page


def _write_pngs(panels: Sequence[PanelResult], folder: Path) -> None:
    from xferkit.report.heat_map import heat_maps_png

    for panel in panels:
        for method in panel.gates:
            title = f"{method}, sources {', '.join(panel.panel.sources)}: weight of each source, %"
            write_atomic(
                folder / f"gates-{panel.name}-{method}.png", heat_maps_png(title, gate_maps(panel, method))
            )


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
