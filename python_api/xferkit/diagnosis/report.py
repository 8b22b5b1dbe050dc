"""The report of a diagnosis: one page, JSON with everything, tables for a paper."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from xferkit.diagnosis.figures import conflict_curves, conflict_maps, cosine_map, matrix_plot
from xferkit.diagnosis.fixes import FixRace
from xferkit.diagnosis.pipeline import FEW_EXAMPLES, DiagnosisReport
from xferkit.diagnosis.problem import metric_name
from xferkit.diagnosis.why import ELSEWHERE
from xferkit.metrics import interval_record
from xferkit.report.files import write_atomic
from xferkit.report.format import duration, percent
from xferkit.report.html import render_page
from xferkit.runs.environment import hardware, source_commit, versions
from xferkit.runs.schema import plain
from xferkit.transfer import Verdict

__all__ = ["found_causes", "report_json", "write_report"]


def write_report(report: DiagnosisReport, folder: Path) -> Path:
    """Write report.html, report.json, matrix.csv, matrix.tex and matrix.md; return the page."""
    content = report_json(report)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    write_atomic(folder / "report.json", text)
    write_atomic(folder / "matrix.csv", report.matrix.to_csv())
    write_atomic(folder / "matrix.tex", report.matrix.to_latex())
    write_atomic(folder / "matrix.md", report.matrix.table("markdown"))
    page = folder / "report.html"
    write_atomic(page, _html(report, content))
    return page


def report_json(report: DiagnosisReport) -> dict[str, Any]:
    """Everything as plain values."""
    problem = report.problem
    return {
        "format": 1,
        "title": report.config.title,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "target": problem.target,
        "tasks": list(problem.tasks),
        "labelled_target": problem.target in problem.tasks,
        "metric": problem.metric,
        "higher_is_better": problem.higher_is_better,
        "part": "dev",
        "sizes": problem.sizes(),
        "gradient_cosines": report.cosines,
        "other_scores": [
            {name: interval_record(interval) for name, interval in row.items()} for row in report.other_scores
        ],
        "groups": {name: list(members) for name, members in report.groups.items()},
        "matrix": json.loads(report.matrix.to_json()),
        "causes": {name or "all tasks": causes.to_json() for name, causes in report.causes.items()},
        "fixes": None if report.race is None else _race_json(report.race),
        "sentences": _sentences(report),
        "settings": {**plain(report.config), "problem": problem.settings()},
        "facts": {**report.facts, "commit": source_commit(), **hardware(), **versions()},
    }


def _race_json(found: FixRace) -> dict[str, Any]:
    return {
        "tried": [
            {
                "name": t.fix.name,
                "kind": t.fix.kind,
                "scores": t.scores,
                "rounds": t.rounds,
                "problem": t.problem,
            }
            for t in found.tried
        ],
        "winner": {**asdict(found.winner)},
        "fresh_seeds": found.seeds,
        "plain_sum": found.plain,
        "won": found.won,
        "alone": found.alone,
        "alone_gain": interval_record(found.alone_gain),
        "gain": interval_record(found.gain),
        "p": found.judged.p,
        "other_scores": {name: {"plain_sum": plain, "won": won} for name, (plain, won) in found.also.items()},
        "verdict": found.verdict.value,
        "sentence": found.sentence,
    }


def found_causes(report: DiagnosisReport) -> list[str]:
    """Sentences of all causes that were found, by group."""
    return [
        f"{name}: {cause.sentence()}" if name else cause.sentence()
        for name, causes in report.causes.items()
        for cause in causes.found
    ]


def _sentences(report: DiagnosisReport) -> list[str]:
    """The answer: what hurts or helps, the strongest cause of what does not help, and what repairs it."""
    found = list(report.matrix.sentences[:5])
    helping = [set(c.sources) for c in report.matrix.cells if c.verdict is Verdict.HELPS]
    for name, causes in report.causes.items():
        if causes.found and (not name or set(report.groups[name]) not in helping):
            found.append(f"{name}: {causes.found[0].sentence()}" if name else causes.found[0].sentence())
    if report.race is not None:
        found.append(report.race.sentence)
    return found


def _html(report: DiagnosisReport, content: dict[str, Any]) -> str:
    problem, matrix = report.problem, report.matrix
    return render_page(
        "diagnosis.html",
        title=report.config.title,
        target=problem.target,
        tasks=problem.tasks,
        metric=metric_name(problem.metric),
        named=metric_name,
        labelled=problem.target in problem.tasks,
        description=problem.describe(),
        sentences=content["sentences"],
        matrix_svg=matrix_plot(report),
        cells=matrix.cells,
        scores=list(zip(matrix.scores, report.other_scores, strict=True)),
        others=list(report.other_scores[0]) if report.other_scores else [],
        clusters=report.clusters,
        cluster_svg=cosine_map(report),
        conflict_curves=conflict_curves(report),
        conflict_maps=conflict_maps(report),
        groups=report.groups,
        causes=report.causes,
        elsewhere=[f"{ELSEWHERE}each group", f"{ELSEWHERE}all tasks together"],
        race=report.race,
        mean=fmean,
        sizes=problem.sizes(),
        notes=[*report.config.notes, *matrix.notes, *_notes(report)],
        facts=_facts(report, content),
        percent=percent,
    )


def _notes(report: DiagnosisReport) -> list[str]:
    config = report.config
    notes = [
        "The matrix is scored on development data, because remedies are chosen by it; test data was used for the "
        "final measurement of the winner alone."
        if report.race is not None
        else "The matrix is scored on development data; test data was not used.",
        "A flag of a cause says that something differs from its null beside sources that hurt or help: it is a sign "
        "and not a proof. Causes are measured one by one and not corrected for their number.",
    ]
    problem = report.problem
    dev = problem.sizes()[problem.target].get("dev", 0)
    if dev < FEW_EXAMPLES:
        notes.append(
            f"The development part of {problem.target} has {dev} examples: scores move in coarse steps, and "
            "intervals over seeds say nothing of other examples."
        )
    if problem.target not in problem.tasks and problem.target in report.cosines:
        notes.append(
            f"Gradients of {problem.target} are those of development examples, and masks are those of everybody's: the "
            "model was not trained on their labels."
        )
    notes += report.facts["repeated"]
    if config.budget == "quick":
        notes.append(
            "Sources were grouped by the cosine of their gradients and tested as groups: a source inside a group may "
            "do otherwise than its group (--budget pairs tests each), and one matching of compute was trained."
        )
    if report.race is None:
        notes.append("No remedy was tried (--try-fixes).")
    else:
        notes.append(
            f"{len(report.race.tried)} remedies raced on development data with {len(config.race_seeds)} seeds; only "
            "the winner was measured on test data."
        )
    return notes


def _facts(report: DiagnosisReport, content: dict[str, Any]) -> list[tuple[str, str]]:
    facts = report.facts
    where = f"{facts['workers']} workers of one thread" if facts["workers"] else "one process"
    return [
        ("Date", content["date"]),
        ("Time", f"{facts['runs']} runs, {facts['runs_reused']} from earlier starts; {duration(facts['wall_seconds'])} "
                 f"with {where}"),
        ("Data", f"{facts['data_folder']}SHA-256 {facts['conditions']['data'][:16]}"),
        ("Command", facts["command"]),
        ("Commit", source_commit() or "unknown"),
        *((name, str(value)) for name, value in {**hardware(), **versions()}.items()),
        *((name, str(value)) for name, value in plain(report.config).items()),
    ]  # fmt: skip
