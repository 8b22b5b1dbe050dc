"""``xferkit diagnose``: what its options make of files as people have them, and advice that it can follow itself."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from toy_diagnosis import sentences

from xferkit.cli import main
from xferkit.diagnosis import pipeline
from xferkit.diagnosis.config import DiagnosisConfig, open_problem


def table(name: str, between: str = "\t", header: str = "text\tlabel") -> str:
    lines = [header, *(f"caf\u00e9 {text}\t{label}" for text, label in sentences(name, 150))]
    return "\n".join(lines).replace("\t", between) + "\n"


def write(folder: Path, *, encoding: str = "utf-8", suffix: str = ".tsv", **options: str) -> Path:
    folder.mkdir()
    for name in ("books", "dvd"):
        (folder / f"{name}{suffix}").write_text(table(name, **options), encoding=encoding)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DiagnosisConfig, Any]]:
    """Diagnoses that were asked for, of which the data were read and nothing was trained."""
    found = []

    def run(config: DiagnosisConfig, out: Path, *, data: Any, **_: Any) -> Path:
        found.append((config, open_problem(config, data)))
        return out / "report.html"

    monkeypatch.setattr(pipeline, "run_diagnosis", run)
    return found


def diagnose(*words: object) -> int:
    return main(["diagnose", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence."""
    assert diagnose(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("xferkit diagnose: ")
    return error


def test_files_of_another_encoding(
    tmp_path: Path, asked: list[tuple[DiagnosisConfig, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", write(tmp_path / "data", encoding="latin-1"), "--target", "books")
    error = refused(capsys, *words)
    assert (
        "books.tsv:2: byte 0xe9 at byte 4 of the line is not UTF-8; expected UTF-8 text (or the enc" in error
    )
    advice = re.search(r"--encoding \S+", error.replace(",", ""))
    assert advice is not None and "(149 more such rows in this file)" in error
    assert diagnose(*words, *advice[0].split()) == 0
    ((config, problem),) = asked
    assert config.options == {"encoding": "latin-1"} and problem.texts("books")[0].startswith("caf\u00e9 ")
    assert "got 'klingon'" in refused(capsys, *words, "--encoding", "klingon")
    assert "read as iso8859-1" in refused(
        capsys, "--data", write(tmp_path / "mark", encoding="utf-8-sig"), *words[2:], "--encoding", "latin-1"
    )


def test_the_option_goes_before_the_file(
    tmp_path: Path, asked: list[tuple[DiagnosisConfig, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "d.yaml"
    config.write_text("target: books\noptions: {encoding: latin-1, columns: {delimiter: ','}}\n")
    data = write(tmp_path / "data", encoding="utf-8")
    assert diagnose(config, "--data", data, "--encoding", "utf-8") == 0
    assert asked[0][0].options == {"encoding": "utf-8", "columns": {"delimiter": ","}}
    config.write_text("problem: names\ntarget: en\n")
    assert "--encoding is for texts; " in refused(capsys, config, "--encoding", "latin-1")


def test_a_missing_column_is_named_at_the_command_line(
    tmp_path: Path, asked: list[tuple[DiagnosisConfig, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", write(tmp_path / "data", header="text\tstars"), "--target", "books")
    error = refused(capsys, *words)
    assert "books.tsv:1: no column for the label (label, class, intent) among text, stars" in error
    assert "expected it, or --columns label=... " in error and " with the name of another column" in error
    assert diagnose(*words, "--columns", "label=stars") == 0
    assert diagnose(*words, "--columns", "text=0", "label=-1", "header=true") == 0
    assert [problem.classes for _, problem in asked] == [("neg", "pos")] * 2


def test_a_missing_key_is_named_at_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "books.jsonl").write_text('{"text": "a", "stars": "b"}\n' * 3)
    error = refused(capsys, "--data", tmp_path, "--target", "books")
    assert (
        "books.jsonl:1: no key for the label among text, stars; expected the key label or class or " in error
    )
    assert "or --columns label=... " in error and "(2 more such rows in this file)" in error


@pytest.mark.parametrize("given", [(), ("--columns", "text=text", "label=label")])
def test_another_delimiter_is_named_at_the_command_line(
    tmp_path: Path,
    given: tuple[str, ...],
    asked: list[tuple[DiagnosisConfig, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--data", write(tmp_path / "data", suffix=".csv", between=";"), "--target", "books")
    error = refused(capsys, *words, *given)
    assert (
        "books.csv:1: " in error and "(the line holds ';': if that is the delimiter, name it with " in error
    )
    advice = re.search(r"--columns '(delimiter=;)'", error)
    assert advice is not None
    assert diagnose(*words, *(given or ("--columns",)), advice[1]) == 0
    assert asked[0][1].classes == ("neg", "pos")


def test_tabs_in_a_csv_are_no_delimiter_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--data", write(tmp_path / "data", suffix=".csv"), "--target", "books")
    assert "(the line holds '\\t': is that the delimiter, as in a .tsv?); expected 2" in refused(
        capsys, *words
    )


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("tags=1", "unknown name 'tags'; names are text, label, header, delimiter"),
        (
            "labels=1",
            "unknown name 'labels'; the nearest is 'label'; names are text, label, header, delimiter",
        ),
        ("delimiter=;;", "delimiter must be one character for csv"),
        ("header=x", "header is 'x'; expected true or false"),
    ],
)
def test_columns_that_cannot_be(
    tmp_path: Path, word: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", suffix=".csv", between=",")
    assert sentence in refused(capsys, "--data", data, "--target", "books", "--columns", word)


@pytest.mark.parametrize("command", ["diagnose", "evaluate", "predict"])
def test_the_help_names_what_columns_take(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    found = " ".join(capsys.readouterr().out.split())
    said = found.partition("what is where: ")[2].partition("--")[0]
    assert said.startswith("text") and "name or number of a column, counted from 0" in said
    assert all(name in said for name in ("label", "header=true", "delimiter=;"))
    assert "--encoding NAME" in found


def test_a_folder_or_a_table_as_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "my reviews")
    error = refused(capsys, folder, "--target", "books")
    assert f"{folder} is a folder; expected a YAML file (did you mean --data '{folder}'?)" in error
    for name in ("books.tsv", "books.CSV", "books.jsonl.gz", "books.txt"):
        error = refused(capsys, folder / name, "--target", "books")
        assert (
            f"{folder / name} is called like a file of texts; expected a YAML file, or --data with " in error
        )
        assert f"(did you mean --data '{folder}'?)" in error
    monkeypatch.chdir(folder)
    assert "(did you mean --data .?)" in refused(capsys, "books.tsv")
    assert "cannot be read as a folder" in refused(capsys, "--data", "books.tsv", "--target", "books")


def test_a_stray_file_stops_nothing(
    tmp_path: Path, asked: list[tuple[DiagnosisConfig, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "data")
    (folder / "m.json").write_text("{}")
    (folder / "n.json.gz").write_bytes(gzip.compress(b'{"step": 1}\n{"step": 2}\n'))
    assert diagnose("--data", folder, "--target", "books") == 0
    assert asked[0][1].tasks == ("books", "dvd") and "m.json, n.json.gz" in asked[0][1].describe()
    assert "among ;" not in refused(capsys, "--data", folder, "--target", "m")
