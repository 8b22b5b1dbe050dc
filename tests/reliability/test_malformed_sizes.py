"""Files that are large, or made to be slow: time linear in the size, memory that does not grow with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from xferkit.data.errors import DataError
from xferkit.data.readers.blocks import BLOCK_BYTES
from xferkit.data.records import read_records

MIB = 2**20
ANY = {"max_line_bytes": 2**30}
TAGGING = {"task": "tagging", **ANY}


@dataclass(frozen=True)
class Hard:
    """A file of about n bytes, and how it is read."""

    name: str
    make: Callable[[int], bytes]
    options: dict[str, Any] = field(default_factory=dict)


def _unknown(n: int) -> bytes:
    return b"a\tlabel1\n" + b"".join(b"t\tlabe%d\n" % i for i in range(n // 12))


def _twice_in_an_object(n: int) -> bytes:
    return b'{"text": "a", "label": "b", ' + b'"x": 1, ' * (n // 8) + b'"y": 1}'


NAMES = [f"label{i}" for i in range(3000)]
HARD = {
    "one long text": Hard("f.tsv", lambda n: b"x" * n + b"\tpos\n", ANY),
    "one long text, CRLF and not UTF-8": Hard("f.tsv", lambda n: b"x" * n + b"\xff\tpos\r\n", ANY),
    "one line of tabs": Hard("f.tsv", lambda n: b"\t" * n, ANY),
    "nothing but line feeds": Hard("f.tsv", lambda n: b"\n" * n),
    "nothing but carriage returns": Hard("f.tsv", lambda n: b"\r" * n, ANY),
    "nothing but NUL": Hard("f.tsv", lambda n: b"\0" * n, ANY),
    "NUL on every line": Hard("f.tsv", lambda n: b"a\tb\n" + b"a\tb\0\n" * (n // 5)),
    "byte order mark on every line": Hard("f.tsv", lambda n: b"a\tb\n" + b"\xef\xbb\xbfa\tb\n" * (n // 7)),
    "a row without label on every line": Hard("f.tsv", lambda n: b"a\tb\n" + b"abc\n" * (n // 4)),
    "another unknown label on every line": Hard("f.tsv", _unknown, {"allowed_labels": NAMES}),
    "CSV: one long quoted text": Hard("f.csv", lambda n: b'"' + b"x" * n + b'",pos\n', ANY),
    "CSV: a quoted text of many lines": Hard("f.csv", lambda n: b'"' + b"xyz\n" * (n // 4) + b'",pos\n', ANY),
    "CSV: doubled quotes": Hard("f.csv", lambda n: b'"' + b'""' * (n // 2) + b'",pos\n', ANY),
    "CSV: quotes alone": Hard("f.csv", lambda n: b'"' * (n // 2 * 2 + 1), ANY),
    "CSV: a quote on every line": Hard("f.csv", lambda n: b"a,b\n" + b'x,"abc\n' * (n // 7)),
    "CSV: never closed": Hard("f.csv", lambda n: b'a,b\n"' + b"abc,d\n" * (n // 6), ANY),
    "CSV: doubled quotes on every line behind one": Hard(
        "f.csv", lambda n: b'a,b\n"' + b'x ""y"",b\n' * (n // 10), ANY
    ),
    "CSV: never closed, within small rows": Hard(
        "f.csv", lambda n: b"a,b\n" + (b'"x,b\n' + b"abc,d\n" * 400) * (n // 2400), {"max_line_bytes": 1000}
    ),
    "CSV: one line of commas": Hard("f.csv", lambda n: b"," * n, ANY),
    "CSV: quoted cells on one line": Hard("f.csv", lambda n: b'"a",' * (n // 4), ANY),
    "JSON: one long text": Hard("f.jsonl", lambda n: b'{"text": "' + b"x" * n + b'", "label": "a"}', ANY),
    "JSON: escapes": Hard(
        "f.jsonl", lambda n: b'{"text": "' + rb"\u00e9" * (n // 6) + b'", "label": "a"}', ANY
    ),
    "JSON: brackets": Hard("f.jsonl", lambda n: b"[" * n, ANY),
    "JSON: brackets on every line": Hard("f.jsonl", lambda n: (b"[" * 5000 + b"\n") * (n // 5001)),
    "JSON: a key again and again": Hard("f.jsonl", _twice_in_an_object, ANY),
    "JSON: many keys": Hard(
        "f.jsonl", lambda n: b"{" + b", ".join(b'"k%07d": 1' % i for i in range(n // 13)) + b"}", ANY
    ),
    "JSON: another missing key on every line": Hard(
        "f.jsonl", lambda n: b"".join(b'{"text": "a", "labl%06d": 1}\n' % i for i in range(n // 30))
    ),
    "JSON: digits": Hard("f.jsonl", lambda n: b'{"text": "a", "label": ' + b"9" * n + b"}", ANY),
    "CoNLL: one endless sentence": Hard("f.conll", lambda n: b"a\tO\n" * (n // 4), TAGGING),
    "CoNLL: one long token": Hard("f.conll", lambda n: b"a" * n + b"\tO\n", TAGGING),
    "CoNLL: one line of spaces": Hard("f.conll", lambda n: b"a O\n" + b" " * n, TAGGING),
    "CoNLL: one line of columns": Hard("f.conll", lambda n: b"a O\n\n" + b"b " * (n // 2), TAGGING),
    "CoNLL: every sentence bad": Hard("f.conll", lambda n: b"a\tO\n\n" + b"b\n\n" * (n // 3), TAGGING),
    "CoNLL: comments alone": Hard("f.conll", lambda n: b"# comment\n" * (n // 10), TAGGING),
    "CoNLL: documents alone": Hard("f.conll", lambda n: b"-DOCSTART- O\n\n" * (n // 14), TAGGING),
    "CoNLL-U: a wrong ID on every line": Hard(
        "f.conllu", lambda n: (b"7\ta" + b"\t_" * 8 + b"\n\n") * (n // 21), TAGGING
    ),
    "text: one line": Hard("f.txt", lambda n: b"a b " * (n // 4), {"labelled": False, **TAGGING}),
    "gzip: a bomb of one line": Hard("f.txt.gz", lambda n: _bomb(n), {"labelled": False}),
}


def _bomb(n: int) -> bytes:
    import gzip

    return gzip.compress(b"x" * n * 8, 1)


def _seconds(path: Path, options: dict[str, Any], times_read: int = 3) -> float:
    """Processor time of reading in skip mode; the least of some, since other processes get in the way."""
    times = []
    for _ in range(times_read):
        start = time.process_time()
        reader = read_records(path, mode="skip", **options)
        try:
            for _ in reader:
                pass
        except DataError:
            pass
        times.append(time.process_time() - start)
        report = reader.report
        assert report.rows_in == report.rows_out + report.rejected
    return min(times)


def _check_linear(name: str, folder: Path, small: int, large: int) -> None:
    hard = HARD[name]
    times = []
    for n in (small, large):
        path = folder / hard.name
        path.write_bytes(hard.make(n))
        times.append(_seconds(path, hard.options, 3 if n < MIB else 1))
    # Quadratic time would take the square of the ratio. Below a hundredth of a second all is noise.
    ratio = large / small
    print(f"{name}: {times[0]:.3f} s for {small / MIB:g} MiB, {times[1]:.3f} s for {large / MIB:g} MiB")
    assert times[1] <= 3 * ratio * max(times[0], 0.01), times


@pytest.mark.parametrize("name", HARD)
def test_time_is_linear(name: str, tmp_path: Path) -> None:
    _check_linear(name, tmp_path, MIB // 64, MIB // 2)


@pytest.mark.long
@pytest.mark.parametrize("name", HARD)
def test_time_is_linear_up_to_64_mib(name: str, tmp_path: Path) -> None:
    # A line may have 64 MiB; files of many lines tell as much at a quarter of that.
    one_line = HARD[name].make(1000).count(b"\n") < 5
    _check_linear(name, tmp_path, 4 * MIB if one_line else MIB, 64 * MIB if one_line else 16 * MIB)


CHILD = """
import json, re, sys, time
from pathlib import Path
from xferkit.data.records import read_records
from xferkit.data.errors import DataError
def peak():  # not ru_maxrss: a child starts with that of its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
path, options = sys.argv[1], json.loads(sys.argv[2])
told = [0]
for _ in read_records(sys.argv[3], **options): pass  # warm
before = peak()
start = time.process_time()
reader = read_records(path, on_progress=lambda done, total: told.__setitem__(0, done), **options)
said = ""
try:
    for _ in reader: pass
