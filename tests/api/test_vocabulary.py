"""Vocabularies of words, characters, pieces and labels: numbers, determinism, files."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter

import pytest

from xferkit.data.errors import DataError
from xferkit.data.tokenization import TokenizerVocabulary
from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary, count_words

TEXTS = ["das ist ein Haus", "das Haus ist gut", "die Maus ist im Haus"] * 5


def through_json(vocabulary):
    """What comes back from a file."""
    return type(vocabulary).from_json(json.loads(json.dumps(vocabulary.to_json())))


# Words


def test_words_are_numbered_by_count_then_alphabet_whatever_their_order():
    counts = {"b": 2, "a": 2, "c": 5, "d": 1, "": 9}
    vocabulary = WordVocabulary.from_counts(counts)
    assert vocabulary.words == ("c", "a", "b", "d") and len(vocabulary) == 6
    assert [vocabulary.number(word) for word in ("c", "a", "b", "d", "e", "")] == [2, 3, 4, 5, 1, 1]
    for seed in range(5):
        items = list(counts.items())
        random.Random(seed).shuffle(items)
        assert WordVocabulary.from_counts(dict(items)) == vocabulary
    assert WordVocabulary.from_counts(counts, min_count=2).words == ("c", "a", "b")
    assert WordVocabulary.from_counts(counts, max_size=2).words == ("c", "a")
    assert WordVocabulary.from_counts(counts, min_count=3, max_size=2).words == ("c",)
    assert len(WordVocabulary.from_counts(counts, max_size=0)) == 2
    with pytest.raises(ValueError, match="max_size must be at least 0, got -1"):
        WordVocabulary.from_counts(counts, max_size=-1)


def test_words_are_compared_in_nfc_and_without_case_where_asked():
    counts = {"e\u0301": 1, "é": 1, "É": 3, "x": 4}
    exact = WordVocabulary.from_counts(counts)
    assert exact.words == ("x", "É", "é")
    assert exact.number("e\u0301") == exact.number("é") == 4 and exact.number("E\u0301") == 3
    folded = WordVocabulary.from_counts(counts, lowercase=True)
    assert folded.words == ("é", "x")
    assert folded.number("E\u0301") == folded.number("é") == 2 and folded.number("X") == 3


def test_word_vocabularies_come_back_from_json():
    for lowercase in (False, True):
        vocabulary = WordVocabulary.from_counts({"ß": 2, "a\u2028b": 1, "日本": 3}, lowercase=lowercase)
        again = through_json(vocabulary)
        assert again == vocabulary and again.words == vocabulary.words and again.lowercase is lowercase
    assert WordVocabulary(["a"]) != WordVocabulary(["a"], lowercase=True)


def test_words_that_could_never_be_found_are_refused():
    with pytest.raises(ValueError, match="the word 'a' comes twice"):
        WordVocabulary(["a", "b", "a"])
    with pytest.raises(ValueError, match="the word 'A' is empty or not in lower case and NFC"):
        WordVocabulary(["A"], lowercase=True)
    with pytest.raises(ValueError, match="is empty or not in NFC"):
        WordVocabulary(["e\u0301"])
    with pytest.raises(ValueError, match="is empty"):
        WordVocabulary([""])


@pytest.mark.parametrize(
    ("vocabulary", "data"),
    [
        (WordVocabulary, {}),
        (WordVocabulary, {"kind": "words", "words": ["a"]}),
        (WordVocabulary, {"kind": "words", "words": ["a", 1], "lowercase": False}),
        (WordVocabulary, {"kind": "labels", "words": ["a"], "lowercase": False}),
        (WordVocabulary, {"kind": "words", "words": "ab", "lowercase": False}),
        (LabelSet, {"kind": "words", "words": ["a"], "lowercase": False}),
        (LabelSet, {"kind": "labels", "labels": []}),
        (LabelSet, {"kind": "labels", "labels": ["a", "a"]}),
        (CharVocabulary, {"kind": "characters", "characters": "aba"}),
        (CharVocabulary, {"kind": "characters", "characters": ["a"]}),
        (CharVocabulary, {}),
        (TokenizerVocabulary, {"kind": "tokenizer", "tokenizer": "x"}),
        (TokenizerVocabulary, {}),
    ],
)
def test_another_files_json_is_refused_in_a_sentence(vocabulary, data):
    with pytest.raises(ValueError, match=f"^{vocabulary.__name__}: "):
        vocabulary.from_json(data)


# Characters


def test_characters_keep_their_numbers():
    vocabulary = CharVocabulary(["Abab", "aß"], min_count=2)
    assert vocabulary.to_json() == {"kind": "characters", "characters": "ab"}
    encoded = vocabulary.encode(["bAß"])
    assert encoded.ids.tolist() == [[3, 2, 1]] and encoded.flags.tolist() == [[0, 1, 0]]
    assert vocabulary.numbers("bAßb", max_length=2) == ([3, 2], [0, 1])
    assert vocabulary.numbers("bA", lowercase=True) == ([3, 2], [0, 0])
    assert (
        len(vocabulary.numbers("b" * 60)[0]) == 48
        and len(vocabulary.numbers("b" * 60, max_length=None)[0]) == 60
    )


def test_character_vocabularies_come_back_from_json_and_from_counts():
    vocabulary = CharVocabulary(TEXTS + ["日本 \U0001f600 İ\u0301"] * 5)
    assert through_json(vocabulary) == vocabulary and len(through_json(vocabulary)) == len(vocabulary)
    assert CharVocabulary.from_counts(Counter(TEXTS + ["日本 \U0001f600 İ\u0301"] * 5)) == vocabulary
    assert CharVocabulary.from_counts({"ab": 4, "a": 1}).to_json()["characters"] == "a"
    assert vocabulary != CharVocabulary(TEXTS)


# Labels


def test_labels_keep_their_order_and_name_what_was_expected():
    labels = LabelSet(["O", "B-PER", "I-PER"])
    assert [labels.number(name) for name in ("O", "B-PER", "I-PER")] == [0, 1, 2]
    assert "O" in labels and "X" not in labels and len(labels) == 3
    assert through_json(labels) == labels != LabelSet(["B-PER", "O", "I-PER"])
    assert LabelSet.collect([("b", "a"), "c", ("a",)]).names == ("a", "b", "c")
    with pytest.raises(
        DataError, match=r"unknown label 'b-per' \(did you mean 'B-PER'\?\); expected one of O, B-PER"
    ):
        labels.number("b-per")
    with pytest.raises(ValueError, match="comes twice"):
        LabelSet(["a", "b", "b"])
    with pytest.raises(ValueError, match="a label is empty"):
        LabelSet(["a", ""])
    with pytest.raises(ValueError, match="at least one label"):
        LabelSet.collect([])


def test_words_are_counted_over_sentences():
    assert count_words([("a", "b"), ("a",)]) == Counter({"a": 2, "b": 1})


# Pieces


def many_texts() -> list[str]:
    rng = random.Random(0)
    words = [
        "das",
        "Haus",
        "Hauses",
        "Häuser",
        "Maus",
        "Mäuse",
        "laufen",
        "läuft",
        "gelaufen",
        "heute",
        "gut",
    ]
    return [" ".join(rng.choices(words, k=rng.randint(2, 8))) for _ in range(300)]


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_pieces_are_learnt_numbered_from_two_and_come_back_from_json(model):
    pytest.importorskip("tokenizers", reason="the package tokenizers is optional")
    texts = many_texts()
    vocabulary = TokenizerVocabulary.train(iter(texts), size=60, model=model)
    assert 10 < len(vocabulary) <= 60
    again = through_json(vocabulary)
    assert again.to_json() == vocabulary.to_json() and len(again) == len(vocabulary)
    for text in (*texts[:50], "ein  Maushaus\t", "xyz"):
        numbers = vocabulary.numbers(text)
        assert numbers == again.numbers(text) and min(numbers) >= 1 and max(numbers) < len(vocabulary)
        assert (
            "".join(vocabulary.pieces(text)) == "".join("▁" + word for word in text.split()) or 1 in numbers
        )
    assert 1 not in vocabulary.numbers("das Haus") and 1 in vocabulary.numbers("日本")
    assert len(vocabulary.numbers("das Haus")) < len("das Haus")
    assert vocabulary.numbers(" \t ") == vocabulary.numbers("") == []
    assert 0 not in vocabulary.numbers("das [PAD] Haus")
    assert TokenizerVocabulary.train(texts, size=60, model=model).to_json() == vocabulary.to_json()
    lower = TokenizerVocabulary.train(texts, size=60, model=model, lowercase=True)
    assert lower.numbers("DAS HAUS") == lower.numbers("das haus")


def test_anothers_tokenizer_is_renumbered(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is optional")
    pieces = {"a": 0, "<unk>": 1, "b": 2, "<pad>": 3, "c": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = TokenizerVocabulary.from_file(tmp_path / "tokenizer.json")
    assert vocabulary.numbers("a b c z a") == [2, 3, 4, 1, 2] and len(vocabulary) == 5


def test_files_that_are_no_tokenizers_are_refused_in_a_sentence(tmp_path):
    pytest.importorskip("tokenizers", reason="the package tokenizers is optional")
    for name, content in {"a.json": b"{}", "b.json": b"\xff", "c.json": b"[1"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: [^\n]+; expected a tokenizer\.json"):
            TokenizerVocabulary.from_file(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.json: No such file"):
        TokenizerVocabulary.from_file(tmp_path / "none.json")
    with pytest.raises(ValueError, match="'bpe' or 'unigram', got 'wordpiece'"):
        TokenizerVocabulary.train(TEXTS, model="wordpiece")
    with pytest.raises(ValueError, match="size must be at least 3, got 2"):
        TokenizerVocabulary.train(TEXTS, size=2)
    for nothing in ([], ["", " "]):
        with pytest.raises(ValueError, match="expected texts to learn pieces from"):
            TokenizerVocabulary.train(nothing)


def test_without_the_package_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"needs the package tokenizers.*: pip install tokenizers"):
        TokenizerVocabulary.train(TEXTS)
