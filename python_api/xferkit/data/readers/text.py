"""Plain text: an unlabelled text or sentence per line."""

from __future__ import annotations

from collections.abc import Iterator

from xferkit.data.readers.blocks import Block
from xferkit.data.readers.job import Flaw, ReadJob, Tally
from xferkit.data.records import Record

__all__ = ["read_text", "too_many_tokens"]


def read_text(blocks: Iterator[Block], job: ReadJob, tally: Tally) -> Iterator[Record]:
    """A record per line that is not blank; for tagging, its tokens are what white space separates."""
    tagging = job.task == "tagging"
    for block in blocks:
        flaws = block.flaws
        for number, line in enumerate(block.lines, block.start):
            if not line or line.isspace():
                if number in flaws:
                    tally.rows_in += 1
                    tally.reject(number, flaws[number])
                continue
            tally.rows_in += 1
            if tagging:
                tokens = tuple(line.split())
                if len(tokens) > job.max_tokens:
                    tally.reject(number, too_many_tokens(job.max_tokens))
                    continue
                tally.rows_out += 1
                yield Record(tokens, None, number)
            else:
                tally.rows_out += 1
                yield Record((), None, number, line)


def too_many_tokens(limit: int, expected: str = "shorter sentences") -> Flaw:
    """What is said of a sentence beyond the cap."""
    return Flaw(
        "sentence too long",
        f"a sentence of more than {limit:,} tokens",
        f"{expected} (the argument max_tokens raises the limit)",
    )
