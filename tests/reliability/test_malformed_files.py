"""Every malformed file gives one sentence with file and line, or is counted out; no row is lost in silence."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import malformed_common
import malformed_json
import malformed_sentences
import malformed_tables
import pytest
from harness import planned
from malformed_common import KINDS, Case, Kind
from malformed_fuzz import GOOD, damaged_gzip, fuzzed
from slow_lines import Bad, Good, Options
from slow_readers import slow_read

import xferkit.data.readers.blocks
from xferkit.data.errors import DataError
from xferkit.data.records import Record, RecordReader, read_records

OWN = {
    "tsv": malformed_tables.tsv_cases,
    "csv": malformed_tables.csv_cases,
    "jsonl": malformed_json.jsonl_cases,
    "conll": malformed_sentences.conll_cases,
    "conllu": malformed_sentences.conllu_cases,
    "text": malformed_sentences.text_cases,
    "lists": malformed_sentences.lists_cases,
}
CASES = {
    (kind.name, name): (kind, case)
    for kind in KINDS
    for name, case in {
        **malformed_common.line_cases(kind),
        **malformed_common.file_cases(kind),
        **OWN[kind.name](),
    }.items()
}
FAST, MANY = 60, 5000


def test_there_are_sixty_different_files_for_each_reader() -> None:
    counts = Counter(kind for kind, _ in CASES)
    print(dict(counts))
    for kind in KINDS:
        mine = [case for (name, _), (_, case) in CASES.items() if name == kind.name]
        different = {(repr(case.content), repr(case.options), case.name) for case in mine}
        assert len(different) == len(mine) >= 60, kind.name
        # Files that are merely accepted do not count alone.
        assert sum(bool(case.words) for case in mine) >= 60, kind.name


def _make(case: Case, kind: Kind, folder: Path) -> Path:
    path = folder / (case.name or kind.file)
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
    else:
        case.content(path)
    return path


def _read(
    path: Path, kind: Kind, case: Case, mode: str
) -> tuple[list[Record], RecordReader | None, DataError | None]:
    """What came, and what was said; anything but a DataError is a crash."""
    records: list[Record] = []
    reader = None
    try:
        reader = read_records(path, mode=mode, keep_rejected=10**6, **{**kind.options, **case.options})  # type: ignore[arg-type]
        for record in reader:
            records.append(record)
    except DataError as error:
        return records, reader, error
    return records, reader, None


def _check_sentence(error: DataError, path: Path, line: int | None, words: tuple[str, ...]) -> None:
    place = str(path) if line is None else f"{path}:{line}"
    assert str(error).startswith(f"{place}: "), f"{error} does not begin with {place}"
    assert error.path == str(path) and error.line == line
    assert "; expected " in str(error) and str(error).isprintable(), str(error)
    for word in words:
        assert word in str(error), f"{word!r} is not in {error}"


def _check_sums(reader: RecordReader, records: list[Record]) -> None:
    report = reader.report
    assert report.rows_in == report.rows_out + report.rejected
    assert report.rows_out == len(records)
    assert report.rejected == sum(report.reasons.values()) == len(report.examples)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_hand_made_file(kind: str, name: str, tmp_path: Path) -> None:
    made, case = CASES[kind, name]
    path = _make(case, made, tmp_path)
    records, reader, error = _read(path, made, case, "strict")
    if reader is not None:
        _check_sums(reader, records)
    if not case.words:
        assert error is None, str(error)
        assert len(records) == (case.rows[0] if case.rows else 4)
        assert any(case.holds in record.text or case.holds in record.tokens for record in records)
    else:
        assert error is not None, f"accepted: {records}"
        _check_sentence(error, path, case.line, case.words)

    skipped, reader, error = _read(path, made, case, "skip")
    if case.words and case.rows is None:
        assert error is not None
        _check_sentence(error, path, case.line, case.words)
        return
    assert error is None and reader is not None
    _check_sums(reader, skipped)
    assert (len(skipped), reader.report.rejected) == (case.rows or (4, 0))
    if reader.report.rejected:
        line, sentence = reader.report.examples[0]
        assert line == case.line
        _check_sentence(DataError(sentence, path=str(path), line=line), path, line, case.words)
    # Strict mode hands out what stands before the first bad row, and nothing else.
    assert skipped[: len(records)] == records


def _options(options: Options) -> dict[str, Any]:
    return {
        "format": options.format,
        "task": options.task,
        "labelled": options.labelled,
        "allowed_labels": options.allowed,
        "max_line_bytes": options.max_line_bytes,
        "max_tokens": options.max_tokens,
    }


def _check_against_slow_reader(kind: str, seed: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    made = fuzzed(kind, seed)
    path.write_bytes(made.data)
    monkeypatch.setattr(xferkit.data.readers.blocks, "BLOCK_BYTES", made.block_bytes)
    want = slow_read(made.data, made.options)
    good = [Record(row.tokens, row.labels, row.line, row.text) for row in want.rows if isinstance(row, Good)]
    bad = [row for row in want.rows if isinstance(row, Bad)]
    reader = read_records(path, mode="skip", keep_rejected=10**6, **_options(made.options))
    records, fault = [], False
    try:
        for record in reader:
            records.append(record)
    except DataError as error:
        fault = True
        assert str(error).isprintable()
    where = f"{kind}, seed {seed}: {made.data[:300]!r}"
    assert fault == want.fault, where
    assert records == good, where
    assert [line for line, _ in reader.report.examples] == [row.line for row in bad], where
    assert dict(reader.report.reasons) == Counter(row.reason for row in bad), where
    _check_sums(reader, records)

    strict = read_records(path, **_options(made.options))
    error = None
    before = []
    try:
        for record in strict:
            before.append(record)
    except DataError as caught:
        error = caught
    if bad:
        assert error is not None and (error.line, error.reason) == (bad[0].line, bad[0].reason), where
        assert before == [row for row in good if row.line < bad[0].line], where
    elif fault or not good:
        assert error is not None and before == good, where
    else:
        assert error is None and before == good, where
    return "fault" if fault else "bad rows" if bad else "good"


def _fuzz(kind: str, seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: Counter[str] = Counter()
    with planned(len(seeds), f"damaged {kind} files") as done:
        for seed in seeds:
            outcomes[_check_against_slow_reader(kind, seed, tmp_path / "f", monkeypatch)] += 1
            done.append(None)
    print(dict(outcomes))
    # A generator that only makes good files, or only hopeless ones, would test nothing.
    assert outcomes["bad rows"] >= len(seeds) // 10 and outcomes["good"] >= len(seeds) // 10


@pytest.mark.parametrize("kind", GOOD)
def test_damaged_files_are_read_as_the_slow_reader_reads_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fuzz(kind, range(FAST), tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("kind", GOOD)
def test_thousands_of_damaged_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fuzz(kind, range(FAST, FAST + MANY), tmp_path, monkeypatch)


def _gzip_fuzz(seeds: range, path: Path) -> None:
    outcomes: Counter[str] = Counter()
    with planned(len(seeds), "damaged gzip files") as done:
        for seed in seeds:
            plain, packed = damaged_gzip(seed)
            path.write_bytes(packed)
            lines = [line for line in plain.decode().split("\n") if line]
            texts: list[str] = []
            reader = read_records(path, labelled=False, format="text", mode="skip")
            outcome = "whole"
            try:
                for record in reader:
                    texts.append(record.text)
            except DataError as error:
                assert "gzip" in str(error) and str(error).startswith(f"{path}:"), str(error)
                outcome = "refused"
            # Damage may show only at the check sum; until then nothing may be lost or doubled in silence.
            if outcome == "whole":
                assert texts == lines, f"seed {seed}"
            outcomes[outcome] += 1
            done.append(None)
    print(dict(outcomes))
    assert min(outcomes["whole"], outcomes["refused"]) >= len(seeds) // 10


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    _gzip_fuzz(range(200), tmp_path / "f.gz")


@pytest.mark.long
def test_thousands_of_damaged_gzip_files(tmp_path: Path) -> None:
    _gzip_fuzz(range(200, 200 + MANY), tmp_path / "f.gz")


def test_kinds_differ() -> None:
    for one, other in itertools.combinations(KINDS, 2):
        assert one.whole() != other.whole()
