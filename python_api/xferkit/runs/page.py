"""One page about one or more runs: scores with intervals, learning curves, weights of sources; and a CSV table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xferkit.files import write_atomic
from xferkit.runs.page_runs import LoadedRun, load_run, run_section
from xferkit.runs.page_scores import score_sections

__all__ = ["write_run_report"]


def write_run_report(
    runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> Path:
    """Write report.html, which needs no other file, and report.csv; the path of the page is returned.

    Args:
        runs: folders of runs; with several, differences to the first are paired by seed.
        out: the folder; None: that of the first run.

    Raises:
        ValueError: a folder holds no run, a damaged one, or one without a finished seed.
    """
    from xferkit.report.html import render_page

    loaded = _named_apart([load_run(Path(run)) for run in runs])
    folder = loaded[0].path if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot use {folder} as the folder of the report: {error.strerror or error}"
        ) from error
    page = render_page(
        "run.html",
        title=loaded[0].title if len(loaded) == 1 else f"{len(loaded)} runs",
        lead=_lead(loaded),
        warnings=[warning for run in loaded for warning in run.warnings],
        sets=score_sections(loaded),
        runs=[run_section(run) for run in loaded],
    )
    write_atomic(folder / "report.csv", _csv(loaded))
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def _named_apart(runs: list[LoadedRun]) -> list[LoadedRun]:
    """Runs by the name of their folder, or by its whole path where two share it."""
    names = [run.name for run in runs]
    if len({run.path.resolve() for run in runs}) != len(runs):
        raise ValueError("a run is named twice; expected each once")
    return [run if names.count(run.name) == 1 else run.renamed(str(run.path)) for run in runs]


def _lead(runs: Sequence[LoadedRun]) -> str:
    seeds = sorted({seed for run in runs for seed in run.results})
    methods = dict.fromkeys(run.method for run in runs)
    listed = ", ".join(str(seed) for seed in seeds)
    return f"{', '.join(methods)}; seed{'s' if len(seeds) != 1 else ''} {listed}."


def _csv(runs: Sequence[LoadedRun]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = [
        "run",
        "method",
        "set",
        "language",
        "seed",
        "score_name",
        "score",
        "accuracy",
        "macro_f1",
        "texts",
    ]
    writer.writerow([*header, "steps", "selected_step", "seconds"])
    for run in runs:
        for seed, result in run.results.items():
            for role, sets in (("dev", result.dev), ("test", result.test)):
                for language, s in sets.items():
                    row: list[Any] = [run.name, run.method, role, language, seed, s["name"], s["score"]]
                    row += [s["accuracy"], s["macro_f1"], s["texts"], result.steps]
                    writer.writerow([*row, result.selected_step, f"{result.seconds:.1f}"])
    return text.getvalue()
