"""Reading files: formats, columns, arguments, what is told on the way, and what becomes of files and handles."""

from __future__ import annotations

import gc
import gzip
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import xferkit.data
from xferkit.data import DataError, Record, read_records, with_progress
from xferkit.data.readers.gunzip import decompress
from xferkit.data.records import Columns, ReadReport


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


TABLE = "text\tlabel\none\tpos\ntwo\tneg\n"
SENTENCES = "Rome\tB-LOC\nis\tO\n\nold\tO\n"


def test_public_names() -> None:
    """The public names are there without any of them being imported by hand."""
    for name in (
        "Columns",
        "Corpus",
        "CorpusKey",
        "DataError",
        "ReadReport",
        "RecordReader",
        "load_word_vectors",
    ):
        assert name in xferkit.data.__all__ and getattr(xferkit.data, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "text", "options", "records"),
    [
        ("a.tsv", TABLE, {}, [Record((), "pos", 2, "one"), Record((), "neg", 3, "two")]),
        ("a.TSV", TABLE, {"labelled": False}, [Record((), None, 2, "one"), Record((), None, 3, "two")]),
        ("a.csv", 'text,label\n"a, b",pos\n', {}, [Record((), "pos", 2, "a, b")]),
        ("a.csv", '"a\nb",pos\nc,neg\n', {}, [Record((), "pos", 1, "a\nb"), Record((), "neg", 3, "c")]),
        ("a.jsonl", '{"text": "a", "label": 1}\n', {}, [Record((), "1", 1, "a")]),
        ("a.json", '{"sentence": "a", "class": "x"}\n', {}, [Record((), "x", 1, "a")]),
        ("a.txt", "a b\n\nc\n", {"labelled": False}, [Record((), None, 1, "a b"), Record((), None, 3, "c")]),
        ("a.txt", "a b\n", {"labelled": False, "task": "tagging"}, [Record(("a", "b"), None, 1)]),
        ("a.data", TABLE, {"format": "tsv"}, [Record((), "pos", 2, "one"), Record((), "neg", 3, "two")]),
    ],
)
def test_classification(
    name: str, text: str, options: dict[str, Any], records: list[Record], tmp_path: Path
) -> None:
    assert list(read_records(write(tmp_path / name, text), **options)) == records


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob", "a.iob2", "a.tsv", "a.CoNLL"])
def test_tagging(name: str, tmp_path: Path) -> None:
    wanted = [Record(("Rome", "is"), ("B-LOC", "O"), 1), Record(("old",), ("O",), 4)]
    assert list(read_records(write(tmp_path / name, SENTENCES), task="tagging")) == wanted
    unlabelled = read_records(tmp_path / name, task="tagging", labelled=False)
    assert [(r.tokens, r.labels) for r in unlabelled] == [(w.tokens, None) for w in wanted]


def test_tagging_of_conllu(tmp_path: Path) -> None:
    rest = "\t_\t_\t0\troot\t_\t_\n"
    text = f"# sent_id = 1\n1-2\tdel\t_\t_{rest}1\tde\t_\tADP{rest}2\tel\t_\tDET{rest}2.1\tx\t_\tX{rest}\n"
    path = write(tmp_path / "a.conllu", text)
    assert list(read_records(path, task="tagging")) == [Record(("de", "el"), ("ADP", "DET"), 3)]


def test_lists_in_a_table(tmp_path: Path) -> None:
    text = "intent\ttokens\tslots\nask\tin New  York\tO B-LOC I-LOC\n"
    path = write(tmp_path / "a.tsv", text)
    record = Record(("in", "New", "York"), ("O", "B-LOC", "I-LOC"), 2)
    assert list(read_records(path, task="tagging")) == [record]
    columns = Columns(text="tokens", label="intent")
    assert list(read_records(path, columns=columns)) == [Record((), "ask", 2, "in New  York")]
    path = write(tmp_path / "b.csv", text.replace("\t", ","))
    assert list(read_records(path, task="tagging")) == [record]


def test_words() -> None:
    assert Record((), None, 1, " a  b\u00a0c ").words() == ("a", "b", "c")
    assert Record(("a b", "c"), None, 1).words() == ("a b", "c")


