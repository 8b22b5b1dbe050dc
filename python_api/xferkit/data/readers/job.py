"""What one reading of a file is to do, and the count of what it did."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from xferkit.data.errors import DataError, close_name, shown, shown_list
from xferkit.data.records import Columns, OnProgress, ReadReport

__all__ = ["Flaw", "ReadJob", "Tally", "make_job"]

_FORMATS = ("tsv", "csv", "jsonl", "conll", "conllu", "text", "hf")
_SUFFIXES = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".conllu": "conllu",
    ".txt": "text",
}


class Flaw(NamedTuple):
    """What is wrong with a row: a reason that is counted, and the two halves of the sentence."""

    reason: str
    wrong: str
    expected: str


@dataclass(frozen=True)
class ReadJob:
    """The checked arguments of :func:`xferkit.data.records.read_records`."""

    path: str
    format: str
    task: str
    strict: bool
    labelled: bool
    columns: Columns
    allowed_labels: tuple[str, ...] | None
    encoding: str
    max_line_bytes: int
    max_tokens: int
    keep_rejected: int
    on_progress: OnProgress | None

    def error(self, line: int | None, flaw: Flaw) -> DataError:
        """The flaw as an exception about this file."""
        return DataError.at(self.path, line, flaw.wrong, flaw.expected, reason=flaw.reason)


class Tally:
    """Counts rows; a reader adds to ``rows_in`` and ``rows_out`` itself, for speed."""

    def __init__(self, job: ReadJob) -> None:
        self.job = job
        self.rows_in = self.rows_out = self.rejected = 0
        self._reasons: dict[str, int] = {}
        self._examples: list[tuple[int, str]] = []

    def reject(self, line: int, flaw: Flaw) -> None:
        """Leave the row out.

        Raises:
            DataError: in strict mode.
        """
        self.rejected += 1
        self._reasons[flaw.reason] = self._reasons.get(flaw.reason, 0) + 1
        if len(self._examples) < self.job.keep_rejected:
            self._examples.append((line, str(self.job.error(line, flaw))))
        if self.job.strict:
            raise self.job.error(line, flaw)

    def report(self) -> ReadReport:
        """The counts so far."""
        return ReadReport(
            self.job.path,
            rows_in=self.rows_in,
            rows_out=self.rows_out,
            rejected=self.rejected,
            reasons=dict(self._reasons),
            examples=tuple(self._examples),
        )


def make_job(
    path: str | os.PathLike[str],
    *,
    format: str,
    task: str,
    mode: str,
    labelled: bool,
    columns: Columns | None,
    allowed_labels: Iterable[str] | None,
    encoding: str,
    max_line_bytes: int,
    max_tokens: int,
    keep_rejected: int,
    on_progress: OnProgress | None,
) -> ReadJob:
    """Check the arguments.

    Raises:
        DataError: one of them is wrong.
    """
    name = os.fspath(path)
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"read_records: path must be the name of a file, got {name!r}")
    _one_of("format", format, ("auto", *_FORMATS))
    _one_of("task", task, ("classification", "tagging"))
    _one_of("mode", mode, ("strict", "skip"))
    for key, value in (("max_line_bytes", max_line_bytes), ("max_tokens", max_tokens)):
        if value < 1:
            raise DataError(f"read_records: {key} must be at least 1, got {value}")
    if isinstance(allowed_labels, str):
        raise DataError(f"read_records: allowed_labels must be a list of labels, got {allowed_labels!r}")
    if format == "auto":
        format = _format_of(name)
    if format == "text" and labelled:
        raise DataError.at(
            name,
            None,
            "plain text holds no labels",
            "labelled=False, or the format of a labelled file "
            + (
                "('conll' for a token and a tag per line)" if task == "tagging" else "('tsv', 'csv', 'jsonl')"
            ),
        )
    columns = columns or Columns()
    _check_columns(columns, format)
    return ReadJob(
        path=name,
        format=format,
        task=task,
        strict=mode == "strict",
        labelled=labelled,
        columns=columns,
        allowed_labels=None if allowed_labels is None else tuple(dict.fromkeys(allowed_labels)),
        encoding=_checked_encoding(encoding),
        max_line_bytes=max_line_bytes,
        max_tokens=max_tokens,
        keep_rejected=keep_rejected,
        on_progress=on_progress,
    )


def _one_of(argument: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        near = close_name(str(value), known)
        raise DataError(f"read_records: {argument} must be one of {', '.join(known)}, got {value!r}{near}")


def _format_of(name: str) -> str:
    if os.path.isdir(name):
        # A folder is a data set or a mistake; the reader of data sets says which.
        return "hf"
    stem = name[:-3] if name.lower().endswith(".gz") else name
    suffix = os.path.splitext(stem)[1].lower()
    if suffix not in _SUFFIXES:
        what = f"the suffix {shown(suffix)} names no format" if suffix else "the name has no suffix to go by"
        known = f"{', '.join(_SUFFIXES)} (also with .gz), or the argument format"
        raise DataError.at(name, None, what, known + close_name(suffix, _SUFFIXES), reason="unknown format")
    return _SUFFIXES[suffix]


def _check_columns(columns: Columns, format: str) -> None:
    for key in ("text", "label", "tokens", "tags"):
        value = getattr(columns, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise DataError(f"Columns: {key} must be the name or the number of a column, got {value!r}")
        if isinstance(value, int) and format in ("jsonl", "hf"):
            raise DataError(f"Columns: {key} must be a name in the format {format!r}, got the number {value}")
        if isinstance(value, str) and columns.header is False and format in ("tsv", "csv", "conll"):
            raise DataError(
                f"Columns: {key} names the column {value!r}, but header=False says that there are no names"
            )
    for first, second in (("text", "label"), ("tokens", "tags")):
        value = getattr(columns, first)
        if value is not None and value == getattr(columns, second):
            raise DataError(
                f"Columns: {first} and {second} must be different columns, got {value!r} for both"
            )
    delimiter = columns.delimiter
    if delimiter is not None:
        allowed = {"conll": ("\t", " "), "tsv": ("\t",)}.get(format)
        good = delimiter in allowed if allowed else len(delimiter) == 1 and delimiter not in '"\r\n'
        if not good or format not in ("csv", "conll", "tsv"):
            kinds = "one character for csv, a tab or a space for conll, a tab for tsv, and nothing for other formats"
            raise DataError(f"Columns: delimiter must be {kinds}, got {delimiter!r} for {format}")
    if columns.comment == "":
        raise DataError("Columns: comment must be the beginning of a comment line or None, got ''")


def _checked_encoding(encoding: str) -> str:
    """The codec's own name, for encodings in which bytes below 128 are ASCII: lines are cut before decoding."""
    ascii_bytes = bytes(range(128))
    try:
        name = codecs.lookup(encoding).name
        # Escapes would put line ends into lines.
        good = "escape" not in name and ascii_bytes.decode(name) == ascii_bytes.decode("ascii")
    except (LookupError, UnicodeError, ValueError, TypeError):
        good = False
    if not good:
        known = ("utf-8", "latin-1", "cp1252", "iso-8859-15", "koi8-r", "gb18030", "shift_jis")
        raise DataError(
            f"read_records: encoding must be one that keeps ASCII, such as {shown_list(known)}, got {encoding!r}"
            f"{close_name(str(encoding), known)}; `iconv -t utf-8` converts others"
        )
    return "utf-8" if name == "utf-8-sig" else name
