"""How far the reading of a file is: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Literal, Protocol, TextIO

from xferkit.data.records import Record, RecordReader

__all__ = ["with_progress"]

_FIRST_LINE_SECONDS, _NEXT_LINE_SECONDS = 2.0, 10.0


class _Display(Protocol):
    def show(self, done: int, total: int | None) -> None: ...

    def close(self) -> None: ...


def with_progress(
    reader: RecordReader,
    *,
    title: str | None = None,
    kind: Literal["auto", "rich", "plain", "silent"] = "auto",
    file: TextIO | None = None,
) -> Iterator[Record]:
    """The records of ``reader``, while the terminal shows how much of the file is read and how long the rest takes.

    Args:
        reader: of the file.
        title: in front of the bar; default: the file's name.
        kind: ``"rich"``: a bar; ``"plain"``: a line after 2 s and every 10 s, none for a file that takes less;
            ``"silent"``: nothing; ``"auto"``: a bar on a terminal, plain lines elsewhere.
        file: where to; default: standard error.

    Raises:
        ValueError: for another kind; and what the reader raises.
    """
    stream = sys.stderr if file is None else file
    if kind == "auto":
        kind = "rich" if stream.isatty() else "plain"
    if kind not in ("rich", "plain", "silent"):
        raise ValueError(f"progress must be 'auto', 'rich', 'plain' or 'silent', got {kind!r}")
    return _shown(reader, title or f"reading {os.path.basename(reader.path)}", kind, stream)


def _shown(reader: RecordReader, title: str, kind: str, stream: TextIO) -> Iterator[Record]:
    if kind == "silent":
        yield from reader
        return
    display: _Display = _Bar(title, stream) if kind == "rich" else _Lines(title, stream)
    try:
        yield from reader.records(display.show)
    finally:
        display.close()


class _Bar:
    def __init__(self, title: str, file: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(file=file))
        self._task = self._bar.add_task(title, total=None)
        self._bar.start()

    def show(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    def __init__(self, title: str, file: TextIO) -> None:
        self._title, self._file = title, file
        self._start = time.monotonic()
        self._next = self._start + _FIRST_LINE_SECONDS

    def show(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _NEXT_LINE_SECONDS
        if total:
            left = (now - self._start) / max(done, 1) * max(total - done, 0)
            text = f"{100 * done / total:.0f} %  {left:.0f} s left"
        else:
            text = f"{done / 1e6:.1f} MB"
        print(f"{self._title}  {text}", file=self._file, flush=True)

    def close(self) -> None:
        pass
