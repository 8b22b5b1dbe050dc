"""Records: one text or one sentence of a file, what its columns are called, and what became of its rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from xferkit.data.readers.job import ReadJob, Tally

__all__ = [
    "MAX_LINE_BYTES",
    "MAX_TOKENS",
    "Columns",
    "Format",
    "Mode",
    "OnProgress",
    "ReadReport",
    "Record",
    "RecordReader",
    "Task",
    "read_records",
]

#: Default cap on a line, which is held in memory whole.
MAX_LINE_BYTES = 16 * 2**20
#: Default cap on a tagged sentence: where it is longer, blank lines are missing.
MAX_TOKENS = 10_000

Format = Literal["auto", "tsv", "csv", "jsonl", "conll", "conllu", "text", "hf"]
Task = Literal["classification", "tagging"]
Mode = Literal["strict", "skip"]
#: Told how far reading is: bytes of the file (rows of a data set) so far and in all, None when not known.
OnProgress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
        tokens: tokens of a tagged sentence; empty for classification, whose text is not split yet.
        labels: a tag per token, or the class of the text, or None when unlabelled.
        line: line on which it begins, counted from 1 (row of a ``datasets`` folder).
        text: text of a classification example; empty for tagging.
    """

    tokens: tuple[str, ...]
    labels: tuple[str, ...] | str | None
    line: int
    text: str = ""

    def words(self) -> tuple[str, ...]:
        """The tokens, or the text split at white space."""
        return self.tokens or tuple(self.text.split())


@dataclass(frozen=True)
class Columns:
    """Which columns (keys of JSON lines) hold what. A column is a name or a number: 0 the first, -1 the last.

    Attributes:
        text: text of a classification example; default: the column ``text``, ``sentence``, ``utterance`` or
            ``tokens``; the first where there is no header.
        label: its class; default: ``label``, ``class`` or ``intent``; the second where there is no header.
        tokens: tokens of a tagged sentence. In tables and JSON lines a list, ``tokens`` or ``words``; in
            tables separated by spaces, and an empty token tagged ``O`` (two spaces in a row) is dropped with
            its tag. In CoNLL files the column of the token: the first; FORM in CoNLL-U.
        tags: its tags. In tables and JSON lines ``tags``, ``slots``, ``labels``, ``ner_tags``, ``pos_tags`` or
            ``upos``. In CoNLL files the last column; UPOS in CoNLL-U.
        header: whether the first row holds the names of the columns; default: when it holds those wanted.
        delimiter: between columns. CSV: default ``","``. CoNLL: ``"\\t"``, or ``" "`` for runs of spaces;
            default: whichever the first line has.
        comment: lines of CoNLL files that begin with this are skipped. Default: ``#`` lines without a tab in
            files with tabs; none in files with spaces, where ``#`` may be a token. CoNLL-U has its own.
    """

    text: str | int | None = None
    label: str | int | None = None
    tokens: str | int | None = None
    tags: str | int | None = None
    header: bool | None = None
    delimiter: str | None = None
    comment: str | None = None


@dataclass(frozen=True)
class ReadReport:
    """What became of the rows of a file; ``rows_in == rows_out + rejected``, always.

    A row is an example: a sentence in CoNLL files, a line or a quoted run of lines elsewhere. Headers,
    comments and blank lines are none.

    Attributes:
        path: the file.
        rows_in: rows met.
        rows_out: rows handed out.
        rejected: rows left out.
        reasons: how many were left out for which reason.
        examples: line and sentence of the first ones left out.
    """

    path: str
    rows_in: int = 0
    rows_out: int = 0
    rejected: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[tuple[int, str], ...] = ()

    def summary(self) -> str:
        """One line, such as ``en.tsv: 998 of 1,000 rows read, 2 left out (1 no label, 1 not UTF-8)``."""
        text = f"{self.path}: {self.rows_out:,} of {self.rows_in:,} rows read"
        if not self.rejected:
            return text
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.items())
        return f"{text}, {self.rejected:,} left out ({reasons})"


