"""Progress of an experiment's runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, TextIO, TypeVar

from xferkit.experiments.cells import Cell

__all__ = ["Progress", "RemainingTime", "make_progress"]

C = TypeVar("C", bound=Cell)
R = TypeVar("R")
C_in = TypeVar("C_in", bound=Cell, contravariant=True)
R_in = TypeVar("R_in", contravariant=True)


class Progress(Protocol[C_in, R_in]):
    """What an experiment tells while it runs."""

    def __enter__(self) -> Progress[C_in, R_in]:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing and leave the terminal as it was."""

    def note(self, text: str) -> None:
        """Show a sentence."""

    def started(self, cell: C_in) -> None:
        """A run was handed to a worker."""

    def finished(self, cell: C_in, outcome: R_in) -> None:
        """A run ended."""


class RemainingTime:
    """Estimate of the time left from how long runs of each method took so far.

    Args:
        cells: the runs to be done.
        workers: how many run at once.
    """

    def __init__(self, cells: Sequence[Cell], workers: int) -> None:
        """Nothing is known before the first run ended."""
        self._left: dict[str, int] = defaultdict(int)
        for cell in cells:
            self._left[cell.method] += 1
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._workers = max(1, workers)

    def finished(self, cell: Cell, seconds: float) -> None:
        """Count a run that took `seconds`."""
        self._left[cell.method] -= 1
        self._seen[cell.method].append(seconds)

    def seconds(self) -> float | None:
        """Seconds left; None before the first run ended. A method not seen yet counts as the mean run."""
        all_seen = [value for values in self._seen.values() for value in values]
        if not all_seen:
            return None
        mean = sum(all_seen) / len(all_seen)
        total = 0.0
        for method, count in self._left.items():
            seen = self._seen.get(method)
            total += count * (sum(seen) / len(seen) if seen else mean)
        return total / max(1, min(self._workers, sum(self._left.values())))


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    if seconds == 0:
        return "done"
    if seconds < 60:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def make_progress(
    cells: Sequence[C],
    total: int,
    workers: int,
    result: Callable[[R], str],
    stream: TextIO | None = None,
) -> Progress[C, R]:
    """Progress over `cells`, the runs not done yet of `total`: a bar when `stream` (stderr) is a terminal.

    Args:
        cells: the runs to be done.
        total: those and the ones done earlier.
        workers: how many run at once.
        result: a run's result in a phrase.
        stream: where to write; None: stderr.
    """
    stream = stream or sys.stderr
    remaining = RemainingTime(cells, workers)
    if stream.isatty():
        return _Bar(remaining, total - len(cells), total, stream)
    return _Lines(remaining, total - len(cells), total, result, stream)


class _Lines(Generic[C, R]):
    def __init__(
        self,
        remaining: RemainingTime,
        done: int,
        total: int,
        result: Callable[[R], str],
        stream: TextIO,
    ) -> None:
        self._remaining, self._done, self._total, self._stream = remaining, done, total, stream
        self._result = result
        self._start: dict[C, float] = {}

    def __enter__(self) -> _Lines[C, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def started(self, cell: C) -> None:
        self._start[cell] = time.monotonic()

    def finished(self, cell: C, outcome: R) -> None:
        seconds = time.monotonic() - self._start.pop(cell)
        self._remaining.finished(cell, seconds)
        self._done += 1
        self.note(
            f"[{self._done:3d}/{self._total}] {cell.describe()}: {self._result(outcome)} ({seconds:.1f} s); "
            f"{_clock(self._remaining.seconds())}"
        )


class _Bar(Generic[C, R]):
    def __init__(self, remaining: RemainingTime, done: int, total: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._remaining = remaining
        self._running: dict[C, float] = {}
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.description}"),
            console=Console(file=stream),
        )
        self._task: Any = self._bar.add_task("", total=total, completed=done, left=_clock(None))

    def __enter__(self) -> _Bar[C, R]:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def started(self, cell: C) -> None:
        self._running[cell] = time.monotonic()
        self._show(0)

    def finished(self, cell: C, outcome: R) -> None:
        self._remaining.finished(cell, time.monotonic() - self._running.pop(cell))
        self._show(1)

    def _show(self, advance: int) -> None:
        self._bar.update(
            self._task,
            advance=advance,
            description=", ".join(cell.describe() for cell in self._running),
            left=_clock(self._remaining.seconds()),
            refresh=True,
        )
