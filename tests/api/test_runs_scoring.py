"""Scores against plain counting, spans, tags that do not fit, and which task a file is for."""

from __future__ import annotations

import gzip
import json
import random

import pytest
import torch

from xferkit.data.errors import DataError
from xferkit.data.records import Columns
from xferkit.metrics import accuracy, macro_f1, majority_rate
from xferkit.runs.detect import detect_task
from xferkit.runs.scoring import odd_tags, score_numbers
from xferkit.runs.summary import summarise, summary_json


def score(gold, predicted, names, *, lengths=None, tagging=False, scheme="conlleval", known=None):
    lengths = torch.tensor(lengths or [1] * len(gold))
    return score_numbers(
        torch.tensor(gold),
        torch.tensor(predicted),
        lengths,
        names,
        tagging=tagging,
        scheme=scheme,
        known=known,
    )


def test_scores_are_those_of_counting():
    rng = random.Random(0)
    names = ("a", "b", "c", "never")
    gold = [rng.choice([0, 0, 1, 2]) for _ in range(200)]
    predicted = [g if rng.random() < 0.6 else rng.randrange(3) for g in gold]
    found = score(gold, predicted, names)
    assert found.accuracy == found.score == accuracy(gold, predicted)
    assert found.macro_f1 == pytest.approx(macro_f1(gold, predicted)) and found.majority == majority_rate(
        gold
    )
    assert set(found.labels) == {"a", "b", "c"} and found.tokens is None and found.texts == 200
    for number, name in enumerate("abc"):
        right = sum(g == p == number for g, p in zip(gold, predicted, strict=True))
        label = found.labels[name]
        assert label.precision == right / predicted.count(number) and label.recall == right / gold.count(
            number
        )
        assert label.support == gold.count(number)
        assert label.f1 == pytest.approx(2 / (1 / label.precision + 1 / label.recall))
    assert found.to_json()["labels"]["a"]["support"] == gold.count(0) and json.dumps(found.to_json())


def test_labels_that_are_never_answered_count():
    found = score([0, 1], [0, 0], ("a", "b"))
    assert found.labels["b"].f1 == found.labels["b"].precision == 0.0 and found.macro_f1 == pytest.approx(
        1 / 3
    )


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "weird")


def test_spans_are_scored_by_the_scheme_that_is_named():
    gold, predicted = [1, 2, 0, 3], [1, 2, 0, 4]
    loose = score(gold, predicted, TAGS[:5], lengths=[4], tagging=True)
    assert loose.name == "span F1 (conlleval)" and loose.score == loose.all_spans.f1 == 1.0
    strict = score(gold, predicted, TAGS[:5], lengths=[4], tagging=True, scheme="strict")
    assert strict.name == "span F1 (strict)" and strict.score == pytest.approx(2 / 3)
    assert (
        strict.spans["LOC"].recall == 0.0
        and strict.spans["PER"].f1 == 1.0
        and strict.spans["LOC"].support == 1
    )
    assert strict.accuracy == 0.75 and strict.tokens == 4 and strict.texts == 1
    apart = score([1, 2], [1, 2], TAGS[:5], lengths=[1, 1], tagging=True, scheme="strict")
    assert apart.all_spans.support == 1, "spans end with their sentence"


def test_odd_tags_count_as_outside_of_spans_and_the_models_labels_decide():
    assert odd_tags(TAGS) == ("weird",) and odd_tags(TAGS[:5]) == ()
    assert odd_tags(("NOUN", "VERB", "O")) is None and odd_tags(("B-X", "I-X")) is None
    assert odd_tags(("O", "B-X", "I-X", "E-X", "S-X")) is None, "BIOES is another scheme"
    assert odd_tags(("O", "I-X")) is None and odd_tags(("O", "B-", "B-X")) is None
    found = score([1, 5], [1, 0], TAGS, lengths=[2], tagging=True)
    assert found.score == 1.0 and found.accuracy == 0.5
    more = (*TAGS[:5], "u", "v", "w", "x")
    assert score([1, 5], [1, 0], more, lengths=[2], tagging=True, known=5).name == "span F1 (conlleval)"
    assert score([1, 5], [1, 0], more, lengths=[2], tagging=True).name == "accuracy"


