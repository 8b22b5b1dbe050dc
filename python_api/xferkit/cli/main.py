"""``xferkit`` and ``python -m xferkit``: the commands and their options; what they do loads when it is asked for."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from xferkit.cli.errors import BAD_INPUT, as_terminated, guarded

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Answers bad arguments in one sentence; the usage is a ``--help`` away."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _number(least: int, what: str):  # type: ignore[no-untyped-def]
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected {what}, {least} or more, got {text!r}")
        return number

    return convert


def _parser() -> tuple[_Parser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="xferkit",
        description="Models, trainers and reports for transfer and multi-task learning.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_report(commands)
    _add_table(commands)
    _add_study(commands)
    _add_diagnose(commands)
    _add_diff(commands)
    _add_doctor(commands)
    _add_demo(commands)
    return parser, dict(commands.choices)


_Commands = argparse._SubParsersAction  # the type has no public name


def _add(commands: _Commands, name: str, short: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=short, description=description)
    return parser


def _add_train(commands: _Commands) -> None:
    train = _add(
        commands,
        "train",
        "train a method on your own files",
        "Trains METHOD on labelled files of source languages and unlabelled text of a target language, once a "
        "seed, and tests it. The same command goes on where a stopped one was. Every setting has a default "
        "that fits the data; `xferkit train METHOD --help` lists all of them.",
    )
    train.add_argument("method", metavar="METHOD", nargs="?", help="man-moe, man, moe, pooled, ...")
    files = {
        "train": "labelled files of the source languages",
        "unlabelled": "text of the target language (labels in it are not read), and more text of sources",
        "dev": "labelled files for choosing weights (default: a tenth of each source's training file)",
        "test": "labelled files to test on, at the end and once",
    }
    for name, text in files.items():
        train.add_argument(f"--{name}", nargs="+", metavar="LANG=FILE", help=text)
    train.add_argument(
        "--task", metavar="TASK", help="tagging or classification (default: seen from the files)"
    )
    train.add_argument("--format", metavar="FORMAT", help="tsv, csv, jsonl, conll, ... (default: seen)")
    train.add_argument("--seeds", nargs="+", metavar="N", help="one training each (default: 1)")
    train.add_argument("--steps", metavar="N", help="training steps (default: from the size of the data)")
    train.add_argument("--select", metavar="WHAT", help="source_dev (default), target_dev or last")
    train.add_argument("--workers", metavar="N", help="seeds trained at once, one thread each (default: 0)")
    train.add_argument("--out", metavar="DIR", help="folder of the run")
    train.add_argument(
        "--config", metavar="FILE", help="settings from a YAML file; options here go before it"
    )
    train.add_argument("--print_config", action="store_true", help="print all settings as YAML and stop")


def _add_evaluate(commands: _Commands) -> None:
    evaluate = _add(
        commands,
        "evaluate",
        "score a trained model on labelled files",
        "Accuracy, scores per label and, for BIO tags, span F1 of a saved model on labelled files.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="folder of a model, or of a run with one seed")
    evaluate.add_argument("files", nargs="+", metavar="[LANG=]FILE", help="labelled files")
    _add_reading(evaluate)
    evaluate.add_argument(
        "--unknown_labels",
        choices=("error", "count"),
        default="error",
        help="labels that the model does not have: an error (default), or counted as missed",
    )
    evaluate.add_argument(
        "--scheme", choices=("conlleval", "strict"), default="conlleval", help="of BIO spans"
    )
    evaluate.add_argument("--json", metavar="FILE", help="write all scores as JSON ('-': to stdout)")


def _add_predict(commands: _Commands) -> None:
    predict = _add(
        commands,
        "predict",
        "label text with a trained model",
        "Labels any number of lines in constant memory, in their order: files or stdin to stdout or a file.",
    )
    predict.add_argument("model", metavar="MODEL", help="folder of a model, or of a run with one seed")
    predict.add_argument(
        "files", nargs="*", default=["-"], metavar="FILE", help="text files, plain or .gz; - is stdin"
    )
    _add_reading(predict)
    predict.add_argument(
        "--to", choices=("text", "jsonl"), default="text", help="text: TSV or CoNLL lines (default)"
    )
    predict.add_argument("--out", metavar="FILE", help="write there (.gz: compressed) instead of to stdout")
    predict.add_argument("--overwrite", action="store_true", help="replace FILE where it is there already")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--language", metavar="LANG", help="of the files (default: the model's target language)"
    )
    _add_columns(parser, "text, label, tokens or tags = name or number of a column")
    parser.add_argument(
        "--format", metavar="FORMAT", default="auto", help="tsv, csv, jsonl, conll, ... (default: seen)"
    )
    parser.add_argument("--skip", action="store_true", help="leave out malformed rows and count them")
    parser.add_argument("--encoding", metavar="NAME", default="utf-8", help="of the files (default: utf-8)")
    parser.add_argument(
        "--batch_size", type=_number(1, "texts"), default=64, metavar="N", help="texts at once"
    )


def _add_columns(parser: argparse.ArgumentParser, names: str) -> None:
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME=COLUMN",
        default=[],
        help=f"what is where: {names}, counted from 0; header=true or header=false; delimiter=CHARACTER, such as "
        "'delimiter=;' (.csv)",
    )


def _add_report(commands: _Commands) -> None:
    report = _add(
        commands,
        "report",
        "one page about one or more runs",
        "Learning curves, scores with intervals and gate weights of runs, as one HTML page and a CSV table.",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    report.add_argument(
        "--out", metavar="DIR", help="where report.html goes (default: the first run's folder)"
    )
    report.add_argument("--open", action="store_true", help="open the page in the browser")


def _add_table(commands: _Commands) -> None:
    table = _add(
        commands,
        "table",
        "train and write the table of an experiment",
        "Trains every method, seed and language of a table's configuration and writes its page, figures and "
        "tables. A table that was stopped goes on where it was when started again.",
    )
    table.add_argument(
        "config",
        metavar="CONFIG",
        help="YAML file of the table, such as configs/man_moe/ud_pos.yaml or configs/surgery/ud_pos.yaml",
    )
    table.add_argument("--data", metavar="DIR", required=True, help="folder of the data")
    table.add_argument("--out", metavar="DIR", required=True, help="folder of the table and of finished runs")
    _add_running(table, "page")


def _add_study(commands: _Commands) -> None:
    study = _add(
        commands,
        "study",
        "which parameters do languages share?",
        "Trains a small masked language model of several languages, compares their gradients while it trains, and "
        "learns for each language which attention heads and hidden units it needs. A study that was stopped goes "
        "on where it was when started again.",
    )
    study.add_argument("kind", choices=("sharing",), metavar="KIND", help="what is studied: sharing")
    study.add_argument(
        "--config",
        metavar="FILE",
        required=True,
        help="YAML file of the study, such as configs/interference/small.yaml",
    )
    study.add_argument("--data", metavar="DIR", help="folder of the data (default: the variable XFER_DATA)")
    study.add_argument(
        "--out",
        metavar="DIR",
        default="sharing",
        help="folder of the report and of finished runs (default: sharing)",
    )
    _add_running(study, "report")


def _add_diagnose(commands: _Commands) -> None:
    diagnose = _add(
        commands,
        "diagnose",
        "which of my tasks help a target, which hurt, why, and what repairs it?",
        "Trains the target with and without the other tasks, compares the scores over seeds, measures causes and, with "
        "--try-fixes, tries remedies. Takes a configuration, or a folder of files: one task a file (books.tsv) or a "
        "few (books-train.tsv, books-test.tsv), with columns text and label. A diagnosis that was stopped goes on "
        "where it was when started again.",
    )
    diagnose.add_argument(
        "config", nargs="?", metavar="CONFIG", help="YAML file, such as configs/diagnose/cldr.yaml"
    )
    diagnose.add_argument(
        "--data", metavar="DIR", help="folder of the data (default: the variable XFER_DATA)"
    )
    diagnose.add_argument("--target", metavar="TASK", help="the task in question")
    _add_columns(diagnose, "text or label = name or number of a column")
    diagnose.add_argument("--encoding", metavar="NAME", help="of the files of texts (default: utf-8)")
    diagnose.add_argument(
        "--budget",
        choices=("quick", "pairs", "full"),
        help="quick (default): groups of sources by their gradients; pairs: single sources; full: everything",
    )
    diagnose.add_argument(
        "--metric",
        choices=("accuracy", "macro_f1"),
        help="the score: share of right answers (default), or the mean over classes of F1",
    )
    diagnose.add_argument("--seeds", type=_number(1, "a number of seeds"), metavar="N", help="default: 5")
    diagnose.add_argument(
        "--try-fixes", action="store_true", help="try remedies and measure the best one anew"
    )
    diagnose.add_argument("--yes", action="store_true", help="do not ask before more than an hour")
    diagnose.add_argument(
        "--out",
        metavar="DIR",
        default="diagnosis",
        help="folder of the report and of finished runs (default: diagnosis)",
    )
    _add_running(diagnose, "page")


def _add_diff(commands: _Commands) -> None:
    diff = _add(
        commands,
        "diff",
        "compare two diagnoses",
        "Which gains and verdicts differ between two reports of xferkit diagnose.",
    )
    diff.add_argument("before", metavar="A", help="folder of a diagnosis, or its report.json")
    diff.add_argument("after", metavar="B", help="another one")


def _add_running(parser: argparse.ArgumentParser, page: str) -> None:
    """What every command has that trains on several processes and ends with a page."""
    parser.add_argument(
        "--workers",
        type=_number(0, "a number of processes"),
        metavar="N",
        help="processes of one thread each (default: one a core; 0: none)",
    )
    parser.add_argument("--open", action="store_true", help=f"open the {page} in the browser at the end")


def _add_doctor(commands: _Commands) -> None:
    doctor = _add(
        commands,
        "doctor",
        "examine this installation",
        "Versions, which kernel each op will use and why, and a self-test of each op; exit code 1 when something "
        "is broken.",
    )
    doctor.add_argument("--folder", metavar="DIR", help="look at the disk of this folder (default: here)")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_demo(commands: _Commands) -> None:
    demo = _add(
        commands,
        "demo",
        "train the demo and write its report",
        "Which other languages help a language without labels? Trains eight methods on names of "
        "CLDR and writes a report. A demo that was stopped goes on where it was when started again.",
    )
    demo.add_argument("--out", metavar="DIR", required=True, help="folder of the report and of finished runs")
    demo.add_argument(
        "--preset",
        choices=("small", "full"),
        default="full",
        help="full: the experiment, minutes (default); small: shows within a minute that everything runs",
    )
    _add_running(demo, "report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (failed), 2 (bad input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Its options come from the settings of the method; the short list is for the help alone.
    if words[:1] == ["train"] and words[1:] not in ([], ["-h"], ["--help"]):
        return _run("train", words[1:])
    parser, commands = _parser()
    if not words or words[0] not in commands:
        parser.parse_args(words)  # prints the help or ends with an error
    name = words[0]
    # Intermixed: `predict MODEL --to jsonl FILE` has its options in the middle.
    arguments, unknown = commands[name].parse_known_intermixed_args(words[1:])
    if unknown:
        _refuse(commands[name], unknown[0])
    if name == "train":
        commands[name].error("a METHOD or a --config is missing")
    return _run(name, arguments)


def _run(name: str, arguments: object) -> int:
    def command() -> int:
        from xferkit.cli import commands

        code: int = getattr(commands, name)(arguments)
        return code

    with contextlib.suppress(
        ValueError
    ):  # only the main thread can; elsewhere somebody else ends the process
        signal.signal(signal.SIGTERM, as_terminated)
    return guarded(f"xferkit {name}", command)


def _refuse(parser: argparse.ArgumentParser, word: str) -> NoReturn:
    option = word.split("=", 1)[0]
    if not option.startswith("-"):
        parser.error(f"unexpected argument {word!r}")
    import difflib

    known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
    parser.error(f"unknown option {option}" + (f"; the nearest is {near[0]}" if near else ""))
