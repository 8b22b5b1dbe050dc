"""The plain texts of one language from files of several kinds, one at a time, without repetitions."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from xferkit.data.errors import DataError
from xferkit.data.readers.formats import parse
from xferkit.data.readers.job import Flaw, ReadJob, Tally, make_job
from xferkit.data.readers.table import NO_TEXT
from xferkit.data.records import MAX_LINE_BYTES, MAX_TOKENS, Columns, Format, Record, Task

__all__ = ["PlainTextReport", "PlainTexts", "TextFile", "TextFileKind", "read_plain_texts", "tidy_text"]

TextFileKind = Literal["auto", "lines", "table", "tokens"]
"""A text a line; a column of a table or a key of JSON lines; a token a line with a blank line after each sentence."""


@dataclass(frozen=True)
class TextFile:
    """A file with texts of one language; named ``.gz`` it is decompressed on the way.

    Attributes:
        path: the file.
        column: name or number of the column (the key of JSON lines) that holds the texts; for ``"tokens"`` the
            column of the tokens, by default the first (FORM in CoNLL-U).
        kind: ``"lines"``; ``"table"``, in the format of the suffix (.tsv without quoting, .csv, .jsonl);
            ``"tokens"``, joined by spaces. ``"auto"``: a table where ``column`` is given, else by the suffix:
            lines for .txt, a table for .csv and .jsonl, tokens for .conll, .conllu, .bio, .iob, .iob2 and .tsv.
    """

    path: str | os.PathLike[str]
    column: str | int | None = None
    kind: TextFileKind = "auto"

    def __post_init__(self) -> None:
        if self.kind not in get_args(TextFileKind):
            raise DataError(
                f"TextFile: kind must be one of {', '.join(get_args(TextFileKind))}, got {self.kind!r}"
            )
        if self.kind == "lines" and self.column is not None:
            raise DataError(f"TextFile: a file of lines has no columns, got column {self.column!r}")

    def job(self, encoding: str = "utf-8") -> ReadJob:
        """How the file is read.

        Raises:
            DataError: the suffix names no format, or not one of this kind.
        """
        kind, name = self.kind, os.fspath(self.path).lower().removesuffix(".gz")
        if kind == "auto":
            kind = "table" if self.column is not None else "tokens"
            if self.column is None and name.endswith((".txt", ".csv", ".jsonl", ".json")):
                kind = "lines" if name.endswith(".txt") else "table"
        format: Format = "text" if kind == "lines" else "auto"
        if kind == "tokens" and not name.endswith(".conllu"):
            format = "conll"
        task: Task = "tagging" if kind == "tokens" else "classification"
        columns = Columns(tokens=self.column) if kind == "tokens" else Columns(text=self.column)
        return make_job(
            self.path,
            format=format,
            task=task,
            mode="strict",
            labelled=False,
            columns=columns,
            allowed_labels=None,
            encoding=encoding,
            max_line_bytes=MAX_LINE_BYTES,
            max_tokens=MAX_TOKENS,
            keep_rejected=0,
            on_progress=None,
        )


@dataclass(frozen=True)
class PlainTextReport:
    """What became of the texts; ``read == kept + empty + repeated + excluded``, always.

    Attributes:
        read: rows or sentences met; blank lines are none.
        kept: texts handed out.
        empty: rows whose text is empty or white space.
        repeated: texts that came before, after NFC and without white space at their ends.
        excluded: texts that were to be left out.
    """

    read: int = 0
    kept: int = 0
    empty: int = 0
    repeated: int = 0
    excluded: int = 0

    def summary(self) -> str:
        """One line, such as ``29,000 texts read, 28,976 kept (24 repeated)``."""
        parts = [f"{n:,} {what}" for what in ("empty", "repeated", "excluded") if (n := getattr(self, what))]
        left = f" ({', '.join(parts)})" if parts else ""
        return f"{self.read:,} texts read, {self.kept:,} kept{left}"


class PlainTexts:
    """Texts of one language, read anew by every iteration, in the files' order.

    Made by :func:`read_plain_texts`. Of a text that was met only its hash (16 bytes) is held.
    """

    def __init__(self, files: Sequence[TextFile], jobs: Sequence[ReadJob], without: Iterable[str]) -> None:
        self.files = tuple(files)
        self._jobs = jobs
        self._without = frozenset(_hash(tidy_text(text)) for text in without)
        self._tally = _Tally()

    @property
    def report(self) -> PlainTextReport:
        """What became of the texts so far in the latest iteration."""
        return self._tally.report()

    def __iter__(self) -> Iterator[str]:
        tally = self._tally = _Tally()
        seen: set[bytes] = set()
        for job in self._jobs:
            for record in parse(job, _SkipsEmpty(job, tally)):
                tally.read += 1
                text = _text_of(record)
                key = _hash(text)
                if key in self._without:
                    tally.excluded += 1
                elif key in seen:
                    tally.repeated += 1
                else:
                    seen.add(key)
                    tally.kept += 1
                    yield text


def read_plain_texts(
    files: Iterable[TextFile | str | os.PathLike[str]],
    *,
    without: Iterable[str] = (),
    encoding: str = "utf-8",
) -> PlainTexts:
    """The texts of one language, in NFC, without white space at their ends, none empty and none twice.

    Args:
        files: in the order in which they are read; a path stands for ``TextFile(path)``.
        without: texts that are left out, such as those of development files.
        encoding: of the files.

    Raises:
        DataError: no file, or an argument about one is wrong. What is wrong with a file (with its line) shows
            while it is read.
    """
    listed = [file if isinstance(file, TextFile) else TextFile(file) for file in files]
    if not listed:
        raise DataError("read_plain_texts: expected at least one file, got none")
    return PlainTexts(listed, [file.job(encoding) for file in listed], without)


def tidy_text(text: str) -> str:
    """The text in NFC, without white space at its ends."""
    return unicodedata.normalize("NFC", text).strip()


def _text_of(record: Record) -> str:
    return tidy_text(" ".join(record.tokens) if record.tokens else record.text)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class _Tally:
    """The counts of an iteration."""

    def __init__(self) -> None:
        self.read = self.kept = self.empty = self.repeated = self.excluded = 0

    def report(self) -> PlainTextReport:
        return PlainTextReport(self.read, self.kept, self.empty, self.repeated, self.excluded)


class _SkipsEmpty(Tally):
    """Counts empty texts, which readers otherwise refuse; every other fault stays one."""

    def __init__(self, job: ReadJob, counts: _Tally) -> None:
        super().__init__(job)
        self._counts = counts

    def reject(self, line: int, flaw: Flaw) -> None:
        """Leave an empty text out; raise for anything else."""
        if flaw is NO_TEXT:
            self._counts.read += 1
            self._counts.empty += 1
        else:
            super().reject(line, flaw)