def test_compressed_files_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(TABLE.encode()))
    assert [r.text for r in read_records(path)] == ["one", "two"]


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 2**18])
@pytest.mark.parametrize("chunk_bytes", [1, 5, 2**18])
def test_gzip_in_pieces_of_any_size(chunk_bytes: int, piece_bytes: int) -> None:
    """What zlib still holds when all its input is in comes out; members and padding may begin anywhere."""
    rows = b"".join(b"row %d\n" % i for i in range(60)) + b"a" * 4000
    packed = gzip.compress(rows, mtime=0)
    for data, wanted in (
        (packed, rows),
        (packed * 2, rows * 2),
        (packed + bytes(40), rows),
        (packed + bytes(40) + packed, rows * 2),
    ):
        chunks = (data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes))
        pieces = list(decompress(chunks, "f.gz", piece_bytes, lambda: 1))
        assert b"".join(pieces) == wanted
        assert all(0 < len(piece) <= piece_bytes for piece in pieces)
    for data in (packed[:-1], packed[:-9], packed + packed[:5]):
        chunks = (data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes))
        with pytest.raises(DataError, match="end in the middle"):
            list(decompress(chunks, "f.gz", piece_bytes, lambda: 1))


def test_a_reader_can_be_gone_through_again(tmp_path: Path) -> None:
    reader = read_records(write(tmp_path / "a.tsv", TABLE + "three\n"), mode="skip")
    assert reader.report == ReadReport(reader.path)
    first = list(reader)
    report = reader.report
    assert first == list(reader) and report == reader.report
    assert (report.rows_in, report.rows_out, report.rejected) == (3, 2, 1)
    assert dict(report.reasons) == {"missing columns": 1} and report.examples[0][0] == 4
    assert report.summary() == f"{reader.path}: 2 of 3 rows read, 1 left out (1 missing columns)"


def test_the_report_is_right_at_any_moment(tmp_path: Path) -> None:
    reader = read_records(
        write(tmp_path / "a.tsv", "x\n" + "a\tb\n" * 5), mode="skip", columns=Columns(header=False)
    )
    for n, _ in enumerate(reader, 1):
        report = reader.report
        assert (report.rows_in, report.rows_out, report.rejected) == (n + 1, n, 1)
    broken = iter(reader)
    next(broken)
    list(reader)
    next(broken)  # an older iteration does not count into the newer one's report
    assert reader.report.rows_out == 5


def test_only_so_many_rejected_rows_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "x\n" * 50)
    reader = read_records(path, mode="skip", keep_rejected=3)
    assert list(reader) == [] and reader.report.rejected == 50
    assert [line for line, _ in reader.report.examples] == [2, 3, 4]


def test_labels_are_kept_in_memory_once(tmp_path: Path) -> None:
    records = list(read_records(write(tmp_path / "a.tsv", "one\tpositive\n" * 3)))
    assert records[0].labels is records[2].labels


def test_more_labels_than_are_remembered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "".join(f"t\tlabel{i}\n" for i in range(70_000)))
    assert [r.labels for r in read_records(path)] == [f"label{i}" for i in range(70_000)]


def test_files_are_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TABLE * 2 + "bad\n")
    before = len(os.listdir("/proc/self/fd"))
    records = iter(read_records(path))
    next(records)
    del records
    with pytest.raises(DataError):
        list(read_records(path))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "a.tsv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(TABLE))
    writer.start()
    told: list[tuple[int, int | None]] = []
    records = list(read_records(pipe, on_progress=lambda done, total: told.append((done, total))))
    writer.join()
    assert len(records) == 2 and told == [(len(TABLE), None)]


def test_a_file_that_cannot_be_read_on() -> None:
    with pytest.raises(
        DataError, match=r"^/proc/self/mem:1: the file cannot be read on \(Input/output error\)"
    ):
        list(read_records("/proc/self/mem", format="text", labelled=False))