class RecordReader:
    """The records of a file, read anew by every iteration in memory that does not grow with the file.

    Made by :func:`read_records`. What is wrong with the file shows while it is read.
    """

    def __init__(self, job: ReadJob) -> None:
        self._job = job
        self._tally: Tally | None = None

    @property
    def path(self) -> str:
        """The file."""
        return self._job.path

    @property
    def report(self) -> ReadReport:
        """What became of the rows so far in the latest iteration."""
        return ReadReport(self._job.path) if self._tally is None else self._tally.report()

    def __iter__(self) -> Iterator[Record]:
        return self.records()

    def records(self, on_progress: OnProgress | None = None) -> Iterator[Record]:
        """The records; ``on_progress`` is called beside the one given to :func:`read_records`.

        Raises:
            DataError: the file cannot be read or does not fit; in strict mode also at the first bad row.
        """
        from xferkit.data.readers.formats import parse
        from xferkit.data.readers.job import Tally

        # Tied to the iteration, so that one which is still open does not count into the next one's report.
        tally = self._tally = Tally(self._job)
        return parse(self._job, tally, on_progress)


def read_records(
    path: str | os.PathLike[str],
    *,
    format: Format = "auto",
    task: Task = "classification",
    mode: Mode = "strict",
    labelled: bool = True,
    columns: Columns | None = None,
    allowed_labels: Iterable[str] | None = None,
    encoding: str = "utf-8",
    max_line_bytes: int = MAX_LINE_BYTES,
    max_tokens: int = MAX_TOKENS,
    keep_rejected: int = 10,
    on_progress: OnProgress | None = None,
) -> RecordReader:
    """Read texts or tagged sentences from a file, one at a time.

    A byte order mark at the start is removed and CRLF accepted; only line feeds end lines. Files named
    ``.gz`` are decompressed on the way. Labels lose white space around them; texts and tokens stay as they
    are. Damage that concerns no single row (a missing file, a missing column, a broken gzip stream) is an
    error in both modes.

    Args:
        path: file, or folder of a Hugging Face data set on disk.
        format: ``"tsv"``: a tab between columns, no quoting; ``"csv"``: quoting of RFC 4180, line ends within
            quotes; ``"jsonl"``: a JSON object per line; ``"conll"``: a token per line, a blank line after
            each sentence, ``-DOCSTART-`` skipped; ``"conllu"``: CoNLL-U; ``"text"``: unlabelled lines;
            ``"hf"``: a ``datasets`` folder. ``"auto"`` goes by the suffix; a ``.tsv`` for tagging is a
            table when its first line names such columns, and ``conll`` otherwise.
        task: ``"classification"``: a text with a class; ``"tagging"``: tokens with a tag each.
        mode: ``"strict"`` raises at the first bad row, ``"skip"`` leaves bad rows out and counts them.
        labelled: False ignores labels, which may then be absent.
        columns: where to find what, when the defaults do not fit.
        allowed_labels: any other label is an error of its row.
        encoding: of the file; one that keeps ASCII as it is.
        max_line_bytes: longer lines (CSV: rows, in characters) are errors, and never held in memory.
        max_tokens: tagged sentences with more tokens are errors.
        keep_rejected: how many bad rows the report lists with their sentence.
        on_progress: see :data:`OnProgress`.

    Raises:
        DataError: an argument is wrong. Everything about the file shows while it is read.
    """
    from xferkit.data.readers.job import make_job

    job = make_job(
        path,
        format=format,
        task=task,
        mode=mode,
        labelled=labelled,
        columns=columns,
        allowed_labels=allowed_labels,
        encoding=encoding,
        max_line_bytes=max_line_bytes,
        max_tokens=max_tokens,
        keep_rejected=keep_rejected,
        on_progress=on_progress,
    )
    return RecordReader(job)
