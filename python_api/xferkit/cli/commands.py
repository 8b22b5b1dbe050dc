"""The commands: read arguments, call the package, print what came out."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xferkit.cli.console import heading, note, show_table, warn
from xferkit.cli.errors import FAILED

if TYPE_CHECKING:
    from xferkit.runs.config import PairRunConfig
    from xferkit.transfer import Estimate

__all__ = ["demo", "diagnose", "diff", "doctor", "evaluate", "predict", "report", "study", "table", "train"]


def train(words: Sequence[str]) -> int:
    """``xferkit train``: the run, then its scores over seeds."""
    from xferkit.cli.options import parse_train
    from xferkit.cli.progress import reading_bars

    values = parse_train(words)
    if values is None:
        return 0
    from xferkit.runs import make_run_config, run_training

    config = make_run_config(values)
    if config.out is None:
        raise ValueError("--out is missing; expected the folder that the run goes to, --out DIR")
    from xferkit.runs.config import PairRunConfig

    if isinstance(config, PairRunConfig):
        return _train_pairs(config)
    with reading_bars() as watch:
        result = run_training(config, say=note, warn=warn, watch=watch)
    if int(os.environ.get("RANK", "0")) > 0:
        return 0
    header = ["set", "score", "mean", "sd", "95 % interval", "most frequent label", "seeds"]
    rows = []
    for s in result.summaries:
        interval = f"{_percent(s.interval.low)} to {_percent(s.interval.high)}"
        figures = [_percent(s.interval.mean), _percent(s.sd), interval if s.interval.n > 1 else "-"]
        rows.append([f"{s.role} {s.language}", s.name, *figures, _percent(s.majority), str(s.interval.n)])
    show_table(header, rows, numbers=5)
    model = Path(config.out) / f"seed-{next(iter(result.seeds))}" / "model"
    note(f"The run is in {config.out}; next: xferkit report {config.out}, or xferkit predict {model} FILE")
    return 0


def _train_pairs(config: PairRunConfig) -> int:
    from xferkit.cli.progress import reading_bars
    from xferkit.runs.pairs.training import run_pair_training

    with reading_bars() as watch:
        result = run_pair_training(config, say=note, warn=warn, watch=watch)
    rows = []
    for s in result.summaries:
        interval = f"{_percent(s.interval.low)} to {_percent(s.interval.high)}" if s.interval.n > 1 else "-"
        others = ["-" if value is None else _percent(value) for value in (s.words, s.grams)]
        figures = [_percent(s.interval.mean), interval, _percent(s.mrr), *others]
        rows.append([f"{s.role} {s.name}", *figures, f"{s.texts:,}", str(s.interval.n)])
    header = ["set", "P@1", "95 % interval", "MRR", "shared words", "shared n-grams", "texts", "seeds"]
    show_table(header, rows, numbers=7)
    note(f"The run is in {result.out}; its models are read by xferkit.runs.pairs.model.TextEncoder.")
    return 0


def evaluate(arguments: Namespace) -> int:
    """``xferkit evaluate``: a line for each file, then its labels or span types."""
    from xferkit.cli.files import columns_of, named_file
    from xferkit.cli.progress import reading_bars

    files = [named_file(word) for word in arguments.files]
    columns = columns_of(arguments.columns)
    from xferkit.runs.evaluation import evaluate_model
    from xferkit.runs.models import load_model

    model = load_model(arguments.model)
    found = []
    with reading_bars() as watch:
        for language, path in files:
            scores = evaluate_model(
                model,
                path,
                language=language or arguments.language,
                format=arguments.format,
                mode="skip" if arguments.skip else "strict",
                columns=columns,
                encoding=arguments.encoding,
                count_unknown=arguments.unknown_labels == "count",
                scheme=arguments.scheme,
                batch_size=arguments.batch_size,
                watch=watch,
            )
            if scores.report.rejected:
                warn(f"{scores.report.summary()}.")
            if scores.unknown_labels:
                warn(f"{path}: labels that the model does not have: {', '.join(scores.unknown_labels[:10])}.")
            found.append(scores)
    if arguments.json:
        content = {
            "model": arguments.model,
            "files": [
                {
                    "path": f.path,
                    "language": f.language,
                    **f.scores.to_json(),
                    "unknown_labels": list(f.unknown_labels),
                    "rows": {"in": f.report.rows_in, "out": f.report.rows_out, "rejected": f.report.rejected},
                }
                for f in found
            ],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if arguments.json == "-":
            print(text, end="")
            return 0
        from xferkit.files import write_atomic

        write_atomic(Path(arguments.json), text)
    header = ["file", "score", "%", "accuracy", "macro-F1", "most frequent", "texts"]
    rows = []
    for f in found:
        s = f.scores
        figures = [_percent(value) for value in (s.score, s.accuracy, s.macro_f1, s.majority)]
        rows.append([f.path, s.name, *figures, str(s.texts)])
    show_table(header, rows, numbers=5)
    for f in found:
        table = f.scores.spans or f.scores.labels
        heading(f"\n{f.path}: by {'span type' if f.scores.spans else 'label'}")
        rows = [
            [name, _percent(v.precision), _percent(v.recall), _percent(v.f1), str(v.support)]
            for name, v in sorted(table.items(), key=lambda item: -item[1].support)
        ]
        if f.scores.all_spans is not None:
            v = f.scores.all_spans
            total = [_percent(v.precision), _percent(v.recall), _percent(v.f1), str(v.support)]
            rows.append(["all spans", *total])
        show_table(["", "precision", "recall", "F1", "support"], rows, numbers=4)
    return 0


def predict(arguments: Namespace) -> int:
    """``xferkit predict``: answers to stdout or a file, sentences to stderr."""
    from xferkit.cli.files import columns_of
    from xferkit.cli.progress import counting_bar

    files = tuple(arguments.files)
    if files.count("-") > 1:
        raise ValueError("- (the standard input) is named twice; expected once")
    for name in files:
        if name != "-" and not os.path.exists(name):
            raise ValueError(f"{name} does not exist; expected a file, or - for the standard input")
    if arguments.out is not None and os.path.exists(arguments.out) and not arguments.overwrite:
        raise ValueError(f"{arguments.out} is there already; expected a free name, or --overwrite")
    columns = columns_of(arguments.columns)
    from xferkit.runs.models import load_model
    from xferkit.runs.prediction import PredictionJob, open_output, predict_files

    job = PredictionJob(
        files,
        language=arguments.language,
        format=arguments.format,
        mode="skip" if arguments.skip else "strict",
        columns=columns,
        encoding=arguments.encoding,
        to=arguments.to,
        batch_size=arguments.batch_size,
    )
    model = load_model(arguments.model)
    with open_output(arguments.out, overwrite=arguments.overwrite) as output, counting_bar() as done:
        reports = predict_files(model, job, output, done=done)
    for report in reports:
        if report.rejected:
            warn(f"{report.summary()}.")
    return 0


def report(arguments: Namespace) -> int:
    """``xferkit report``."""
    from xferkit.runs.page import write_run_report

    page = write_run_report(arguments.runs, arguments.out)
    print(f"The report is {page}")
    if arguments.open:
        _open(page)
    return 0


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def doctor(arguments: Namespace) -> int:
    """``xferkit doctor``: the findings section by section, then what is broken."""
    from dataclasses import asdict

    from xferkit.runs.doctor import examine

    folder = Path(arguments.folder) if arguments.folder else None
    findings, section = [], ""
    for finding in examine(folder):
        findings.append(finding)
        if not arguments.json:
            if finding.section != section:
                section = finding.section
                heading(section)
            mark = "BROKEN " if finding.problem else ""
            print(f"  {finding.name}: {mark}{finding.value}", flush=True)
    broken = [finding.problem for finding in findings if finding.problem]
    if arguments.json:
        print(json.dumps({"broken": broken, "findings": [asdict(f) for f in findings]}, indent=1))
    for problem in broken:
        print(f"xferkit doctor: {problem}", file=sys.stderr)
    if not broken and not arguments.json:
        print("Everything is in order.")
    return FAILED if broken else 0


def demo(arguments: Namespace) -> int:
    """``xferkit demo``."""
    from xferkit.demo import run_demo

    with _kept(arguments.out):
        page = run_demo(arguments.out, arguments.preset, arguments.workers)
    print(f"The report is {page}")
    if arguments.open:
        _open(page)
    return 0


def table(arguments: Namespace) -> int:
    """``xferkit table``."""
    from xferkit.experiments.tables.run import run_table

    with _kept(arguments.out):
        page = run_table(arguments.config, arguments.data, arguments.out, arguments.workers)
    print(f"The table is {page}")
    if arguments.open:
        _open(page)
    return 0


def study(arguments: Namespace) -> int:
    """``xferkit study sharing``."""
    from xferkit.experiments.sharing.study import run_sharing_study

    data = arguments.data or os.environ.get("XFER_DATA")
    if not data:
        raise ValueError("--data is missing; expected the folder of the data, or the variable XFER_DATA")
    with _kept(arguments.out):
        page = run_sharing_study(arguments.config, data, arguments.out, arguments.workers)
    print(f"The report is {page}")
    if arguments.open:
        _open(page)
    return 0


def diagnose(arguments: Namespace) -> int:
    """``xferkit diagnose``: by a configuration, or on a folder without one."""
    from xferkit.cli.files import TEXT_COLUMNS, columns_of, config_of
    from xferkit.diagnosis.config import DiagnosisConfig, diagnosis_config
    from xferkit.diagnosis.pipeline import run_diagnosis

    changed: dict[str, object] = {}
    for name in ("target", "budget", "metric"):
        if getattr(arguments, name) is not None:
            changed[name] = getattr(arguments, name)
    if arguments.seeds is not None:
        changed["seeds"] = tuple(range(1, arguments.seeds + 1))
    if arguments.try_fixes:
        changed["try_fixes"] = True
    data = arguments.data or os.environ.get("XFER_DATA")
    reading = {"columns": columns_of(arguments.columns, TEXT_COLUMNS), "encoding": arguments.encoding}
    reading = {name: value for name, value in reading.items() if value is not None}
    if arguments.config is not None:
        config = diagnosis_config(config_of(arguments.config), changed)
    elif not data:
        raise ValueError("expected a CONFIG, or --data DIR with --target TASK")
    elif arguments.target is None:
        raise ValueError("--target is missing; expected the name of the task in question")
    else:
        config = DiagnosisConfig(**changed)  # type: ignore[arg-type]
    if reading:
        if config.problem != "texts":
            named = f"--{next(iter(reading))}"
            raise ValueError(f"{named} is for texts; {arguments.config} is of the problem {config.problem!r}")
        config = replace(config, options={**config.options, **reading})
    with _kept(arguments.out):
        page = run_diagnosis(
            config,
            Path(arguments.out),
            data=data,
            workers=arguments.workers,
            confirm=None if arguments.yes else _confirm,
            say=note,
        )
    print(f"The report is {page}")
    if arguments.open:
        _open(page)
    return 0


def _confirm(estimate: Estimate) -> bool:
    runs = f"{estimate.runs_left} run{' is' if estimate.runs_left == 1 else 's are'}"
    left = f"{runs} left, about {estimate.seconds_left / 3600:.1f} hours"
    if not sys.stdin.isatty():
        raise ValueError(f"{left}; expected --yes to go on, or a smaller --budget or --seeds")
    return input(f"{left}. Go on? [y/N] ").strip().lower() in ("y", "yes")


def diff(arguments: Namespace) -> int:
    """``xferkit diff``: what the reports differ in beside their gains, then a line for each comparison."""
    from xferkit.diagnosis.diff import diff_reports

    found = diff_reports(arguments.before, arguments.after)
    for sentence in found.differences:
        print(sentence)
    rows = []
    for change in found.changes:
        gains = [_points(change.before), _points(change.after)]
        overlap = {True: "overlap", False: "do not overlap", None: "-"}[change.overlap]
        rows.append([change.name, *gains, *(v or "-" for v in change.verdicts), overlap])
    if rows:
        header = ["comparison", "gain before", "after", "verdict before", "after", "intervals"]
        show_table(header, rows, numbers=2)
    print(found.summary)
    return 0


def _points(gain: float | None) -> str:
    return "-" if gain is None else f"{100 * gain:+.1f}"


@contextlib.contextmanager
def _kept(out: str) -> Iterator[None]:
    """Say to whoever stops an experiment that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        kept = os.path.join(out, "cells")
        note(f"\nFinished runs are kept in {kept}; the same command goes on from there.")
        raise


def _open(page: Path) -> None:
    import webbrowser

    webbrowser.open(page.resolve().as_uri())
