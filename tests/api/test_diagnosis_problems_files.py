"""Folders of one's own texts: what is found and how it is split; what is wrong takes one sentence with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_diagnosis import sentences, write_texts

from xferkit.data.errors import DataError
from xferkit.data.records import Columns
from xferkit.diagnosis import TextProblem, read_folder


def rows(name: str, count: int = 40) -> str:
    return "".join(f"{text}\t{label}\n" for text, label in sentences(name, count))


def test_files_of_every_form_are_read_and_split(tmp_path: Path) -> None:
    write_texts(tmp_path)
    found = read_folder(tmp_path, "books")
    assert list(found) == ["books", "dvd", "pets"]
    for name, total in (("books", 60), ("dvd", 60), ("pets", 60)):
        parts = found[name].rows
        assert sum(map(len, parts.values())) == total and all(len(own) >= 5 for own in parts.values())
        texts = [{row.text for row in own} for own in parts.values()]
        assert sum(map(len, texts)) == len(set().union(*texts)) or name == "pets"
    assert len(found["pets"].rows["test"]) == 20
    again = read_folder(tmp_path, "books", ["pets"])
    assert list(again) == ["books", "pets"] and again["books"] == found["books"]


def test_equal_texts_stay_together_and_rare_classes_are_trained(tmp_path: Path) -> None:
    text = rows("books") * 3 + "odd one\trare\n"
    (tmp_path / "books.tsv").write_text(text)
    (tmp_path / "dvd.tsv").write_text(rows("dvd"))
    parts = read_folder(tmp_path, "books")["books"].rows
    seen = [{row.text for row in own} for own in parts.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert "rare" in {row.label for row in parts["train"]}


def test_a_target_with_a_test_file_alone_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "books-test.tsv").write_text(rows("books"))
    (tmp_path / "dvd.tsv").write_text(rows("dvd"))
    problem = TextProblem(tmp_path, "books")
    assert problem.tasks == ("dvd",) and problem.everything == ("dvd", "books")
    assert len(problem.texts("books", "dev")) + len(problem.texts("books", "test")) == 40
    assert problem.encode("books") is not None


def test_columns_of_other_names(tmp_path: Path) -> None:
    for name in ("books", "dvd"):
        (tmp_path / f"{name}.tsv").write_text("review\tstars\n" + rows(name))
    problem = TextProblem(tmp_path, "books", columns=Columns(text="review", label="stars"))
    assert problem.classes == ("neg", "pos")


GOOD = {"books.tsv": rows("books"), "dvd.tsv": rows("dvd")}


@pytest.mark.parametrize(
    ("files", "target", "sentence"),
    [
        ({}, "books", r"holds no file of labelled texts; expected NAME.tsv, or NAME-train.tsv with NAME-test.tsv"),
        (GOOD, "boks", r"no file for the target 'boks' \(did you mean 'books'\?\); expected one of books, dvd"),
        ({**GOOD, "dvd.csv": "a,b\n"}, "books", r"dvd.tsv: a second file for .*'dvd', beside dvd.csv; expected one"),
        ({**GOOD, "dvd-train.tsv": rows("dvd")}, "books", r"dvd.tsv: a second file for the training part of 'dvd'"),
        ({**GOOD, "dvd.tsv": "text\ttopic\nx\ty\n"}, "books", r"dvd.tsv:1: no column for the label \(label, class"),
        ({**GOOD, "dvd.tsv": "text\tlabel\nx\tpos\n\tneg\n"}, "books", r"dvd.tsv:3: the text is empty; expected a"),
        ({**GOOD, "dvd.tsv": "only text\n"}, "books", r"dvd.tsv:1: 1 column; expected 2"),
        ({**GOOD, "dvd.tsv": ""}, "books", r"dvd.tsv: the file holds no rows; expected at least one text"),
        ({**GOOD, "dvd.tsv": "text\tlabel\nx\tpos\n"}, "books", r"dvd.tsv:2: 'dvd' has 1 row, .*at least 2 training"),
        ({**GOOD, "dvd.tsv": rows("dvd", 3)}, "books", r"dvd.tsv: 'dvd' has 3 rows.*expected (about 20|at least 2)"),
        (
            {**GOOD, "books-test.tsv": "text\tlabel\ngood1\tpos\ngood1\tpoz\n"} | {"books.tsv": rows("books")},
            "books",
            r"books-test.tsv:3: unknown class 'poz' in the target 'books' \(did you mean 'pos'\?\); expected one of "
            r"those to train on, neg, pos",
        ),
        ({**GOOD, "dvd-dev.tsv": "x\tbad\n"}, "books", r"dvd-dev.tsv:1: unknown class 'bad' in the source 'dvd'"),
        ({**GOOD, "toys-test.tsv": "x\tpos\n"}, "books", r"toys-test.tsv: the source 'toys' has no training file"),
        ({**GOOD, "dvd.tsv": "same text\tpos\n" * 20}, "books", r"dvd.tsv: 'dvd' has 20 rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_takes_one_sentence(
    tmp_path: Path, files: dict[str, str], target: str, sentence: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=sentence) as caught:
        TextProblem(tmp_path, target)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message and "; expected " in message


def test_one_class_in_all_is_refused(tmp_path: Path) -> None:
    for name in ("books", "dvd"):
        lines = [f"{name} text number {i}\tx\n" for i in range(40)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    with pytest.raises(
        DataError, match=r"books.tsv:\d+: all training rows have the class 'x'; expected at least"
    ):
        TextProblem(tmp_path, "books")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot be read as a folder .*; expected a folder with a file a task"
    ):
        TextProblem(tmp_path / "missing", "books")
