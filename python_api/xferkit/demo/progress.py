"""Progress of the demo: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from types import TracebackType
from typing import Any, Protocol, TextIO

from xferkit.demo.plan import CellSpec
from xferkit.demo.store import CellOutcome

__all__ = ["Progress", "RemainingTime", "make_progress"]


class Progress(Protocol):
    """What the demo tells while it runs."""

    def __enter__(self) -> Progress:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing and leave the terminal as it was."""

    def note(self, text: str) -> None:
        """Show a sentence."""

    def started(self, spec: CellSpec) -> None:
        """A run was handed to a worker."""

    def finished(self, spec: CellSpec, outcome: CellOutcome) -> None:
        """A run ended."""


class RemainingTime:
    """Estimate of the time left from how long runs of each method took so far.

    Args:
        specs: the runs to be done.
        workers: how many run at once.
    """

    def __init__(self, specs: tuple[CellSpec, ...], workers: int) -> None:
        """Nothing is known before the first run ended."""
        self._left: dict[str, int] = defaultdict(int)
        for spec in specs:
            self._left[spec.method] += 1
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._workers = max(1, workers)

    def finished(self, spec: CellSpec, seconds: float) -> None:
        """Count a run that took `seconds`."""
        self._left[spec.method] -= 1
        self._seen[spec.method].append(seconds)

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
        return total / self._workers


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    if seconds == 0:
        return "done"
    if seconds < 60:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def make_progress(
    specs: tuple[CellSpec, ...], total: int, workers: int, stream: TextIO | None = None
) -> Progress:
    """Progress over `specs`, the runs not done yet of `total`: a bar when `stream` (stderr) is a terminal."""
    stream = stream or sys.stderr
    remaining = RemainingTime(specs, workers)
    if stream.isatty():
        return _Bar(remaining, total - len(specs), total, stream)
    return _Lines(remaining, total - len(specs), total, stream)


class _Lines:
    def __init__(self, remaining: RemainingTime, done: int, total: int, stream: TextIO) -> None:
        self._remaining, self._done, self._total, self._stream = remaining, done, total, stream
        self._start: dict[CellSpec, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def started(self, spec: CellSpec) -> None:
        self._start[spec] = time.monotonic()

    def finished(self, spec: CellSpec, outcome: CellOutcome) -> None:
        seconds = time.monotonic() - self._start.pop(spec)
        self._remaining.finished(spec, seconds)
        self._done += 1
        self.note(
            f"[{self._done:3d}/{self._total}] {spec.describe()}: accuracy {outcome.accuracy:.3f}, "
            f"macro-F1 {outcome.macro_f1:.3f} ({seconds:.1f} s); {_clock(self._remaining.seconds())}"
        )


class _Bar:
    def __init__(self, remaining: RemainingTime, done: int, total: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._remaining = remaining
        self._running: dict[CellSpec, float] = {}
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.description}"),
            console=Console(file=stream),
        )
        self._task: Any = self._bar.add_task("", total=total, completed=done, left=_clock(None))

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def started(self, spec: CellSpec) -> None:
        self._running[spec] = time.monotonic()
        self._show(0)

    def finished(self, spec: CellSpec, outcome: CellOutcome) -> None:
        self._remaining.finished(spec, time.monotonic() - self._running.pop(spec))
        self._show(1)

    def _show(self, advance: int) -> None:
        self._bar.update(
            self._task,
            advance=advance,
            description=", ".join(spec.describe() for spec in self._running),
            left=_clock(self._remaining.seconds()),
            refresh=True,
        )
