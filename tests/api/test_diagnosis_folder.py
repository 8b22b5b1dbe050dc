"""What in a folder is no task, which classes are spelled alike, and files of another encoding or delimiter."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from toy_diagnosis import GOOD, rows, sentences, write

from xferkit.data.errors import DataError
from xferkit.data.records import Columns
from xferkit.diagnosis import TextProblem, read_folder


def test_folders_of_classes_are_told_the_form(tmp_path: Path) -> None:
    for name in ("dvd", "books", ".git"):
        (tmp_path / name / "positive").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"but 2 folders \(books, dvd\); expected a file a task with a text and its"
    ):
        read_folder(tmp_path, "books")


STRAY = [
    "{}",
    '{\n "steps": 3,\n "loss": [1, 2]\n}',
    '{"step": 1}\n{"step": 2}\n',
    "[1, 2]",
    "",
    "no JSON",
    '"text"',
]


@pytest.mark.parametrize("content", STRAY)
@pytest.mark.parametrize("name", ["m.json", "M-test.JSON", "m.json.gz"])
def test_json_without_a_text_is_no_task(tmp_path: Path, content: str, name: str) -> None:
    write(tmp_path, GOOD)
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    problem = TextProblem(tmp_path, "books")
    assert list(problem.files) == ["books", "dvd"] and problem.passed_over == (str(tmp_path / name),)
    assert f"Passed over, as no text was found there: {name}. " in problem.describe()
    asked = TextProblem(tmp_path, "books", ["dvd"])
    assert asked.passed_over == () and "Passed over" not in asked.describe()
    with pytest.raises(DataError, match=name):
        read_folder(tmp_path, "books", [name[0]])
    with pytest.raises(DataError, match=name):
        read_folder(tmp_path, name[0])


def test_where_no_source_is_left_the_reader_says_why(tmp_path: Path) -> None:
    write(tmp_path, {"books.tsv": GOOD["books.tsv"], "m.json": "{}"})
    sentence = r"m.json:1: no key for the text in an empty object; expected the key text or .*--columns text="
    with pytest.raises(DataError, match=sentence):
        read_folder(tmp_path, "books")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m.jsonl", "{}\n{}\n", r"m.jsonl:1: no key for the text in an empty object; .* \(1 more such row"),
        (
            "m.json",
            '[{"text": "a", "label": "b"},\n',
            r"m.json:1: not JSON .* each line \(`jq -c '.\[\]'` makes that",
        ),
        (
            "m.json",
            '[{"text": "a", "label": "b"}]',
            r"m.json:1: a list instead of an object; .* \(`jq -c '.\[\]'`",
        ),
        ("m.json", '{"step": 1}\n{"text": "a"}\n', r"m.json:1: no key for the text among step"),
        ("m.json", '{"text": "' + "x" * 2**21 + '"}', r"m.json:1: no key for the label among text"),
        ("m.json.gz", "no gzip", r"m.json.gz"),
    ],
)
def test_what_was_meant_to_be_read_is_never_passed_over(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    write(tmp_path, {**GOOD, name: content})
    with pytest.raises(DataError, match=sentence):
        read_folder(tmp_path, "books")


def test_the_key_of_the_text_may_be_another(tmp_path: Path) -> None:
    lines = "".join(
        json.dumps({"review": text, "stars": label}) + "\n" for text, label in sentences("dvd", 150)
    )
    write(
        tmp_path, {"books.json": lines.replace("good", "Good"), "dvd.json": lines, "m.json": '{"text": "x"}'}
    )
    found = read_folder(tmp_path, "books", columns=Columns(text="review", label="stars"))
    assert list(found) == ["books", "dvd"]


ALIKE = [
    ("Positive", "positive", r"'positive' (books, pets) and 'Positive' (dvd)"),
    ("very good", "very  good", "'very  good' (books, pets) and 'very good' (dvd)"),
    ("caf\u00e9", "cafe\u0301", r"'cafe\u0301' (books, pets) and 'caf\xe9' (dvd)"),
    ("pos", "pos\u200b", r"'pos\u200b' (books, pets) and 'pos' (dvd)"),
    ("ＰＯＳ", "pos", "'pos' (books, pets) and 'ＰＯＳ' (dvd)"),
]


@pytest.mark.parametrize(("theirs", "own", "named"), ALIKE)
def test_classes_that_are_spelled_alike_are_told(tmp_path: Path, theirs: str, own: str, named: str) -> None:
    files = {f"{name}.tsv": rows(name).replace("\tpos", f"\t{own}") for name in ("books", "pets")}
    write(tmp_path, {**files, "dvd.tsv": rows("dvd").replace("\tpos", f"\t{theirs}")})
    problem = TextProblem(tmp_path, "books")
    assert len(problem.classes) == 3
    said = f"{named} differ only in spelling and are different classes here. "
    assert problem.describe().startswith("Texts of 3 tasks in 3 classes (") and said in problem.describe()
    alone = TextProblem(tmp_path, "books", ["pets"]).describe()
    assert "differ only" not in alone and alone.startswith("Texts of 2 tasks in 2 classes (")


def test_many_classes_are_not_listed(tmp_path: Path) -> None:
    lines = "".join(f"text {c} number {i}\tc{c}\n" for i in range(20) for c in range(12))
    write(tmp_path, {"books.tsv": lines, "dvd.tsv": lines.replace("text", "story").replace("\tc", "\tC")})
    said = TextProblem(tmp_path, "books").describe()
    assert said.startswith(
        "Texts of 2 tasks in 24 classes, scored on books. 'c0' (books) and 'C0' (dvd) differ only"
    )
    assert said.count("differ only in spelling") == 3 and "So do 9 more groups of classes. A bag" in said


def test_files_of_another_encoding_and_delimiter(tmp_path: Path) -> None:
    """The delimiter is that of .csv files: a .tsv beside them keeps its tabs."""
    content = "text\tlabel\n" + rows("dvd").replace("good", "caf\u00e9")
    (tmp_path / "books.tsv").write_bytes(content.replace("the", "a").encode("latin-1"))
    (tmp_path / "dvd.csv").write_bytes(content.replace("\t", ";").encode("latin-1"))
    columns = Columns(delimiter=";")
    problem = TextProblem(tmp_path, "books", columns=columns, encoding="latin-1")
    assert any("caf\u00e9" in text for text in problem.texts("dvd")) and problem.classes == ("neg", "pos")
    with pytest.raises(
        DataError, match=r"books.tsv:\d+: byte 0xe9 .* such as --encoding latin-1, .* \(\d+ more such rows"
    ):
        TextProblem(tmp_path, "books", columns=columns)
    with pytest.raises(DataError, match=r"encoding must be one that keeps ASCII.*got 'klingon'"):
        TextProblem(tmp_path, "books", columns=columns, encoding="klingon")


def test_each_class_may_have_few_rows_where_a_task_has_others(tmp_path: Path) -> None:
    """One row a class to train on, as of intents, is none that is a number a row."""
    own = "".join(f"own {c} text\tc{c}\n" for c in range(30))
    more = "".join(f"text {c} again {i}\tc{c}\n" for c in range(30) for i in range(3))
    theirs = more.replace("again", "more")
    write(tmp_path, {"books.tsv": own, "books-dev.tsv": more, "books-test.tsv": more, "dvd.tsv": theirs})
    assert len(read_folder(tmp_path, "books")["books"].rows["train"]) == 30