except DataError as error:
    said = str(error)
seconds = time.process_time() - start
grown = peak() - before
report = reader.report
print(json.dumps({"grown": grown / 1024, "seconds": seconds, "said": said, "read": told[0],
                  "rows": [report.rows_in, report.rows_out, report.rejected]}))
"""


def _in_a_child(path: Path, small: Path, **options: Any) -> dict[str, Any]:
    """Read in a process of its own, whose memory nobody else fills; MiB grown, seconds, what was said."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), json.dumps(options), str(small)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    print(path.name, found)
    return found


GOOD_LINES: dict[str, tuple[bytes, bytes, dict[str, Any]]] = {
    "f.tsv": (b"one of the texts\tpos\n", b"x" * 64 * MIB + b"\tpos\n", {}),
    "f.csv": (b'"one, of the texts",pos\n', b'"' + b"x" * 64 * MIB + b'",pos\n', {}),
    "f.jsonl": (
        b'{"text": "one", "label": "pos"}\n',
        b'{"text": "' + b"x" * 64 * MIB + b'", "label": "a"}\n',
        {},
    ),
    "f.conll": (b"one\tO\n\n", b"x" * 64 * MIB + b"\tO\n\n", {"task": "tagging"}),
    "f.conllu": (
        b"1\tone\t_\tX\t_\t_\t_\t_\t_\t_\n\n",
        b"1\t" + b"x" * 64 * MIB + b"\t_\tX\t_\t_\t_\t_\t_\t_\n\n",
        {"task": "tagging"},
    ),
    "f.txt": (b"one of the texts\n", b"x" * 64 * MIB + b"\n", {"labelled": False}),
}


