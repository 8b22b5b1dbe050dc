"""``xferkit`` and ``python -m xferkit``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]

_BAD_INPUT, _FAILED, _INTERRUPTED = 2, 1, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One sentence; the usage is a `--help` away.
        self.exit(_BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _workers(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a number of processes, 0 or more, got {text!r}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="xferkit", description="Models, trainers and reports for transfer and multi-task learning."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="train the demo and write its report",
        description="Which other languages help a language without labels? Trains eight methods on names of "
        "CLDR and writes a report. A demo that was stopped goes on where it was when started again.",
    )
    demo.add_argument("--out", metavar="DIR", required=True, help="folder of the report and of finished runs")
    demo.add_argument(
        "--preset",
        choices=("small", "full"),
        default="full",
        help="full: the experiment, minutes (default); small: shows within a minute that everything runs",
    )
    demo.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes of one thread each (default: one a core; 0: none)",
    )
    demo.add_argument("--open", action="store_true", help="open the report in the browser at the end")
    demo.set_defaults(run=_demo)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (failed), 2 (bad input) or 130 (Ctrl-C)."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _demo(arguments: argparse.Namespace) -> int:
    # Imported here, so that --help does not wait for scipy and jinja2.
    from xferkit.demo import DemoError, run_demo

    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        page = run_demo(arguments.out, arguments.preset, arguments.workers)
    except ValueError as error:
        print(f"xferkit demo: {error}", file=sys.stderr)
        return _BAD_INPUT
    except DemoError as error:
        print(f"{error.details}xferkit demo: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print(
            f"\nStopped. Finished runs are kept in {os.path.join(arguments.out, 'cells')}; "
            "the same command goes on from there.",
            file=sys.stderr,
        )
        return _INTERRUPTED
    print(f"The report is {page}")
    if arguments.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def _as_interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
