"""Rows with a text in each of two columns: tables and JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from xferkit.data.errors import DataError, close_name, shown_list
from xferkit.data.readers.blocks import Block, numbered_lines, read_blocks
from xferkit.data.readers.job import Flaw, ReadJob, Tally
from xferkit.data.readers.jsonl import decode_object, kind_of, make_decoder, unwritable
from xferkit.data.readers.rows import CSVRows, Rows, TSVRows
from xferkit.data.readers.table import WantedColumn, find_layout
from xferkit.data.records import OnProgress

__all__ = ["parse_pairs"]

#: Line and the two texts.
Row = tuple[int, str, str]


def parse_pairs(
    job: ReadJob, wanted: list[WantedColumn], tally: Tally, on_progress: OnProgress | None = None
) -> Iterator[Row]:
    """The pairs of a file, counted.

    Args:
        job: the reading, of format ``tsv``, ``csv`` or ``jsonl``.
        wanted: the two columns.
        tally: counts rows.
        on_progress: told bytes read.

    Raises:
        DataError: the file does not fit; in strict mode also at the first bad row, and where there is none.
    """
    blocks = read_blocks(job, on_progress)
    if job.format == "jsonl":
        yield from _objects(blocks, job, wanted, tally)
    elif job.format == "csv":
        yield from _table(
            CSVRows(blocks, job.columns.delimiter or ",", job.max_line_bytes), job, wanted, tally
        )
    else:
        yield from _table(TSVRows(blocks), job, wanted, tally)
    if job.strict and not tally.rows_in:
        raise DataError.at(
            job.path, None, "the file holds no rows", "at least one pair of texts", reason="no rows"
        )


def _table(rows: Rows, job: ReadJob, wanted: list[WantedColumn], tally: Tally) -> Iterator[Row]:
    numbered = iter(rows)
    first = next(numbered, None)
    if first is None:
        return
    layout = find_layout(job, wanted, *first)
    rows.most = layout.width
    one, two = layout.places
    for number, cells in numbered if layout.names else chain([first], numbered):
        tally.rows_in += 1
        if isinstance(cells, Flaw):
            tally.reject(number, cells)
        elif len(cells) != layout.width:
            tally.reject(number, layout.wrong_width(cells))
        elif flaw := _empty(wanted, cells[one], cells[two]):
            tally.reject(number, flaw)
        else:
            tally.rows_out += 1
            yield number, cells[one], cells[two]


def _objects(
    blocks: Iterator[Block], job: ReadJob, wanted: list[WantedColumn], tally: Tally
) -> Iterator[Row]:
    decoder = make_decoder()
    for number, line, flaw in numbered_lines(blocks):
        if flaw is None and (not line or line.isspace()):
            continue
        tally.rows_in += 1
        value = decode_object(decoder, line) if flaw is None else flaw
        texts = value if isinstance(value, Flaw) else _values(value, wanted, "\\u" in line)
        if isinstance(texts, Flaw):
            tally.reject(number, texts)
            continue
        tally.rows_out += 1
        yield number, *texts


def _values(value: dict[str, object], wanted: list[WantedColumn], odd: bool) -> tuple[str, str] | Flaw:
    found: list[str] = []
    for column in wanted:
        name = column.among(list(value))
        if name is None:
            key = column.given if isinstance(column.given, str) else column.names[0]
            wrong = f"no key {key!r} among {shown_list(value)}{close_name(key, value)}"
            return Flaw("missing key", wrong, f"it, or {column.otherwise} with the name of another key")
        text = value[name]
        if not isinstance(text, str):
            return Flaw("no text", f"the {column.argument} is {kind_of(text)}", "a string")
        found.append(text)
    return (odd and unwritable(list(found))) or _empty(wanted, *found) or (found[0], found[1])


def _empty(wanted: list[WantedColumn], *texts: str) -> Flaw | None:
    for column, text in zip(wanted, texts, strict=True):
        if not text or text.isspace():
            return Flaw("no text", f"the {column.argument} is empty", "a text in both columns")
    return None
