"""Word vectors from text files (word2vec, GloVe, fastText) and from ``.npz`` files with ``words`` and ``vectors``."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xferkit.data.errors import DataError, shown, shown_list
from xferkit.data.readers.blocks import Line, numbered_lines, read_blocks
from xferkit.data.readers.job import make_job
from xferkit.data.records import OnProgress

__all__ = ["load_word_vectors"]

# Rows parsed together; long enough for numpy, short enough to find a bad one again.
_ROWS = 1024
_MOST_DIMENSIONS = 65_536
_LARGEST = float(np.finfo(np.float32).max)
_MAX_RATIO, _RATIO_FREE_BYTES = 200, 64 * 2**20


def load_word_vectors(
    path: str | os.PathLike[str],
    words: Collection[str] | None = None,
    max_words: int | None = None,
    *,
    encoding: str = "utf-8",
    on_progress: OnProgress | None = None,
) -> tuple[list[str], NDArray[np.float32]]:
    """Words and their vectors, in the order of the file.

    Text files have a word and d numbers per line, separated by spaces, with or without a first line that
    holds the number of words and d; ``.gz`` is decompressed on the way. A word may hold spaces: the last d
    fields are the numbers. ``.npz`` files hold ``words`` (unicode) and ``vectors`` ``[n, d]``. Of a word that
    comes several times the first vector counts.

    Args:
        path: the file.
        words: the only words that are wanted; None: all. Others are neither parsed nor kept.
        max_words: at most so many of the file's words are looked at, the most frequent ones in the usual order.
        encoding: of text files.
        on_progress: told the bytes read so far and in all.

    Returns:
        n words and float32 ``[n, d]``.

    Raises:
        DataError: the file cannot be read, a line has another number of values, or one is not a finite number;
            the sentence names the line.
    """
    name = os.fspath(path)
    if max_words is not None and max_words < 1:
        raise DataError(f"load_word_vectors: max_words must be at least 1, got {max_words}")
    if words is not None and not isinstance(words, set | frozenset | dict):
        words = set(words)
    if name.lower().endswith(".npz"):
        return _from_npz(name, words, max_words)
    job = make_job(
        name,
        format="text",
        task="classification",
        mode="strict",
        labelled=False,
        columns=None,
        allowed_labels=None,
        encoding=encoding,
        max_line_bytes=2**24,
        max_tokens=1,
        keep_rejected=0,
        on_progress=on_progress,
    )
    return _TextVectors(name, words, max_words).read(numbered_lines(read_blocks(job)))


class _TextVectors:
    """Rows of a text file on their way into an array that grows."""

    def __init__(self, path: str, words: Collection[str] | None, max_words: int | None) -> None:
        self._path = path
        self._wanted = words
        self._most = max_words
        self._dim = 0
        self._said: int | None = None  # number of words by the header
        self._words: dict[str, None] = {}
        self._vectors = np.empty((0, 0), dtype=np.float32)
        self._filled = 0
        self._pending: list[tuple[int, list[str]]] = []

    def read(self, lines: Iterator[Line]) -> tuple[list[str], NDArray[np.float32]]:
        looked_at = 0
        for number, line, flaw in lines:
            if flaw is not None:
                raise DataError.at(self._path, number, flaw.wrong, flaw.expected, reason=flaw.reason)
            if not line or line.isspace():
                continue
            if not self._dim and self._first(number, line):
                continue
            if self._most is not None and looked_at == self._most:
                break
            looked_at += 1
            self._take(number, line)
        else:
            if self._said is not None and self._said != looked_at:
                wrong = f"{looked_at:,} vectors, where the first line says {self._said:,}"
                raise DataError.at(self._path, None, wrong, "as many as that (was the file cut?)")
        if not looked_at:
            raise DataError.at(
                self._path, None, "the file holds no vectors", "a word and numbers on each line"
            )
        self._flush()
        self._vectors.resize((self._filled, self._dim), refcheck=False)
        return list(self._words), self._vectors

    def _first(self, number: int, line: str) -> bool:
        """Find d; whether the line is a header."""
        fields = line.split()
        if number == 1 and len(fields) == 2 and all(f.isascii() and f.isdecimal() for f in fields):
            # "2 50" might be a word with a vector of one number, which nobody has.
            self._dim = int(fields[1]) if len(fields[1]) < 7 else 0
            self._said = int(fields[0]) if len(fields[0]) < 19 else None
            if not 1 <= self._dim <= _MOST_DIMENSIONS:
                raise self._error(
                    number,
                    f"the header says vectors of {shown(fields[1])} numbers",
                    f"1 to {_MOST_DIMENSIONS}",
                )
            return True
        numbers = 0
        fields = line.rstrip(" \t").replace("\t", " ").split(" ")
        for field in reversed(fields[1:]):
            if not _is_number(field):
                break
            numbers += 1
        if not 1 <= numbers <= _MOST_DIMENSIONS:
            raise self._error(
                number, f"{numbers} numbers behind a word", f"1 to {_MOST_DIMENSIONS}, separated by spaces"
            )
        self._dim = numbers
        return False

    def _take(self, number: int, line: str) -> None:
        line = line.rstrip(" \t")
        if "\t" in line:
            line = line.replace("\t", " ")
        fields = line.rsplit(" ", self._dim)
        word = fields[0]
        if not word:
            raise self._error(number, "no word before the numbers", "a word, a space and numbers")
        if len(fields) != self._dim + 1:
            found = len(fields) - 1
            raise self._error(
                number,
                f"{found} number{'s' * (found != 1)} behind a word",
                f"{self._dim} as in the first line",
            )
        if _is_number(word.rsplit(" ", 1)[-1]) and " " in word:
            raise self._error(
                number, f"more than {self._dim} numbers behind a word", f"{self._dim} as in the first line"
            )
        if word in self._words or (self._wanted is not None and word not in self._wanted):
            return
        self._words[word] = None
        self._pending.append((number, fields[1:]))
        if len(self._pending) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        rows = self._pending
        if not rows:
            return
        try:
            with np.errstate(over="ignore"):  # said below, with the line
                values = np.array([fields for _, fields in rows], dtype=np.float32)
            good = bool(np.isfinite(values).all())
        except ValueError:
            good = False
        if not good:
            raise self._find_bad(rows)
        self._pending = []
        end = self._filled + len(rows)
        if end > len(self._vectors):
            # Growing in place by half: no second copy of all vectors at the end.
            self._vectors.resize((max(end, len(self._vectors) * 3 // 2), self._dim), refcheck=False)
        self._vectors[self._filled : end] = values
        self._filled = end

    def _find_bad(self, rows: list[tuple[int, list[str]]]) -> DataError:
        expected = "finite float32 numbers behind the word"
        for number, fields in rows:
            for field in fields:
                if not (_is_number(field) and abs(float(field)) <= _LARGEST):
                    return self._error(number, f"{shown(field)} is no such number", expected)
        return self._error(rows[0][0], "a value here or below is no such number", expected)

    def _error(self, line: int, wrong: str, expected: str) -> DataError:
        return DataError.at(self._path, line, wrong, expected, reason="bad vector")


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _from_npz(
    path: str, wanted: Collection[str] | None, most: int | None
) -> tuple[list[str], NDArray[np.float32]]:
    expected = "an .npz file with words (unicode [n]) and vectors (floats [n, d])"
    try:
        words, vectors = _npz_arrays(path)
    except DataError:
        raise
    except OSError as error:
        wrong = f"cannot be opened ({error.strerror or error})"
        raise DataError.at(path, None, wrong, expected, reason="cannot be opened") from None
    except Exception as error:  # zipfile, zlib and numpy raise errors of many kinds for damaged archives
        told = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError.at(
            path, None, f"cannot be read ({told})", expected, reason="damaged archive"
        ) from None
    good = words.ndim == 1 and words.dtype.kind == "U" and vectors.ndim == 2 and vectors.dtype.kind == "f"
    if not good or len(words) != len(vectors) or not vectors.size:
        held = f"words {words.dtype}{list(words.shape)} and vectors {vectors.dtype}{list(vectors.shape)}"
        raise DataError.at(path, None, f"holds {held}", expected, reason="bad vector")
    names: dict[str, int] = {}
    for row, word in enumerate(words[:most].tolist()):
        if (wanted is None or word in wanted) and word:
            names.setdefault(word, row)
    with np.errstate(over="ignore"):  # said below, with the row
        chosen = np.ascontiguousarray(vectors[list(names.values())], dtype=np.float32)
    bad = ~np.isfinite(chosen).all(axis=1)
    if bad.any():
        row = list(names.values())[int(bad.argmax())] + 1
        raise DataError.at(
            path, row, "the vector is not finite", "finite float32 numbers", reason="bad vector"
        )
    return list(names), chosen


def _npz_arrays(path: str) -> tuple[Any, Any]:
    with zipfile.ZipFile(path) as archive:
        held = sum(info.file_size for info in archive.infolist())
        if held > _RATIO_FREE_BYTES and held > _MAX_RATIO * os.path.getsize(path):
            wrong = f"the archive would unpack to {held:,} bytes, more than {_MAX_RATIO} times its size"
            raise DataError.at(path, None, wrong, "vectors, which compress less", reason="archive bomb")
    with np.load(path, allow_pickle=False) as arrays:
        missing = [name for name in ("words", "vectors") if name not in arrays.files]
        if missing:
            wrong = f"no array {missing[0]!r} among {shown_list(arrays.files)}"
            raise DataError.at(path, None, wrong, "the arrays words and vectors", reason="missing array")
        return arrays["words"], arrays["vectors"]
