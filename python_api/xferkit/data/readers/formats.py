"""From a job to the reader of its format."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from xferkit.data.errors import DataError
from xferkit.data.readers.blocks import Block, read_blocks
from xferkit.data.readers.job import ReadJob, Tally
from xferkit.data.records import OnProgress, Record

__all__ = ["parse"]


def parse(job: ReadJob, tally: Tally, on_progress: OnProgress | None = None) -> Iterator[Record]:
    """The records of a file, counted.

    Raises:
        DataError: as :func:`xferkit.data.records.read_records` says; in strict mode also for a file that
            holds no row at all.
    """
    if job.format == "hf":
        from xferkit.data.readers.hf import read_hf

        yield from read_hf(job, tally, on_progress)
    else:
        yield from _parse_lines(read_blocks(job, on_progress), job, tally)
    if job.strict and not tally.rows_in:
        kind = "sentence" if job.task == "tagging" else "text"
        raise DataError.at(job.path, None, "the file holds no rows", f"at least one {kind}", reason="no rows")


def _parse_lines(blocks: Iterator[Block], job: ReadJob, tally: Tally) -> Iterator[Record]:
    # Each reader is imported when a file asks for it.
    if job.format == "text":
        from xferkit.data.readers.text import read_text

        return read_text(blocks, job, tally)
    if job.format == "jsonl":
        from xferkit.data.readers.jsonl import read_jsonl

        return read_jsonl(blocks, job, tally)
    if job.format == "conllu":
        from xferkit.data.readers.conll import read_conllu

        return read_conllu(blocks, job, tally)
    if job.format == "conll":
        from xferkit.data.readers.conll import read_conll

        return read_conll(blocks, job, tally)

    from xferkit.data.readers.rows import CSVRows, TSVRows
    from xferkit.data.readers.table import read_table

    if job.format == "csv":
        return read_table(CSVRows(blocks, job.columns.delimiter or ",", job.max_line_bytes), job, tally)
    if job.task == "tagging":
        first = next((block for block in blocks if block.flaws or any(block.lines)), None)
        if first is None:
            return iter(())
        blocks = chain([first], blocks)
        if not _is_table(first, job):
            from xferkit.data.readers.conll import read_conll

            return read_conll(blocks, job, tally, tabs=True)
    return read_table(TSVRows(blocks), job, tally)


def _is_table(block: Block, job: ReadJob) -> bool:
    """Whether a .tsv file for tagging has a row per sentence, rather than a line per token."""
    from xferkit.data.readers.table import wanted_columns

    wanted = wanted_columns(job)
    if any(isinstance(column.given, str) for column in wanted):
        return True
    number, line = next(
        (n, line) for n, line in enumerate(block.lines, block.start) if line or n in block.flaws
    )
    if number in block.flaws:
        # It may have been the header of a table, without which everything else would be misread.
        raise job.error(number, block.flaws[number])
    names = [cell.strip() for cell in line.split("\t", 4096)]
    return job.columns.header is not False and all(column.among(names) for column in wanted)
