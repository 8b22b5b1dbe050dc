"""Bars on stderr while files are read and texts are answered; nothing where no terminal is."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["counting_bar", "reading_bars"]

#: Files that are read before anybody looks for a bar.
_SMALL_BYTES = 8 * 2**20


@contextlib.contextmanager
def reading_bars() -> Iterator[Callable[[str], Callable[[int, int | None], None] | None]]:
    """Gives, for the name of a file, what is to be told bytes read and in all; a bar for each large file."""
    bars: list[Any] = []

    def watch(path: str) -> Callable[[int, int | None], None] | None:
        if not sys.stderr.isatty():
            return None
        bar: Any = None

        def told(done: int, total: int | None) -> None:
            nonlocal bar
            if bar is None and (total is None or total > _SMALL_BYTES):
                from tqdm import tqdm

                bar = tqdm(total=total, unit="B", unit_scale=True, desc=os.path.basename(path), leave=False)
                bars.append(bar)
            if bar is not None:
                bar.update(done - bar.n)
                if total is not None and done >= total:
                    bar.close()

        return told

    try:
        yield watch
    finally:
        for bar in bars:
            bar.close()


@contextlib.contextmanager
def counting_bar() -> Iterator[Callable[[int], None] | None]:
    """What is to be told how many texts were answered; None where answers or nothing are shown on the terminal."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit=" texts", unit_scale=True) as bar:

        def told(number: int) -> None:
            bar.update(number)

        yield told
