"""Progress on the terminal: a bar with time left and losses, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Protocol, TextIO

__all__ = ["PlainProgress", "Progress", "ProgressKind", "RichProgress", "SilentProgress", "make_progress"]

ProgressKind = Literal["auto", "rich", "plain", "silent"]


class Progress(Protocol):
    """A context manager that is told of each step and of each window of metrics."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self) -> None:
        """One step is done."""
        ...

    def report(self, stage: str, metrics: Mapping[str, float]) -> None:
        """New metrics are there."""
        ...


def make_progress(
    kind: ProgressKind, total: int, *, title: str = "training", file: TextIO | None = None, done: int = 0
) -> Progress:
    """Progress of ``total`` steps, ``done`` of them before; ``"auto"`` is a bar on a terminal, else plain lines.

    Raises:
        ValueError: for an unknown kind.
    """
    stream = sys.stderr if file is None else file
    if kind == "auto":
        kind = "rich" if stream.isatty() else "plain"
    if kind == "rich":
        return RichProgress(total, title, stream, done)
    if kind == "plain":
        return PlainProgress(total, title, stream, done)
    if kind == "silent":
        return SilentProgress()
    raise ValueError(f"progress must be 'auto', 'rich', 'plain' or 'silent', got {kind!r}")


class SilentProgress:
    """Says nothing."""

    def __enter__(self) -> SilentProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self) -> None:
        """Nothing."""

    def report(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Nothing."""


class PlainProgress:
    """A line per report: steps, time left, metrics."""

    def __init__(self, total: int, title: str, file: TextIO, done: int = 0) -> None:
        self.total, self.title, self.file = total, title, file
        self.done, self.before, self.start = done, done, time.monotonic()

    def __enter__(self) -> PlainProgress:
        self.start = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self) -> None:
        """Count a step."""
        self.done += 1

    def report(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Write a line."""
        elapsed = time.monotonic() - self.start
        left = elapsed / max(self.done - self.before, 1) * (self.total - self.done)
        print(
            f"{self.title} {stage} {self.done}/{self.total}  {left:.0f} s left  {_format(metrics)}",
            file=self.file,
            flush=True,
        )


class RichProgress:
    """A bar with the time left and the latest metrics."""

    def __init__(self, total: int, title: str, file: TextIO, done: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(file=file),
        )
        self._title = title
        self._task = self._bar.add_task(title, total=total, completed=done, metrics="")

    def __enter__(self) -> RichProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """Move the bar."""
        self._bar.advance(self._task)

    def report(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Show the metrics beside the bar."""
        self._bar.update(self._task, description=f"{self._title} {stage}", metrics=_format(metrics))


def _format(metrics: Mapping[str, float]) -> str:
    # Names of three parts and more (cosine/within/en/0) are details for the record, hundreds of them sometimes.
    return "  ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name.count("/") < 2)
