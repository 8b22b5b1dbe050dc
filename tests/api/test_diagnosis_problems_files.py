"""Folders of one's own texts: what is found and how it is split; what is wrong takes one sentence with its place."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from toy_diagnosis import GOOD, rows, sentences, write, write_texts

from xferkit.data.errors import DataError
from xferkit.data.records import Columns
from xferkit.diagnosis import TextProblem, read_folder
from xferkit.diagnosis.folder import TaskFiles
from xferkit.diagnosis.problem import SplitName


def texts_of(task: TaskFiles, *parts: SplitName) -> set[str]:
    return {" ".join(row.text.split()) for part in parts for row in task.rows[part]}


def test_files_of_every_form_are_read_and_split(tmp_path: Path) -> None:
    write_texts(tmp_path)
    found = read_folder(tmp_path, "books")
    assert list(found) == ["books", "dvd", "pets"]
    for name, total in (("books", 130), ("dvd", 60), ("pets", 150)):
        parts = found[name].rows
        assert sum(map(len, parts.values())) == total and all(len(own) >= 5 for own in parts.values())
        texts = [{row.text for row in own} for own in parts.values()]
        assert sum(map(len, texts)) == len(set().union(*texts)) or name == "pets"
    assert len(found["pets"].rows["test"]) == 20
    again = read_folder(tmp_path, "books", ["pets"])
    assert list(again) == ["books", "pets"] and again["books"] == found["books"]


def test_equal_texts_stay_together_and_rare_classes_are_trained(tmp_path: Path) -> None:
    """Also the texts of rare classes, of which some have a row of another class beside theirs."""
    odd = "".join(f"odd one {i}\trare{i}\nodd  one {i} \tpos\n" for i in range(40))
    write(tmp_path, {"books.tsv": rows("books") * 3 + odd, "dvd.tsv": rows("dvd")})
    books = read_folder(tmp_path, "books")["books"]
    seen = [texts_of(books, part) for part in ("train", "dev", "test")]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert {f"rare{i}" for i in range(40)} <= {row.label for row in books.rows["train"]}
    assert sum(row.text.startswith("odd") for row in books.rows["train"]) == 80


def test_a_text_is_in_the_same_part_whichever_files_a_task_has(tmp_path: Path) -> None:
    write(
        tmp_path,
        {name: rows("books") for name in ("books.tsv", "untested.tsv", "undeveloped.tsv", "none.tsv")},
    )
    write(tmp_path, {"untested-dev.tsv": rows("x", 30), "undeveloped-test.tsv": rows("y", 30)})
    found = read_folder(tmp_path, "books")
    dev, test = texts_of(found["books"], "dev"), texts_of(found["books"], "test")
    assert dev and test and texts_of(found["none"], "dev") == texts_of(found["undeveloped"], "dev") == dev
    assert texts_of(found["none"], "test") == texts_of(found["untested"], "test") == test
    write(tmp_path, {"alone-test.tsv": rows("books"), "dvd.tsv": rows("dvd")})
    alone = read_folder(tmp_path, "alone", ["dvd"])["alone"]
    assert dev < texts_of(alone, "dev") and test < texts_of(alone, "test")


@pytest.mark.parametrize(
    "files",
    [("books.tsv",), ("books.tsv", "books-test.tsv"), ("books.tsv", "books-dev.tsv"), ("books-test.tsv",)],
)
def test_sources_are_not_trained_on_texts_that_the_target_is_scored_on(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    shared = rows("books")
    write(tmp_path, {**dict.fromkeys(files, shared), "dvd.tsv": rows("dvd") + shared.replace(" ", "  ")})
    write(tmp_path, {"dvd-dev.tsv": rows("d"), "dvd-test.tsv": rows("e"), "pets.tsv": rows("pets")})
    problem = TextProblem(tmp_path, "books")
    books, dvd, pets = (problem.files[name] for name in ("books", "dvd", "pets"))
    scored = texts_of(books, "dev", "test")
    assert len(scored) >= 40 and not scored & texts_of(dvd, "train")
    assert dvd.dropped == 300 - len(dvd.rows["train"]) == len(scored)
    assert (books.dropped, pets.dropped) == (0, 0)
    said = f"text stands in the development or test part of books: {dvd.dropped} of dvd."
    assert said in problem.describe()
    assert "Left out" not in TextProblem(tmp_path, "books", ["pets"]).describe()


def test_a_target_with_a_test_file_alone_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path, {"books-test.tsv": rows("books", 100), "dvd.tsv": rows("dvd")})
    problem = TextProblem(tmp_path, "books")
    assert problem.tasks == ("dvd",) and problem.everything == ("dvd", "books")
    parts = [problem.texts("books", "dev"), problem.texts("books", "test")]
    assert sum(map(len, parts)) == 100 and min(map(len, parts)) >= 35 and not set(parts[0]) & set(parts[1])
    assert problem.encode("books") is not None


def test_a_class_that_only_left_out_rows_had_is_trained_by_its_others(tmp_path: Path) -> None:
    """Of its rows those are trained that were to be developed or tested on, but none that the target is scored on."""
    odd = {f"odd one {i}": zlib.crc32(f"odd one {i}".encode()) % 10 for i in range(60)}
    shared = "".join(f"{text}\trare\n" for text, place in odd.items() if place > 3)
    others = "".join(f"{text}\trare\n" for text, place in odd.items() if place < 4)
    write(tmp_path, {"books-test.tsv": rows("books") + shared, "dvd.tsv": rows("dvd") + shared + others})
    dvd = read_folder(tmp_path, "books")["dvd"]
    assert dvd.dropped == shared.count("\n") > 9
    trained = {row.text for row in dvd.rows["train"] if row.label == "rare"}
    assert trained == {text for text, place in odd.items() if place < 4}


@pytest.mark.parametrize("part", ["dev", "val", "VALID", "validation", "eval"])
def test_names_of_the_development_part(tmp_path: Path, part: str) -> None:
    write(tmp_path, {"books.tsv": rows("books"), f"books-{part}.tsv": rows("b", 30), "dvd.tsv": rows("dvd")})
    found = read_folder(tmp_path, "books")
    assert list(found) == ["books", "dvd"] and len(found["books"].rows["dev"]) == 30


@pytest.mark.parametrize("part", ["train", "dev", "test", "valid", "val", "Validation", "eval"])
def test_a_part_without_a_task_is_refused(tmp_path: Path, part: str) -> None:
    write(tmp_path, {**GOOD, f"{part}.tsv": rows("x")})
    sentence = (
        rf"{part}\.tsv: the name says which part .* not of which task; expected NAME\.tsv, or NAME-train"
    )
    with pytest.raises(DataError, match=sentence):
        read_folder(tmp_path, "books")


def test_columns_of_other_names(tmp_path: Path) -> None:
    for name in ("books", "dvd"):
        (tmp_path / f"{name}.tsv").write_text("review\tstars\n" + rows(name))
    problem = TextProblem(tmp_path, "books", columns=Columns(text="review", label="stars"))
    assert problem.classes == ("neg", "pos")


@pytest.mark.parametrize(
    ("files", "target", "sentence"),
    [
        ({}, "books", r"holds no file of labelled texts; expected NAME.tsv, or NAME-train.tsv with NAME-test.tsv"),
        (
            {"positive.txt": "x\n", "negative.txt": "y\n"},
            "books",
            r"holds no file of labelled texts, but 2 .txt files \(negative.txt, positive.txt\); expected a file a task "
            r"with a text and its label in each row, NAME.tsv",
        ),
        (GOOD, "boks", r"no file for the target 'boks' \(did you mean 'books'\?\); expected one of books, dvd"),
        ({**GOOD, "dvd.csv": "a,b\n"}, "books", r"dvd.tsv: a second file for .*'dvd', beside dvd.csv; expected one"),
        ({**GOOD, "dvd-train.tsv": rows("dvd")}, "books", r"dvd.tsv: a second file for the training part of 'dvd'"),
        ({**GOOD, "dvd.tsv": "text\ttopic\nx\ty\n"}, "books", r"dvd.tsv:1: no column for the label \(label, class, "
         r"intent\) among text, topic; expected it, or --columns label=... \(in Python .*\) with the name of another"),
        ({**GOOD, "dvd.tsv": "text\tlabel\nx\tpos\n\tneg\n"}, "books", r"dvd.tsv:3: the text is empty; expected a"),
        (
            {**GOOD, "dvd.tsv": "text\tlabel\n\tneg\nx\t\n" + 3 * " \tpos\n"},
            "books",
            r"dvd.tsv:2: the text is empty; expected a text \(3 more such rows in this file\)$",
        ),
        (
            {**GOOD, "dvd.tsv": "x\t\ny\t \n"},
            "books",
            r"dvd.tsv:1: the label is empty; expected a label \(1 more such row in this file\)$",
        ),
        (
            {**GOOD, "dvd.tsv": "".join(f"text {i}\t{i / 7:.3f}\n" for i in range(150))},
            "books",
            r"dvd.tsv: the labels of 'dvd' have 150 different values in 150 rows, such as '0.000' and '0.143'; "
            r"expected classes that several rows share, such as ranges of a number$",
        ),
        (
            {**GOOD, "books.tsv": "".join(f"text {i}\tname of {i // 10 * 8 + i % 8}\n" for i in range(100))},
            "books",
            r"books.tsv: the labels of 'books' have 80 different values in 100 rows",
        ),
        ({"books.tsv": rows("books"), "dvd.csv": "x;pos\ny;neg\n"}, "books", r"dvd.csv:1: 1 column \(the line "
         r"holds ';': if that is the delimiter, name it with --columns 'delimiter=;', .*; expected 2 \(1 more"),
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
        ({**GOOD, "dvd-val.tsv": "x\tpos\n", "dvd-dev.tsv": "x\tpos\n"}, "books", r"dvd-val.tsv: a second file for d"),
        ({"books-test.tsv": rows("books")}, "books", r"books-test.tsv: there is no other task and no training file"),
        (
            {**dict.fromkeys(("books-test.tsv", "dvd.tsv"), rows("books")), "dvd-dev.tsv": "x\tpos\n"},
            "books",
            r"dvd.tsv: 'dvd' has 150 rows, of which 0 to train on \(\d+ were left out: the target is scored on",
        ),
        (
            {f"{c}.tsv": "".join(f"{c} text {i}\t{c}\n" for i in range(150)) for c in ("pos", "neg")},
            "pos",
            r"pos.tsv: all training rows of the target 'pos' have the class 'pos'; expected at least two .* a file a "
            r"task \(a domain, a language\), not a file a class",
        ),
        (
            {**GOOD, "books.tsv": rows("books", 40)},
            "books",
            r"books.tsv: the target 'books' has \d+ development rows; expected at least 20 .* or a file books-dev$",
        ),
        (
            {**GOOD, "books-dev.tsv": rows("books", 3)},
            "books",
            r"books-dev.tsv: the target 'books' has 3 development rows; expected at least 20 to measure by: more rows$",
        ),
        (
            {**GOOD, "books.tsv": rows("books", 40), "books-dev.tsv": rows("b", 30)},
            "books",
            r"books.tsv: the target 'books' has \d+ test rows; expected .*: more rows, or a file books-test$",
        ),
        (
            {"books-test.tsv": rows("books", 30), "dvd.tsv": rows("dvd")},
            "books",
            r"books-test.tsv: the target 'books' has \d+ development rows; expected .* or a file books-dev$",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_takes_one_sentence(
    tmp_path: Path, files: dict[str, str], target: str, sentence: str
) -> None:
    write(tmp_path, files)
    with pytest.raises(DataError, match=sentence) as caught:
        TextProblem(tmp_path, target)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message and "; expected " in message


def test_one_class_in_all_is_refused(tmp_path: Path) -> None:
    """Of the sources, where the target has no training rows."""
    lines = "".join(f"text number {i}\tx\n" for i in range(150))
    write(
        tmp_path,
        {"books-test.tsv": lines, "dvd.tsv": "".join(f"dvd {line}" for line in lines.splitlines(True))},
    )
    with pytest.raises(
        DataError, match=r"dvd.tsv:\d+: all training rows have the class 'x'; expected at least"
    ):
        TextProblem(tmp_path, "books")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot be read as a folder .*; expected a folder with a file a task"
    ):
        TextProblem(tmp_path / "missing", "books")


@pytest.mark.parametrize("name", ["books.csv", "dvd.csv"])
def test_a_header_of_other_names_is_no_row(tmp_path: Path, name: str) -> None:
    content = {own: rows(own[:-4]).replace("\t", ",") for own in ("books.csv", "dvd.csv")}
    write(tmp_path, {**content, name: "my review,Stars\n" + content[name]})
    sentence = (
        rf"{name}:1: looks like a header, with 'my review' for the text and 'Stars' for the label; expected columns "
        r"named text and label, or the option columns with their names"
    )
    with pytest.raises(DataError, match=sentence):
        read_folder(tmp_path, "books")
    plain = read_folder(tmp_path, "books", columns=Columns(header=False))
    assert "Stars" in {row.label for task in plain.values() for row in task.rows["train"]}
    write(tmp_path, {own: "my review,Stars\n" + lines for own, lines in content.items()})
    with pytest.raises(DataError, match=r"books.csv:1: looks like a header"):
        read_folder(tmp_path, "books")


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("a real text of five words\tStars\n", rows("dvd")),
        ("short text\t5\n", rows("dvd")),
        ("short text\tpos\n", "".join(f"{text}\tneg\n" for text, _ in sentences("dvd", 60))),
        ("short text\tx\n", "".join(f"other text {i}\tc{i // 2 if i < 40 else i}\n" for i in range(60))),
        ("review\tStars\n", "a\tpos\nb\tneg\nc\tpos\n"),
    ],
    ids=["long", "number", "class of another file", "many rare classes", "few rows"],
)
def test_a_row_of_a_rare_class_may_come_first(tmp_path: Path, first: str, others: str) -> None:
    write(tmp_path, {**GOOD, "dvd.tsv": first + others, "dvd-dev.tsv": rows("x"), "dvd-test.tsv": rows("y")})
    assert len(read_folder(tmp_path, "books")["dvd"].rows["train"]) == len((first + others).splitlines())
