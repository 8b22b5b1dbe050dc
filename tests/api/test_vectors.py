"""Word vectors from text and .npz files, whole ones and malformed ones."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xferkit.data import DataError, load_word_vectors

DATA = Path(os.environ.get("XFER_DATA", Path(__file__).resolve().parents[3] / "shared/data"))
PLAIN = b"the 0.5 -1 2e-3\nof 1 2 3\nand .5 +4 -0\n"
ROWS = np.array([[0.5, -1, 2e-3], [1, 2, 3], [0.5, 4, 0]], dtype=np.float32)


def load(path: Path, data: bytes, **options: Any) -> tuple[list[str], Any]:
    path.write_bytes(data)
    words, vectors = load_word_vectors(path, **options)
    assert vectors.dtype == np.float32 and vectors.ndim == 2 and len(words) == len(vectors)
    return words, vectors


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("glove.txt", PLAIN),
        ("word2vec.vec", b"3 3\n" + PLAIN),
        ("fasttext.vec", b"3 3\n" + PLAIN.replace(b"\n", b" \n")),
        ("a.txt.gz", gzip.compress(PLAIN)),
        ("tabs.txt", PLAIN.replace(b" ", b"\t")),
        ("tab_then_spaces.txt", b"the\t0.5 -1 2e-3\nof\t1 2 3\nand\t.5 +4 -0\n"),
        ("crlf.txt", PLAIN.replace(b"\n", b"\r\n")),
        ("bom.txt", b"\xef\xbb\xbf" + PLAIN),
        ("no_end.txt", PLAIN.rstrip()),
        ("blank_lines.txt", PLAIN.replace(b"\n", b"\n\n")),
        ("no_suffix", PLAIN),
    ],
)
def test_text_files(name: str, data: bytes, tmp_path: Path) -> None:
    words, vectors = load(tmp_path / name, data)
    assert words == ["the", "of", "and"]
    assert np.array_equal(vectors, ROWS)


def test_words_of_all_kinds(tmp_path: Path) -> None:
    # 2 and 0.5 are words when they come first; a word may hold spaces; U+2028 and U+0085 end no line.
    kinds = ["New York", ". . .", "a\u2028b", "a\x85b", "a\u00a0b", "2", "0.5", "#", "\U0001f600", "a" * 500]
    words, vectors = load(tmp_path / "a.txt", "".join(f"{w} 1 2\n" for w in ["first", *kinds]).encode())
    assert words == ["first", *kinds] and vectors.shape == (11, 2)


def test_the_first_vector_of_a_word_counts(tmp_path: Path) -> None:
    words, vectors = load(tmp_path / "a.txt", b"a 1 2\nb 3 4\na 5 6\n")
    assert words == ["a", "b"] and vectors.tolist() == [[1, 2], [3, 4]]


def test_only_the_words_that_are_wanted(tmp_path: Path) -> None:
    for wanted in ({"of", "and", "not there"}, ["and", "of"], frozenset({"of", "and"})):
        words, vectors = load(tmp_path / "a.txt", PLAIN, words=wanted)
        assert words == ["of", "and"] and np.array_equal(vectors, ROWS[1:])
    words, vectors = load(tmp_path / "a.txt", b"3 3\n" + PLAIN, words=set())
    assert words == [] and vectors.shape == (0, 3)


def test_only_the_most_frequent_words(tmp_path: Path) -> None:
    assert load(tmp_path / "a.txt", b"3 3\n" + PLAIN, max_words=2)[0] == ["the", "of"]
    assert load(tmp_path / "a.txt", PLAIN + b"broken", max_words=3)[0] == ["the", "of", "and"]
    assert load(tmp_path / "a.txt", PLAIN, max_words=2, words={"and"})[0] == []
    with pytest.raises(DataError, match="max_words must be at least 1, got 0"):
        load_word_vectors(tmp_path / "a.txt", max_words=0)


def test_many_words_come_in_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5000, 7)).astype(np.float32)
    lines = (f"w{i} " + " ".join(map(repr, map(float, row))) + "\n" for i, row in enumerate(values))
    told: list[tuple[int, int | None]] = []
    words, vectors = load(
        tmp_path / "a.txt",
        "".join(lines).encode(),
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert words == [f"w{i}" for i in range(5000)] and np.array_equal(vectors, values)
    assert vectors.flags.c_contiguous and vectors.base is None
    assert told[-1] == ((tmp_path / "a.txt").stat().st_size,) * 2


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"a 1 2\nb 3\n", 2, "1 number behind a word; expected 2"),
        (b"a 1 2\nb 3 4 5\n", 2, "more than 2 numbers behind a word; expected 2"),
        (b"a 1 2\nb\n", 2, "0 numbers behind a word"),
        (b"a 1 2\n 3 4\n", 2, "no word before the numbers"),
        (b"a 1 2\nb  3\n", 2, "'' is no such number"),
        (b"a 1 2\nb 3 x\n", 2, "'x' is no such number; expected finite float32"),
        (b"a 1 2\nb 3 4,5\n", 2, "'4,5' is no such number"),
        (b"a 1 2\nb 3 nan\n", 2, "'nan' is no such number"),
        (b"a 1 2\nb 3 NaN\n", 2, "'NaN' is no such number"),
        (b"a 1 2\nb -inf 3\n", 2, "'-inf' is no such number"),
        (b"a 1 2\nb 3 1e39\n", 2, "'1e39' is no such number"),
        (b"a 1 2\nb 3 1e999\n", 2, "'1e999' is no such number"),
        (b"a 1 2\nb 3 0x10\n", 2, "'0x10' is no such number"),
        (
            b"a 1 2\n" * 3000 + b"".join(b"b%d 1 2\n" % i for i in range(3000)) + b"c 1 ?\n",
            6001,
            "'?' is no such",
        ),
        (b"word\n", 1, "0 numbers behind a word; expected 1 to"),
        (b"a b c\n", 1, "0 numbers behind a word"),
        (b"a 1 2\nb\xe9 3 4\n", 2, "byte 0xe9 at byte 2 of the line is not UTF-8"),
        (b"a 1 2\nb\0 3 4\n", 2, "NUL character"),
        (b"a 1 2\rb 3 4\r", 1, "carriage return"),
        (b"\xff\xfea\0 \0", 1, "UTF-16"),
        (b"2 0\na 1\n", 1, "vectors of '0' numbers; expected 1 to"),
        (b"2 99999999\na 1\n", 1, "vectors of '99999999' numbers"),
        (b"3 2\na 1 2\n", None, "1 vectors, where the first line says 3; expected as many"),
        (b"1 2\na 1 2\nb 1 2\n", None, "2 vectors, where the first line says 1"),
        (b"2 3\na 1 2\nb 1 2\n", 2, "2 numbers behind a word; expected 3"),
        (b"2 2\n", None, "0 vectors, where the first line says 2"),
        (b"0 2\n", None, "the file holds no vectors"),
        (b"", None, "the file holds no vectors"),
        (b"\n\n", None, "the file holds no vectors"),
        (b"a " + b"x" * 2**24 + b" 1\n", 1, "more than 16,777,216 bytes"),
        (b"PK\x03\x04" + b"\0" * 30, 1, "a zip archive"),
        (gzip.compress(PLAIN), 1, "gzip data"),
    ],
)
def test_malformed_text(data: bytes, line: int | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.vec"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_word_vectors(path)
    place = f"{path}: " if line is None else f"{path}:{line}: "
    assert str(caught.value).startswith(place) and words in str(caught.value), str(caught.value)
    assert str(caught.value).isprintable() and "; expected " in str(caught.value)


@pytest.mark.parametrize("name", ["a.vec", "a.npz", "a.vec.gz"])
def test_files_that_are_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path / name}: .*; expected"):
        load_word_vectors(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"^{tmp_path / name}: .*; expected"):
        load_word_vectors(tmp_path / name)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


WORDS = np.array(["the", "of", "and"])
GOOD = npz(words=WORDS, vectors=ROWS)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    words, vectors = load(path, GOOD)
    assert words == ["the", "of", "and"] and np.array_equal(vectors, ROWS)
    assert load(path, npz(words=WORDS, vectors=ROWS.astype(np.float64)), max_words=2)[0] == ["the", "of"]
    words, vectors = load(path, npz(words=WORDS, vectors=ROWS, more=ROWS), words={"and", "x"})
    assert words == ["and"] and np.array_equal(vectors, ROWS[2:])
    words, vectors = load(path, npz(words=np.array(["a", "b", "a"]), vectors=ROWS))
    assert words == ["a", "b"] and np.array_equal(vectors, ROWS[:2])


def _zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name + ".npy", data)
    return file.getvalue()


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def _lying() -> bytes:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 99999), }"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch evil",)


BAD_NPZ: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read"),
    "text": (PLAIN, "cannot be read"),
    "cut": (GOOD[:-40], "cannot be read"),
    "cut in the middle": (GOOD[: len(GOOD) // 2], "cannot be read"),
    "an .npy": (_npy(ROWS), "cannot be read"),
    "a pickle": (pickle.dumps(_Evil()), "cannot be read"),
    "no words": (npz(vectors=ROWS), "no array 'words' among vectors"),
    "no vectors": (npz(words=WORDS), "no array 'vectors' among words"),
    "objects": (
        _zipped(words=_npy(np.array([_Evil(), "a", "b"], dtype=object)), vectors=_npy(ROWS)),
        "cannot be read",
    ),
    "words are bytes": (npz(words=WORDS.astype("S"), vectors=ROWS), "holds words |S3[3]"),
    "words are numbers": (npz(words=np.arange(3), vectors=ROWS), "holds words int64[3]"),
    "words in a matrix": (npz(words=WORDS[:, None], vectors=ROWS), "[3, 1] and vectors"),
    "vectors are integers": (npz(words=WORDS, vectors=ROWS.astype(int)), "vectors int64[3, 3]"),
    "vectors are flat": (npz(words=WORDS, vectors=ROWS[:, 0]), "vectors float32[3]"),
    "fewer vectors": (npz(words=WORDS, vectors=ROWS[:2]), "vectors float32[2, 3]"),
    "vectors of no numbers": (npz(words=WORDS, vectors=ROWS[:, :0]), "vectors float32[3, 0]"),
    "nothing": (npz(words=WORDS[:0], vectors=ROWS[:0]), "vectors float32[0, 3]"),
    "NaN": (npz(words=WORDS, vectors=np.where(ROWS == 2, np.nan, ROWS)), ":2: the vector is not finite"),
    "beyond float32": (
        npz(words=WORDS, vectors=ROWS.astype(np.float64) * 1e300),
        ":1: the vector is not finite",
    ),
    "a shape that lies": (_zipped(words=_npy(WORDS), vectors=_lying()), "cannot be read"),
    "a bomb": (
        _zipped(words=_npy(WORDS), vectors=_npy(np.zeros((2**18, 100), dtype=np.float32))),
        "more than 200 times its size",
    ),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_malformed_npz(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, words = BAD_NPZ[name]
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_word_vectors(path)
    assert str(caught.value).startswith(f"{path}:") and words in str(caught.value), str(caught.value)
    assert str(caught.value).isprintable() and "; expected " in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_shared_vectors() -> None:
    folder = DATA / "bli/vectors"
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set XFER_DATA")
    for name, rows in (("es-en.en", 6637), ("es-en.es", 4774), ("zh-en.en", 5154), ("zh-en.zh", 3349)):
        words, vectors = load_word_vectors(folder / f"{name}.npz")
        assert vectors.shape == (rows, 50) and len(set(words)) == rows
