"""What commands print: sentences to stderr, results to stdout; rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

__all__ = ["heading", "note", "show_table", "warn"]


def note(text: str) -> None:
    """A sentence about what is going on."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A sentence that should not be missed."""
    if _is_terminal(sys.stderr) and "NO_COLOR" not in os.environ:
        print(f"\x1b[33mWarning:\x1b[0m {text}", file=sys.stderr, flush=True)
    else:
        print(f"Warning: {text}", file=sys.stderr, flush=True)


def heading(text: str) -> None:
    """A line above what follows on stdout."""
    if _is_terminal(sys.stdout):
        from rich.console import Console

        Console().print(text, style="bold", markup=False, highlight=False)
    else:
        print(text)


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> None:
    """A table on stdout; the last `numbers` columns stand at the right.

    Plain text has one row a line and columns filled with blanks, so that it reads without a terminal.
    """
    first_number = len(header) - numbers
    if _is_terminal(sys.stdout):
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE, show_edge=False)
        for index, name in enumerate(header):
            justify = "right" if index >= first_number else "left"
            table.add_column(Text(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if index >= first_number else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"
