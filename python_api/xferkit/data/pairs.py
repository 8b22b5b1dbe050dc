"""Pairs of texts in two languages: what they are called, the files they come from, and which of them say the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from xferkit.data.corpus import CorpusKey
from xferkit.data.errors import DataError, shown
from xferkit.data.records import MAX_LINE_BYTES, MAX_TOKENS, Columns, Mode, OnProgress, ReadReport

if TYPE_CHECKING:
    from xferkit.data.readers.job import Tally

__all__ = ["PairFormat", "PairName", "PairReader", "TextPair", "pair_groups", "read_pairs", "text_groups"]

PairFormat = Literal["auto", "tsv", "csv", "jsonl"]


@dataclass(frozen=True)
class PairName:
    """Two languages and, where a pair has several files, what tells them apart; written ``en-de/flickr``.

    Attributes:
        first: language of the first texts.
        second: language of the second ones.
        domain: the part behind the slash, or "".
    """

    first: str
    second: str
    domain: str = ""

    def __str__(self) -> str:
        return self.pair + (f"/{self.domain}" if self.domain else "")

    @property
    def pair(self) -> str:
        """``en-de``."""
        return f"{self.first}-{self.second}"

    @property
    def languages(self) -> tuple[str, str]:
        """Both languages."""
        return self.first, self.second

    @classmethod
    def parse(cls, text: str) -> PairName:
        """The name that ``str`` writes so.

        Raises:
            DataError: it is none.
        """
        key = CorpusKey.parse(text)
        first, dash, second = key.language.partition("-")
        if key.task or not dash or not first or not second or "-" in second or first == second:
            raise DataError(
                f"{shown(text)} is no pair of languages; expected two names with one '-' between them, as in en-de, "
                "or en-de/news where a pair has several files"
            )
        return cls(first, second, key.domain)


@dataclass(frozen=True)
class TextPair:
    """Two texts that say the same.

    Attributes:
        first: text of the first language.
        second: text of the second.
        line: line on which the row begins, counted from 1.
    """

    first: str
    second: str
    line: int


class PairReader:
    """The pairs of a file, read anew by every iteration in memory that does not grow; made by :func:`read_pairs`."""

    def __init__(self, path: str, columns: Columns, languages: tuple[str, str], **options: object) -> None:
        from xferkit.data.readers.job import make_job
        from xferkit.data.readers.table import WantedColumn

        self._job = make_job(
            path,
            task="classification",
            labelled=True,
            columns=columns,
            allowed_labels=None,
            max_line_bytes=MAX_LINE_BYTES,
            max_tokens=MAX_TOKENS,
            keep_rejected=10,
            **options,  # type: ignore[arg-type]
        )
        if self._job.format not in ("tsv", "csv", "jsonl"):
            raise DataError.at(
                path,
                None,
                f"pairs of texts are not read from the format {self._job.format!r}",
                "a table or JSON lines with a text of each language in a row (tsv, csv, jsonl)",
            )
        given = (columns.text, columns.label)
        self._wanted = [
            WantedColumn(f"text in {language}", column, (language,), f"--columns {language}=...")
            for language, column in zip(languages, given, strict=True)
        ]
        self._tally: Tally | None = None

    @property
    def path(self) -> str:
        """The file."""
        return self._job.path

    @property
    def report(self) -> ReadReport:
        """What became of the rows so far in the latest iteration."""
        return ReadReport(self._job.path) if self._tally is None else self._tally.report()

    def __iter__(self) -> Iterator[TextPair]:
        from xferkit.data.readers.job import Tally
        from xferkit.data.readers.pairs import parse_pairs

        tally = self._tally = Tally(self._job)
        rows = parse_pairs(self._job, self._wanted, tally, self._job.on_progress)
        return (TextPair(first, second, line) for line, first, second in rows)


def read_pairs(
    path: str | os.PathLike[str],
    languages: tuple[str, str],
    *,
    columns: Mapping[str, str | int] | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    format: PairFormat = "auto",
    mode: Mode = "strict",
    encoding: str = "utf-8",
    on_progress: OnProgress | None = None,
) -> PairReader:
    """Read pairs of texts from a table or JSON lines, plain or ``.gz``.

    Args:
        path: the file.
        languages: of the first and the second texts. They are looked for in the columns of these names (in any
            case); a table whose first row has neither name has no header, and its two columns are the texts.
        columns: names or numbers of columns by language, where they are called otherwise.
        header: whether the first row holds names; None: when it holds those wanted.
        delimiter: of a CSV file; None: a comma.
        format: ``"auto"`` goes by the suffix.
        mode: ``"strict"`` raises at the first bad row, ``"skip"`` leaves bad rows out and counts them.
        encoding: of the file.
        on_progress: told bytes read and in all.

    Raises:
        DataError: an argument is wrong, or while reading the file is (with its line): no such column, rows of
            another width, an empty text, no rows, and whatever :func:`~xferkit.data.read_records` refuses.
    """
    name = os.fspath(path)
    given = [(columns or {}).get(language) for language in languages]
    if given[0] is not None and given[0] == given[1]:
        raise DataError(f"columns: {given[0]!r} is given for both languages; expected different columns")
    for language, column in zip(languages, given, strict=True):
        json_lines = format == "jsonl" or (
            format == "auto" and name.lower().removesuffix(".gz").endswith((".jsonl", ".json"))
        )
        if isinstance(column, int) and json_lines:
            raise DataError(
                f"columns: {language} is the number {column}; expected the name of a key for JSON"
            )
    made = Columns(text=given[0], label=given[1], header=header, delimiter=delimiter)
    return PairReader(
        name, made, languages, format=format, mode=mode, encoding=encoding, on_progress=on_progress
    )


def text_groups(texts: Sequence[str]) -> Tensor:
    """``int64[n]``, the same number for the same text."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts], dtype=torch.int64)


def pair_groups(first: Sequence[str], second: Sequence[str]) -> Tensor:
    """``int64[n]``, the same number for pairs that share a text on either side, directly or through others.

    In a batch such pairs answer each other: neither's second text is wrong for the other's first.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not first:
        return torch.zeros(0, dtype=torch.int64)
    one, two = text_groups(first).numpy(), text_groups(second).numpy()
    offset = int(one.max()) + 1
    size = offset + int(two.max()) + 1
    edges = coo_array((np.ones(len(one), np.int8), (one, two + offset)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return torch.from_numpy(component[one].astype(np.int64))