def test_scores_want_as_many_answers_as_labels():
    with pytest.raises(
        ValueError, match="as many answers as labels, at least one, got 0 for 0 labels of 0 texts"
    ):
        score_numbers(
            torch.empty(0),
            torch.empty(0),
            torch.empty(0, dtype=torch.int64),
            TAGS,
            tagging=False,
            scheme="strict",
        )
    with pytest.raises(ValueError, match="got 1 for 2 labels"):
        score([0, 1], [0], TAGS)


def test_summaries_without_seeds_are_empty():
    assert summarise({}) == () and summary_json(()) == {}


# -- which task ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "task", "why"),
    [
        ("a.tsv", "the\tDET\ndog\tNOUN\n\na\tDET\n", "tagging", "a word and its tag a line, blank lines"),
        ("a.tsv.gz", "the\tDET\ndog\tNOUN\n\na\tDET\n", "tagging", "blank lines between sentences"),
        ("a.tsv", "-DOCSTART-\tO\n\nthe\tx\tDET\n\na\ty\tDET\n", "tagging", "blank lines"),
        ("a.tsv", "good text\tpos\nbad\tneg\n", "classification", "a text and its label a line"),
        ("a.tsv", "one\tpos\ntwo\tneg\n\n", "classification", "a text and its label a line"),
        ("a.tsv", "label\ttext\npos\tx y\n", "classification", "column label"),
        ("a.tsv", "intent\ttokens\tslots\nx\ta b\tO O\n", "tagging", "columns tokens and slots; --task classification"),
        ("a.csv", '"text","label"\n"a, b",pos\n', "classification", "column label"),
        ("a.csv", "a b,pos\n", "classification", "a text and its label a line"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": ["O"]}\n', "tagging", "columns tokens and ner_tags"),
        ("a.json", '\ufeff{"text": "a", "label": "x"}\n', "classification", "column label"),
        ("a.conll", "anything", "tagging", "a word and its tag a line"),
        ("a.conllu", "# x", "tagging", "a word and its tag a line"),
    ],
)  # fmt: skip
def test_the_task_is_seen_from_the_file(tmp_path, name, text, task, why):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    found, reason = detect_task(str(path))
    assert found == task and why in reason


def test_what_the_caller_says_of_columns_decides(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("a b\tO O\n")
    assert detect_task(str(path), Columns(tags=1))[0] == "tagging"
    assert detect_task(str(path), Columns(label=1))[0] == "classification"
    assert detect_task(str(path), format="conll")[0] == "tagging"


def test_a_folder_of_a_data_set_says_its_columns(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"features": {"words": {}, "upos": {}}}')
    assert detect_task(str(tmp_path))[0] == "tagging"
    (tmp_path / "dataset_info.json").write_text('{"features": {"sentence": {}, "class": {}}}')
    assert detect_task(str(tmp_path)) == ("classification", "column class")


def test_long_files_are_only_looked_into(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("\n\n".join("the\tDET\ndog\tNOUN" for _ in range(100_000)))
    assert detect_task(str(path))[0] == "tagging"
    path.write_text("x" * 3_000_000 + "\tpos\n")
    assert detect_task(str(path))[0] == "classification"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.tsv", b"", "a.tsv:1: the file is empty"),
        ("a.tsv", b"\n\n\n", "a.tsv:1: the file is empty"),
        (
            "a.jsonl",
            b'{"a": 1}\n',
            "a.jsonl:1: its columns (a) do not tell whether texts or words are labelled",
        ),
        ("a.jsonl", b"[1, 2]\n", "its columns (none) do not tell"),
        ("a.jsonl", b"{" * 100_000, "its columns (none) do not tell"),
        ("a.tsv.gz", b"not gzip", "a.tsv.gz:1: the name ends in .gz, but the file is not gzip data"),
        ("a.tsv", b"text\twords\nx\ty\n", "do not tell"),
    ],
)
def test_files_that_do_not_tell_are_errors(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        detect_task(str(path))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read \(No such file"):
        detect_task(str(tmp_path / "none.tsv"))
