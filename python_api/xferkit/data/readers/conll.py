"""A token per line, a blank line after each sentence: CoNLL, BIO and CoNLL-U."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from xferkit.data.errors import shown
from xferkit.data.readers.blocks import Block, Line, numbered_lines
from xferkit.data.readers.conll_layout import (
    DOCUMENT,
    CoNLLLayout,
    CoNLLULayout,
    Kind,
    Layout,
    separated_by_tabs,
)
from xferkit.data.readers.job import Flaw, ReadJob, Tally
from xferkit.data.readers.text import too_many_tokens
from xferkit.data.records import Record

__all__ = ["read_conll", "read_conllu"]

# Comments at the head of a file may fill a block; that much is kept until a line shows the columns.
_MOST_BLOCKS = 64
# The end of a file ends a sentence, too.
_END: tuple[Line, ...] = ((0, "", None),)


def read_conll(
    blocks: Iterator[Block], job: ReadJob, tally: Tally, *, tabs: bool | None = None
) -> Iterator[Record]:
    """A record per sentence of a file with a token in one column and its tag in another.

    All lines must have as many columns as the first one with a token. ``-DOCSTART-`` lines count as blank, as
    do lines of white space. A sentence with a bad line is bad as a whole, and counts once.

    Args:
        blocks: the lines.
        job: what is to be read.
        tally: counts the sentences.
        tabs: whether tabs separate the columns; default: as the job says, else as in the first line.
    """
    seen, found = _look(blocks)
    if tabs is None:
        tabs = job.columns.delimiter == "\t" if job.columns.delimiter else found
    yield from _sentences(chain(seen, blocks), CoNLLLayout(job, tabs, tabs and found), tally)


def _look(blocks: Iterator[Block]) -> tuple[list[Block], bool]:
    """Read on until it is plain what separates the columns; whether tabs do, and what was read."""
    seen = []
    for block in islice(blocks, _MOST_BLOCKS):
        seen.append(block)
        found = separated_by_tabs(block)
        if found is not None:
            return seen, found
    return seen, False


def read_conllu(blocks: Iterator[Block], job: ReadJob, tally: Tally) -> Iterator[Record]:
    """A record per sentence of a CoNLL-U file; ranges of words (1-2) and empty nodes (1.1) are no tokens."""
    yield from _sentences(blocks, CoNLLULayout(job), tally)


def _sentences(blocks: Iterator[Block], layout: Layout, tally: Tally) -> Iterator[Record]:
    job, tabs, comment, labels = layout.job, layout.tabs, layout.comment, layout.labels
    labelled, max_tokens, known = job.labelled, job.max_tokens, labels.known
    width, token_at, tag_at, ids = layout.width, layout.token_at, layout.tag_at, layout.ids
    tokens: list[str] = []
    tags: list[str] = []
    start = 0  # line of the first token
    spoilt = False  # the sentence is counted and rejected; its other lines are passed over
    what: Kind | Flaw
    for number, line, flaw in chain(numbered_lines(blocks), _END):
        if flaw is not None:
            what = flaw
        elif not line:
            what = "end"
        else:
            cells = line.split("\t", width) if tabs and width else layout.cut(line)
            if (
                cells
                and len(cells) == width
                and (token := cells[token_at])
                and not token.isspace()
                and not cells[0].startswith(DOCUMENT)
                and not (comment and line.startswith(comment))
            ):
                what = "token"
            else:
                what = layout.odd_line(number, line, cells, spoilt or bool(tokens))
                width, token_at, tag_at, ids = layout.width, layout.token_at, layout.tag_at, layout.ids
                token = cells[token_at] if what == "token" else ""

        if what == "token" and not spoilt:
            if ids and cells[0] != str(len(tokens) + 1):
                what = _odd_id(cells[0], len(tokens) + 1)
            elif len(tokens) == max_tokens:
                what = too_many_tokens(max_tokens, "a blank line after each sentence")
            else:
                tag = (known.get(cells[tag_at]) or labels.check(cells[tag_at])) if labelled else ""
                if isinstance(tag, Flaw):
                    what = tag
                else:
                    start = start or number
                    tokens.append(token)
                    tags.append(tag)
                    continue

        if what == "end":
            if tokens:
                tally.rows_in += 1
                tally.rows_out += 1
                yield Record(tuple(tokens), tuple(tags) if labelled else None, start)
                tokens, tags, start = [], [], 0
            spoilt = False
        elif isinstance(what, Flaw) and not spoilt:
            tokens, tags, start, spoilt = [], [], 0, True
            tally.rows_in += 1
            tally.reject(number, what)


def _odd_id(found: str, expected: int) -> Kind | Flaw:
    for mark in "-.":
        first, _, second = found.partition(mark)
        if first.isdecimal() and second.isdecimal():
            return "nothing"
    return Flaw(
        "wrong ID",
        f"the ID is {shown(found)}",
        f"{expected}, a range such as 1-2 or an empty node such as 1.1 (is a blank line missing?)",
    )