@contextmanager
def _nobody() -> Iterator[None]:
    """The super-user may read everything; for a moment this process is someone else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TABLE)
    path.chmod(0)
    with (
        _nobody(),
        pytest.raises(
            DataError, match=r"cannot be opened \(Permission denied\); expected a file that you may"
        ),
    ):
        list(read_records(path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "tvs"}, "format must be one of auto, tsv, .* got 'tvs' \\(did you mean 'tsv'"),
        ({"format": "excel"}, "format must be one of .* got 'excel'$"),
        ({"task": "taging"}, "did you mean 'tagging'"),
        ({"mode": "stirct"}, "did you mean 'strict'"),
        ({"max_line_bytes": 0}, "max_line_bytes must be at least 1, got 0"),
        ({"max_tokens": -1}, "max_tokens must be at least 1"),
        ({"allowed_labels": "pos"}, "allowed_labels must be a list of labels, got 'pos'"),
        ({"encoding": "utf8x"}, "encoding must be .* got 'utf8x'"),
        ({"encoding": "latin-2000"}, "did you mean 'latin-1'"),
        ({"encoding": "utf-16"}, "encoding must be one that keeps ASCII.*iconv"),
        ({"encoding": "utf-7"}, "one that keeps ASCII"),
        ({"encoding": "unicode_escape"}, "one that keeps ASCII"),
        ({"encoding": "raw_unicode_escape"}, "one that keeps ASCII"),
        ({"encoding": "cp037"}, "one that keeps ASCII"),
        ({"encoding": "hex"}, "one that keeps ASCII"),
        ({"columns": Columns(text=1.5)}, "text must be the name or the number of a column, got 1.5"),  # type: ignore[arg-type]
        ({"columns": Columns(label=True)}, "label must be the name or the number of a column, got True"),
        ({"columns": Columns(text="a", label="a")}, "text and label must be different columns, got 'a'"),
        ({"columns": Columns(tokens=1, tags=1)}, "tokens and tags must be different columns"),
        ({"columns": Columns(text="a", header=False)}, "'a', but header=False"),
        ({"columns": Columns(text=0), "format": "jsonl"}, "must be a name in the format 'jsonl', got the number 0"),
        ({"columns": Columns(delimiter=",")}, "delimiter must be .* a tab for tsv"),
        ({"columns": Columns(delimiter=";;"), "format": "csv"}, "delimiter must be one character for csv"),
        ({"columns": Columns(delimiter='"'), "format": "csv"}, "delimiter must be one character for csv"),
        ({"columns": Columns(delimiter=","), "format": "conll"}, "a tab or a space for conll"),
        ({"columns": Columns(delimiter=","), "format": "jsonl"}, "nothing for other formats"),
        ({"columns": Columns(comment="")}, "comment must be the beginning"),
    ],
)  # fmt: skip
def test_arguments(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_records(write(tmp_path / "a.tsv", TABLE), **options)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "a\0b.tsv", b"a.tsv"])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(DataError, match="path must be the name of a file"):
        read_records(path)


def test_an_error_survives_a_process_boundary(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read_records(write(tmp_path / "a.tsv", "text\tlabel\nx\n")))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert (copy.path, copy.line, copy.reason) == (str(tmp_path / "a.tsv"), 2, "missing columns")


def test_odd_file_names_stay_on_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a\nb\x1b[31m.tsv", "text\tlabel\nx\n")
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert str(caught.value).isprintable() and "a\\nb" in str(caught.value)


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "some text\tpos\n" * 60_000)
    size = path.stat().st_size
    told: list[tuple[int, int | None]] = []
    reader = read_records(path, on_progress=lambda done, total: told.append((done, total)))
    assert len(list(reader)) == 60_000
    assert [total for _, total in told] == [size] * len(told) and told[-1][0] == size
    assert [done for done, _ in told] == sorted({done for done, _ in told}) and len(told) == -(-size // 2**18)
    packed = tmp_path / "a.tsv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    told.clear()
    list(read_records(packed, on_progress=lambda done, total: told.append((done, total))))
    assert told[-1] == (packed.stat().st_size,) * 2  # of the bytes on the disk


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_with_progress_draws_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    path = write(tmp_path / "a[b].tsv", "some text\tpos\n" * 60_000)
    screen = _Terminal()
    assert sum(1 for _ in with_progress(read_records(path), file=screen)) == 60_000
    assert "reading a[b].tsv" in screen.getvalue() and "100%" in screen.getvalue()


def test_with_progress_writes_lines_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tsv", "some text\tpos\n" * 60_000)
    screen = io.StringIO()
    list(with_progress(read_records(path), file=screen))
    assert screen.getvalue() == "", "a file that is read at once needs no line"
    now = iter(range(0, 1000, 5))
    monkeypatch.setattr("xferkit.data.readers.progress.time.monotonic", lambda: float(next(now)))
    list(with_progress(read_records(path), file=screen, title="corpus"))
    lines = screen.getvalue().splitlines()
    assert len(lines) == 2, lines  # at 5 s and 15 s of 20 s
    assert lines[0] == "corpus  31 %  11 s left" and lines[1].startswith("corpus  94 %")


def test_with_progress_silent_and_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = read_records(write(tmp_path / "a.tsv", TABLE))
    assert len(list(with_progress(reader, kind="silent"))) == 2
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="progress must be 'auto', 'rich', 'plain' or 'silent', got 'loud'"):
        with_progress(reader, kind="loud")  # type: ignore[arg-type]


def test_reading_needs_neither_torch_nor_rich(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TABLE)
    code = (
        "import sys; from xferkit.data.records import read_records\n"
        f"print(len(list(read_records({str(path)!r}))), sorted({{'torch', 'rich', 'datasets'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
