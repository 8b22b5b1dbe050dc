"""Rows of cells: TSV without quoting, and CSV as RFC 4180 has it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from xferkit.data.errors import shown
from xferkit.data.readers.blocks import Block, Line, numbered_lines
from xferkit.data.readers.job import Flaw

__all__ = ["CSVRows", "Rows", "TSVRows"]

_MOST_COLUMNS = 4096


class Rows(Protocol):
    """Numbered rows; blank lines are none.

    Attributes:
        most: rows with more cells may come with ``most + 1`` of them, the rest uncut in the last one.
    """

    most: int

    def __iter__(self) -> Iterator[tuple[int, list[str] | Flaw]]: ...


class TSVRows:
    """Cells between tabs."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self.most = _MOST_COLUMNS
        self._blocks = blocks

    def __iter__(self) -> Iterator[tuple[int, list[str] | Flaw]]:
        for block in self._blocks:
            flaws = block.flaws
            for number, line in enumerate(block.lines, block.start):
                if line:
                    yield number, line.split("\t", self.most)
                elif number in flaws:
                    yield number, flaws[number]


class _Lines:
    """Lines with numbers and flaws, of which some may be given back.

    Attributes:
        again: lines that come before the rest of the file.
    """

    def __init__(self, blocks: Iterator[Block]) -> None:
        self.again: deque[Line] = deque()
        self._fresh = numbered_lines(blocks)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> Line:
        # Not a generator: lines may be given back after the last one was taken.
        return self.again.popleft() if self.again else next(self._fresh)


class CSVRows:
    """Cells between delimiters; a cell that begins with ``"`` ends at the next lone ``"``, on whatever line.

    Within quotes, ``""`` is a quote and a line end is a line feed. A quote within a cell that does not begin
    with one is itself. A line with a flaw ends the row that it is in. When a quote is not closed within
    ``max_row`` characters or the file, only the line with the quote is at fault: reading goes on behind that
    line. No quote that is met then can be another unclosed one before the place already searched, so every
    line is read twice at most.
    """

    def __init__(self, blocks: Iterator[Block], delimiter: str, max_row: int) -> None:
        self.most = _MOST_COLUMNS
        self._blocks = blocks
        self._delimiter = delimiter
        self._max_row = max_row

    def __iter__(self) -> Iterator[tuple[int, list[str] | Flaw]]:
        lines = _Lines(self._blocks)
        delimiter = self._delimiter
        for number, line, flaw in lines:
            if flaw is not None:
                yield number, flaw
            elif '"' not in line:
                if line:
                    yield number, line.split(delimiter, self.most)
            else:
                yield self._quoted_row(number, line, lines)

    def _quoted_row(self, start: int, line: str, lines: _Lines) -> tuple[int, list[str] | Flaw]:
        cells: list[str] = []
        number, size, at = start, len(line), 0
        while True:
            if not line.startswith('"', at):
                end = line.find(self._delimiter, at)
                cells.append(line[at:] if end < 0 else line[at:end])
                if end < 0:
                    return start, cells
                at = end + 1
                continue
            opened = number
            behind: list[Line] = []
            pieces: list[str] = []
            at += 1
            while (end := _closing_quote(line, at)) < 0:
                pieces.append(line[at:])
                following = next(lines, None)
                if following is not None:
                    number, line, flaw = following
                    if flaw is not None:
                        return number, flaw
                    behind.append(following)
                    size += len(line) + 1
                    at = 0
                if following is None or size > self._max_row:
                    lines.again.extendleft(reversed(behind))
                    return opened, _unclosed(size, self._max_row)
            pieces.append(line[at:end])
            cells.append("\n".join(pieces).replace('""', '"'))
            at = end + 1
            if at == len(line):
                return start, cells
            if not line.startswith(self._delimiter, at):
                return number, Flaw(
                    "text behind a quote",
                    f"{shown(line[at : at + 20])} follows the quote that closes a cell",
                    f"{shown(self._delimiter)} or the end of the row (quotes within a quoted cell are doubled)",
                )
            at += 1


def _closing_quote(line: str, at: int) -> int:
    """Position of the next quote that is not doubled, or -1."""
    while True:
        end = line.find('"', at)
        if end < 0 or not line.startswith('"', end + 1):
            return end
        at = end + 2


def _unclosed(size: int, limit: int) -> Flaw:
    within = f"within {limit:,} characters" if size > limit else "before the end of the file"
    return Flaw("unclosed quote", f"a quoted cell begins here and is not closed {within}", 'a closing "')
