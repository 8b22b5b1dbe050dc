"""The demo's files, all from one :class:`Run`: report.html, results.json, two CSV tables and PNGs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from xferkit.demo import figures, similarity_figures
from xferkit.demo.page import language_names, report_html
from xferkit.demo.result import Run
from xferkit.demo.similarity import SimilaritySummary
from xferkit.demo.tables import cells_csv, results_json, summary_csv
from xferkit.report.files import write_atomic

__all__ = ["write_report"]


def write_report(run: Run, out: Path, note: Callable[[str], None] = lambda text: None) -> Path:
    """Write all files of `run` into `out` and return the path of report.html, which comes last.

    PNGs need matplotlib; without it they are left out and `note` is told.

    Raises:
        OSError: `out` cannot be written.
    """
    names = language_names(run.data.languages)
    results = json.dumps(results_json(run, names), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(out / "results.json", results + "\n")
    write_atomic(out / "cells.csv", cells_csv(run))
    write_atomic(out / "summary.csv", summary_csv(run))
    if importlib.util.find_spec("matplotlib") is None:
        note("matplotlib is not installed, so no PNGs are written; run: pip install 'xfercore[demo]'")
    else:
        _write_pngs(run, names, out)
    page = out / "report.html"
    write_atomic(page, report_html(run))
    return page


def _write_pngs(run: Run, names: dict[str, str], out: Path) -> None:
    from xferkit.report.png import bar_panels_png, difference_png

    for summary in run.summaries:
        language, code = names[summary.target], summary.target
        seeds = f"{summary.seeds} seed{'s' if summary.seeds != 1 else ''}"
        title = f"{language} without labels, {len(summary.sources)} sources ({seeds}, 95 % t-intervals)"
        write_atomic(out / f"scores-{code}.png", bar_panels_png(title, *figures.score_figure(summary)))
        rows = figures.difference_rows(summary)
        if rows:
            title = f"{language}: accuracy against pooled, points [95 % t-interval]"
            ticks = figures.difference_ticks(rows)
            write_atomic(out / f"differences-{code}.png", difference_png(title, rows, ticks))
        gates = figures.gate_figure(summary, names)
        if gates:
            title = f"Weight of each source on {language} names, %"
            write_atomic(out / f"gates-{code}.png", bar_panels_png(title, *gates))
    if run.similarity is not None:
        _write_similarity_pngs(run.similarity, names, out)
    first = run.summaries[0]
    title = f"{names[first.target]} without labels: what {len(first.sources)} other languages teach"
    write_atomic(out / "summary.png", bar_panels_png(title, *figures.summary_figure(first)))


def _write_similarity_pngs(summary: SimilaritySummary, names: dict[str, str], out: Path) -> None:
    from xferkit.report.curves_png import curve_panels_png
    from xferkit.report.dots import dot_panels_png
    from xferkit.report.similarity_map import similarity_maps_png

    seeds = f"{summary.seeds} seed{'s' if summary.seeds != 1 else ''}"
    title = f"Cosines of the gradients of {len(summary.languages)} languages ({seeds})"
    maps = similarity_figures.similarity_maps(summary, names)
    write_atomic(out / "gradients.png", similarity_maps_png(title, maps))
    panels = similarity_figures.course_panels(summary)
    write_atomic(out / "gradients-course.png", curve_panels_png("Mean cosines over the training", panels))
    labels, dots = similarity_figures.layer_figure(summary)
    png = dot_panels_png(
        "Mean cosines of each layer (95 % t-intervals)",
        labels,
        similarity_figures.SERIES,
        dots,
        ticks=similarity_figures.COSINE_TICKS,
    )
    write_atomic(out / "gradients-layers.png", png)
