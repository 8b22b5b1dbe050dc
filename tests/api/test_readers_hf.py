"""Data sets saved on disk: read as records; every damaged one is a sentence or counted out."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from xferkit.data.errors import DataError
from xferkit.data.records import Columns, Record, read_records

datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow, which `datasets` stands on, is not installed")

STRING, CLASSES = datasets.Value("string"), datasets.ClassLabel(names=["neg", "pos"])
TAGS = datasets.ClassLabel(names=["O", "B-LOC"])
TEXTS = {"text": STRING, "label": CLASSES}
SENTENCES = {"tokens": datasets.List(STRING), "ner_tags": datasets.List(TAGS)}


def save(folder: Path, columns: dict[str, Any], features: dict[str, Any]) -> Path:
    """What `save_to_disk` writes, but of any values, those too that it would refuse."""
    made = datasets.Features(features)
    arrays = [
        pa.array(values, type=made.arrow_schema.field(name).type) if isinstance(values, list) else values
        for name, values in columns.items()
    ]
    schema = pa.schema([pa.field(n, a.type) for n, a in zip(columns, arrays, strict=True)])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": made.to_dict()}})})
    folder.mkdir()
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "0", "_format_columns": None}
    state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": made.to_dict()}))
    return folder


def texts(folder: Path, n: int = 2) -> Path:
    return save(folder, {"text": ["one", "two"] * (n // 2), "label": [0, 1] * (n // 2)}, TEXTS)


def test_texts_and_classes(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(
        {"text": ["one", "two"], "label": [0, 1]}, features=datasets.Features(TEXTS)
    )
    datasets.disable_progress_bars()
    made.save_to_disk(tmp_path / "d")
    wanted = [Record((), "neg", 1, "one"), Record((), "pos", 2, "two")]
    assert list(read_records(tmp_path / "d")) == wanted
    assert (
        list(read_records(texts(tmp_path / "e"), format="hf")) == wanted
    )  # the test's own writer writes the same
    reader = read_records(tmp_path / "d", labelled=False)
    assert [record.labels for record in reader] == [None, None]
    assert reader.report.rows_in == reader.report.rows_out == 2


def test_sentences_and_tags(tmp_path: Path) -> None:
    columns = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [0]]}
    reader = read_records(save(tmp_path / "d", columns, SENTENCES), task="tagging")
    assert list(reader) == [Record(("a", "b"), ("O", "B-LOC"), 1), Record(("c",), ("O",), 2)]


def test_many_rows_come_in_order_and_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    reader = read_records(
        texts(tmp_path / "d", 2500), on_progress=lambda done, total: told.append((done, total))
    )
    assert [record.line for record in reader] == list(range(1, 2501))
    assert told == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = texts(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"package that is not installed; expected it \(pip install datasets\)"
    ):
        list(read_records(folder))


@dataclass(frozen=True)
class Bad:
    """A damaged data set, what is said of it, and rows out and rejected in skip mode (None: an error, too)."""

    make: Callable[[Path], object]
    words: tuple[str, ...]
    rows: tuple[int, int] | None = None
    line: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


def text_row(text: Any, label: Any, *words: str, types: dict[str, Any] | None = None, **options: Any) -> Bad:
    """The second of three rows is bad."""
    features = {**TEXTS, **(types or {})}

    def make(folder: Path) -> Path:
        good = {"text": "x", "label": 0}
        if types and "label" in types:
            good["label"] = "neg"
        if types and "text" in types:
            return save(folder, {"text": [text] * 3, "label": [0] * 3}, features)
        columns = {"text": [good["text"], text, "y"], "label": [good["label"], label, good["label"]]}
        return save(folder, columns, features)

    rows, line = ((0, 3), 1) if types and "text" in types else ((2, 1), 2)
    return Bad(make, words, rows, line, options)


def tag_row(tokens: Any, tags: Any, *words: str, types: dict[str, Any] | None = None, **options: Any) -> Bad:
    """All of one row is bad, or the second of three."""
    if types:
        return Bad(
            lambda folder: save(folder, {"tokens": [tokens], "ner_tags": [tags]}, {**SENTENCES, **types}),
            words, (0, 1), 1, {"task": "tagging", **options},
        )  # fmt: skip
    columns = {"tokens": [["a"], tokens, ["b"]], "ner_tags": [[0], tags, [0]]}
    return Bad(
        lambda folder: save(folder, columns, SENTENCES), words, (2, 1), 2, {"task": "tagging", **options}
    )


def columns_of(features: dict[str, Any], values: dict[str, Any], *words: str, **options: Any) -> Bad:
    return Bad(lambda folder: save(folder, values, features), words, options=options)


def label_of(kind: Any, label: Any, *words: str) -> Bad:
    """One row with a label of this type."""
    features = {**TEXTS, "label": kind}
    return Bad(lambda folder: save(folder, {"text": ["a"], "label": [label]}, features), words, (0, 1), 1)


def edited(
    file: str, edit: Callable[[bytes], bytes], *words: str, line: int | None = None, **options: Any
) -> Bad:
    """One of the files changed."""

    def make(folder: Path) -> None:
        path = texts(folder) / file
        path.write_bytes(edit(path.read_bytes()))

    return Bad(make, words, line=line, options=options)


def without(file: str, *words: str) -> Bad:
    return Bad(lambda folder: (texts(folder) / file).unlink(), words)


def state(*words: str, **keys: Any) -> Bad:
    return edited("state.json", lambda data: json.dumps({**json.loads(data), **keys}).encode(), *words)


VALUE, LIST = datasets.Value, datasets.List
READ = "cannot be read"
BAD: dict[str, Bad] = {
    "text is null": text_row(None, 0, "the text is null", "expected a string"),
    "text is empty": text_row("", 0, "the text is empty"),
    "text of spaces": text_row(" \n ", 0, "the text is empty"),
    "text with NUL": text_row("a\0b", 0, "NUL character"),
    "text is a number": text_row(5, 0, "the text is a number", types={"text": VALUE("int64")}),
    "text is a list": text_row(["a"], 0, "the text is a list", types={"text": LIST(STRING)}),
    "text is a struct": text_row({"a": "b"}, 0, "the text is an object", types={"text": {"a": STRING}}),
    "text is true": text_row(True, 0, "the text is true or false", types={"text": VALUE("bool")}),
    "label is null": text_row("a", None, "the label is null"),
    "label is -1": text_row("a", -1, "the label is null"),
    "class number without name": text_row("a", 2, "class number 2 has no name", "0 to 1"),
    "class number below -1": text_row("a", -7, "class number -7 has no name"),
    "label is empty": text_row("a", "", "the label is empty", types={"label": STRING}),
    "label of spaces": text_row("a", "  ", "the label is empty", types={"label": STRING}),
    "label with NUL": text_row("a", "n\0", "NUL character", types={"label": STRING}),
    "label not allowed": text_row("a", 1, "unknown label 'pos'", "one of neg", allowed_labels=["neg"]),
    "label misspelt": text_row(
        "a", "negg", "did you mean 'neg'", types={"label": STRING}, allowed_labels=["neg", "pos"]
    ),
    "label is a float": label_of(VALUE("float32"), 0.5, "the label is a number", "an integer"),
    "label is a bool": label_of(VALUE("bool"), True, "the label is true or false"),
    "label is a list": label_of(LIST(CLASSES), [0], "the label is a list"),
    "label is a struct": label_of({"a": STRING}, {"a": "b"}, "the label is an object"),
    "label is NaN": label_of(VALUE("float64"), float("nan"), "the label is a number"),
    "tokens are null": tag_row(None, [0], "the tokens are null"),
    "no tokens": tag_row([], [], "there are no tokens"),
    "a token is null": tag_row(["a", None], [0, 0], "a token is null"),
    "a token is empty": tag_row(["a", ""], [0, 0], "a token is an empty string"),
    "a token with NUL": tag_row(["a", "\0"], [0, 0], "NUL character"),
    "tags are null": tag_row(["a"], None, "the tags are null"),
    "a tag is null": tag_row(["a"], [None], "a tag is null"),
    "a tag is -1": tag_row(["a"], [-1], "a tag is null"),
    "a tag without name": tag_row(["a"], [9], "class number 9 has no name"),
    "a tag too few": tag_row(["a", "b"], [0], "2 tokens but 1 tags"),
    "a tag too many": tag_row(["a"], [0, 1], "1 tokens but 2 tags"),
    "sentence too long": tag_row(["a"] * 4, [0] * 4, "more than 3 tokens", max_tokens=3),
    "tag not allowed": tag_row(["a"], [1], "unknown tag 'B-LOC'", allowed_labels=["O"]),
    "tag with spaces": tag_row(["a"], ["O O"], "holds spaces", types={"ner_tags": LIST(STRING)}),
    "tags are one string": tag_row(["a"], "O", "the tags are a string", types={"ner_tags": STRING}),
    "tags are floats": tag_row(["a"], [0.5], "a tag is a number", types={"ner_tags": LIST(VALUE("float64"))}),
    "tags are lists": tag_row(["a"], [[0]], "a tag is a list", types={"ner_tags": LIST(LIST(TAGS))}),
    "tokens are one string": tag_row("a b", [0, 0], "the tokens are a string", types={"tokens": STRING}),
    "tokens are numbers": tag_row([1], [0], "a token is a number", types={"tokens": LIST(VALUE("int32"))}),
    "no rows": columns_of(TEXTS, {"text": [], "label": []}, "no rows", "at least one text"),
    "no column for the label": columns_of({"text": STRING}, {"text": ["a"]}, "no column for the label among text"),
    "no column for the text": columns_of({"label": CLASSES}, {"label": [0]}, "no column for the text"),
    "a column misspelt": columns_of(
        {"text": STRING, "lable": CLASSES}, {"text": ["a"], "lable": [0]}, "did you mean 'lable'"
    ),
    "a name that is not there": columns_of(
        TEXTS, {"text": ["a"], "label": [0]}, "no column 'lable'", "'label'", columns=Columns(label="lable")
    ),
    "a number for a name": columns_of(
        TEXTS, {"text": ["a"], "label": [0]}, "label must be a name", columns=Columns(label=1)
    ),
    "tags wanted of texts": columns_of(
        TEXTS, {"text": ["a"], "label": [0]}, "no column for the tokens among text, label", task="tagging"
    ),
    "nothing there": Bad(lambda folder: None, ("no such folder",), options={"format": "hf"}),
    "a file": Bad(lambda path: path.write_text("x"), ("is no folder",), options={"format": "hf"}),
    "an empty folder": Bad(Path.mkdir, ("a folder without state.json",)),
    "no state.json": without("state.json", "a folder without state.json"),
    "no dataset_info.json": without("dataset_info.json", "a folder without dataset_info.json"),
    "no data": without("data.arrow", READ),
    "state.json empty": edited("state.json", lambda data: b"", READ),
    "state.json cut": edited("state.json", lambda data: data[:20], READ),
    "state.json is a list": edited("state.json", lambda data: b"[]", READ),
    "state.json is not UTF-8": edited("state.json", lambda data: b"\xff" + data, READ),
    "state.json without files": state(READ, _data_files=[]),
    "state.json names no files": state(READ, _data_files=None),
    "state.json names another file": state(READ, _data_files=[{"filename": "other.arrow"}]),
    "state.json names a folder": state(READ, _data_files=[{"filename": "."}]),
    "dataset_info.json empty": edited("dataset_info.json", lambda data: b"", READ),
    "dataset_info.json cut": edited("dataset_info.json", lambda data: data[:30], READ),
    "dataset_info.json nested deeply": edited("dataset_info.json", lambda data: b"[" * 100_000, READ),
    "dataset_info.json of other columns": edited(
        "dataset_info.json", lambda data: data.replace(b'"text"', b'"texts"'), READ
    ),
    "dataset_info.json of an unknown type": edited(
        "dataset_info.json", lambda data: data.replace(b"ClassLabel", b"ClassLabels"), READ
    ),
    "data empty": edited("data.arrow", lambda data: b"", READ),
    "data cut in the schema": edited("data.arrow", lambda data: data[:100], READ),
    "data cut in the rows": edited("data.arrow", lambda data: data[:-60], READ),
    "data of zeros": edited("data.arrow", lambda data: bytes(len(data)), READ),
    "data are text": edited("data.arrow", lambda data: b"text,label\n", READ),
    "data in Parquet": edited("data.arrow", lambda data: b"PAR1" + data, READ),
    "text that is not UTF-8": edited("data.arrow", lambda data: data.replace(b"onetwo", b"\xe9netwo"), READ, line=1),
    "several data sets": Bad(
        lambda folder: (folder.mkdir(), texts(folder / "train"), (folder / "dataset_dict.json").write_text("{}")),
        ("several data sets (train)", "train"),
    ),
}  # fmt: skip


def test_there_are_sixty() -> None:
    assert len(BAD) >= 60


@pytest.mark.parametrize("name", BAD)
def test_damaged_data_set(name: str, tmp_path: Path) -> None:
    bad = BAD[name]
    bad.make(tmp_path / "d")
    path = tmp_path / "d"
    for mode in ("strict", "skip"):
        records, reader = [], None
        try:
            reader = read_records(path, **{"format": "hf", "mode": mode, **bad.options})  # type: ignore[arg-type]
            for record in reader:
                records.append(record)
        except DataError as error:
            if bad.line is not None:
                assert str(error).startswith(f"{path}:{bad.line}: ") and error.line == bad.line
            assert str(error).isprintable()
            for word in bad.words:
                assert word in str(error), str(error)
            assert mode == "strict" or bad.rows is None
        else:
            assert mode == "skip" and reader is not None, "accepted"
            assert (len(records), reader.report.rejected) == (bad.rows or (0, len(reader.report.examples)))
        if reader is not None:
            report = reader.report
            assert report.rows_in == report.rows_out + report.rejected and report.rows_out == len(records)


def _flip(seeds: range, tmp_path: Path) -> None:
    """No damage of the data crashes the process or loses rows in silence; without a check sum some go unseen."""
    folder = texts(tmp_path / "d", 40)
    good = (folder / "data.arrow").read_bytes()
    refused = 0
    for seed in seeds:
        draw = random.Random(seed)
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 3))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (folder / "data.arrow").write_bytes(
            data[: draw.choice((len(data), len(data), draw.randrange(len(data))))]
        )
        reader = read_records(folder, mode="skip")
        try:
            rows = len(list(reader))
            assert rows + reader.report.rejected == reader.report.rows_in
        except DataError as error:
            assert str(error).isprintable()
            refused += 1
    print(f"{refused} of {len(seeds)} damaged files refused")
    assert refused >= len(seeds) // 4


def test_damaged_bytes(tmp_path: Path) -> None:
    _flip(range(60), tmp_path)


@pytest.mark.long
def test_thousands_of_damaged_bytes(tmp_path: Path) -> None:
    _flip(range(60, 5060), tmp_path)
    shutil.rmtree(tmp_path / "d")