@pytest.mark.parametrize("name", GOOD_LINES)
def test_a_line_of_64_mib_is_refused_without_being_held(name: str, tmp_path: Path) -> None:
    good, bad, options = GOOD_LINES[name]
    small, path = tmp_path / name, tmp_path / f"big-{name}"
    small.write_bytes(good * 20_000)
    path.write_bytes(good * 3 + bad + good * 2)
    line = 3 * good.count(b"\n") + 1
    strict = _in_a_child(path, small, **options)
    wanted = f"{path}:{line}: the line has more than 16,777,216 bytes; expected shorter lines"
    assert strict["said"].startswith(wanted) and strict["rows"] == [4, 3, 1]
    # It is read until it is too long, kept until then, and no further.
    assert strict["read"] < 65 * MIB and strict["grown"] < 24 and strict["seconds"] < 2
    skip = _in_a_child(path, small, mode="skip", **options)
    assert skip["said"] == "" and skip["rows"] == [6, 5, 1]
    assert skip["read"] == path.stat().st_size and skip["grown"] < 24 and skip["seconds"] < 4
    tight = _in_a_child(path, small, mode="skip", max_line_bytes=100_000, **options)
    assert tight["rows"] == [6, 5, 1] and tight["grown"] < 4


@pytest.mark.long
@pytest.mark.parametrize("name", GOOD_LINES)
def test_a_million_lines_take_no_more_memory_than_four_blocks(name: str, tmp_path: Path) -> None:
    good, _, options = GOOD_LINES[name]
    small, path = tmp_path / name, tmp_path / f"big-{name}"
    # Some blocks: with less, the warm reading has not yet held what every longer one holds.
    small.write_bytes(good * (4 * BLOCK_BYTES // len(good) + 1))
    path.write_bytes(good * 1_000_000)
    found = _in_a_child(path, small, **options)
    assert found["rows"] == [1_000_000, 1_000_000, 0]
    assert found["grown"] < 2, "memory grows with the file"


@pytest.mark.long
def test_speed(tmp_path: Path) -> None:
    """An eighth of what a quiet machine does, so that a busy one passes."""
    path = tmp_path / "f.tsv"
    path.write_bytes(b"ten words are in this text as in many others\tpos\n" * 200_000)
    assert 200_000 / _seconds(path, {}) > 100_000
    path = tmp_path / "f.conll"
    path.write_bytes((b"word\tNOUN\n" * 14 + b"\n") * 20_000)
    assert 300_000 / _seconds(path, {"task": "tagging"}) > 200_000
