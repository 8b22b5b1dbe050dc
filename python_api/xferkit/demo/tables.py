"""The demo's figures for programs: results.json with everything, and two CSV tables."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from xferkit.demo.result import Run
from xferkit.demo.sentences import three_sentences
from xferkit.demo.similarity import Means, SimilaritySummary, similarity_sentences
from xferkit.metrics import interval_record, verdict

__all__ = ["cells_csv", "results_json", "summary_csv"]


def results_json(run: Run, names: dict[str, str]) -> dict[str, Any]:
    """Everything the page shows and every run, as plain JSON values; `names` are languages in English."""
    targets = {}
    for summary in run.summaries:
        targets[summary.target] = {
            "sentences": three_sentences(summary, names),
            "sources": summary.sources,
            "same_convention": summary.same_convention,
            "majority_rate": summary.majority,
            "num_test": summary.num_test,
            "binomial_error": summary.test_error,
            "methods": {
                method.name: {
                    "accuracy": interval_record(method.accuracy),
                    "macro_f1": interval_record(method.macro_f1),
                    "accuracy_against_pooled": interval_record(method.accuracy_gain),
                    "accuracy_verdict": method.accuracy_verdict,
                    "macro_f1_against_pooled": interval_record(method.macro_f1_gain),
                    "macro_f1_verdict": method.macro_f1_verdict,
                    "seconds": method.seconds,
                    "gate": method.gate,
                    "gate_share_same_convention": summary.gate_share(method.name),
                }
                for method in summary.methods
            },
            "lowercase_control": {
                control.name: {
                    "as_written": interval_record(control.written),
                    "lower_cased": interval_record(control.lower),
                    "lower_cased_less_as_written": interval_record(control.shift),
                    "gain_as_written": interval_record(control.written_gain),
                    "gain_lower_cased": interval_record(control.lower_gain),
                    "change": interval_record(control.change),
                    "change_verdict": control.change and verdict(control.change),
                }
                for control in summary.controls
            },
        }
    return {
        "format": 1,
        "date": run.date,
        "preset": asdict(run.preset),
        "interval": "Student t over seeds, 95 %",
        "data_sha256": run.data.fingerprint(),
        "environment": dict(run.environment),
        "workers": run.workers,
        "wall_seconds": run.wall_seconds,
        "runs_reused": run.reused,
        "targets": targets,
        "gradients": run.similarity and _similarity(run.similarity, names),
        "cells": [{**asdict(spec), **asdict(outcome)} for spec, outcome in run.records.items()],
    }


def _similarity(summary: SimilaritySummary, names: dict[str, str]) -> dict[str, Any]:
    def means(found: Means | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {name: interval_record(getattr(found, name)) for name in ("within", "across", "gap")}

    def course(rows: tuple[tuple[int, float, float], ...]) -> list[dict[str, Any]]:
        return [{"step": step, "within": _known(a), "across": _known(b)} for step, a, b in rows]

    return {
        "sentences": similarity_sentences(summary, names),
        "languages": summary.languages,
        "conventions": dict(zip(summary.languages, summary.families, strict=True)),
        "seeds": summary.seeds,
        "steps": summary.focus,
        "cosines": [[_known(value) for value in row] for row in summary.matrix],
        "order_by_clustering": [summary.languages[n] for n in summary.by_clustering],
        "strays": summary.strays,
        "as_written": means(summary.written),
        "lower_cased": means(summary.lower),
        "change_of_gap": interval_record(summary.change),
        "by_number_of_names": {
            "training batch" if size == 0 else str(size): means(found)
            for size, found in summary.samples.items()
        },
        "by_layer": {
            name: {"as_written": means(written), "lower_cased": means(lower)}
            for name, (written, lower) in summary.layers.items()
        },
        "course_as_written": course(summary.course),
        "course_lower_cased": course(summary.lower_course),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def cells_csv(run: Run) -> str:
    """One line a run."""
    header = ["target", "method", "seed", "lowercase", "steps", "sources", "accuracy", "macro_f1", "seconds"]
    rows: list[list[Any]] = []
    for s, o in run.records.items():
        settings = [s.target, s.method, s.seed, int(s.lowercase), s.steps, " ".join(s.sources)]
        rows.append([*settings, o.accuracy, o.macro_f1, o.seconds])
    return _csv(header, rows)


def summary_csv(run: Run) -> str:
    """One line a target and method: means, ends of intervals, seconds."""
    header = ["target", "method", "seeds"]
    for score in ("accuracy", "macro_f1", "accuracy_against_pooled", "macro_f1_against_pooled"):
        header += [score, f"{score}_low", f"{score}_high"]
    rows = []
    for summary in run.summaries:
        for m in summary.methods:
            row: list[Any] = [summary.target, m.name, summary.seeds]
            for interval in (m.accuracy, m.macro_f1, m.accuracy_gain, m.macro_f1_gain):
                values = interval_record(interval) or {"mean": "", "low": "", "high": ""}
                row += [values["mean"], values["low"], values["high"]]
            rows.append([*row, m.seconds])
    return _csv([*header, "seconds"], rows)
