"""Label and input shift, unknown words and tokenizers: planted, absent, by hand, and refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from xferkit.transfer.causes import (
    input_shift,
    label_shift,
    missing_classes,
    token_costs,
    word_coverage,
)


def test_label_shift_by_hand_and_planted():
    found = label_shift(["a"] * 3 + ["b"], ["a"] + ["b"] * 2 + ["c"])
    assert found.distance == pytest.approx((0.5 + 0.25 + 0.25) / 2)
    assert found.missing_share == 0.0 and found.largest == "a" and found.largest_shares == (0.75, 0.25)
    # Of so few labels, distances of 0.5 are too common to tell.
    assert found.flag == "not clear"
    large = label_shift(["a"] * 300 + ["b"] * 100, ["a"] * 100 + ["b"] * 200 + ["c"] * 100)
    assert large.flag == "yes" and large.distance == pytest.approx(0.5) and large.p_value == 0.001
    assert large.sentence().startswith("Target and source have other shares of the labels")
    assert large.sentence().endswith("most apart is a with 75 % of the target and 25 % of the source.")
    json.dumps(large.to_json(), allow_nan=False)


def test_equal_shares_have_no_class_that_is_most_apart():
    found = label_shift(["a", "b"] * 50, ["a", "b"] * 80)
    assert found.flag == "no" and "most apart" not in found.sentence() and found.sentence().endswith(").")


def test_label_shift_null_is_the_permutation_distribution():
    """All C(6, 3) = 20 deals of 3 a and 3 b: TV 1 in 2 of them, else 1/3."""
    found = label_shift(["a", "a", "a"], ["b", "b", "b"], draws=20000)
    assert found.null_mean == pytest.approx(0.1 + 0.9 / 3, abs=0.01)
    assert found.p_value == pytest.approx(0.1, abs=0.01)


def test_label_shift_is_rarely_found_where_there_is_none():
    rng = np.random.default_rng(0)
    draw = lambda n: rng.choice(list("abcde"), n, p=[0.4, 0.3, 0.15, 0.1, 0.05]).tolist()  # noqa: E731
    for sizes in ((40, 30), (800, 600)):
        flags = [label_shift(draw(sizes[0]), draw(sizes[1]), draws=99).flag for _ in range(150)]
        assert flags.count("yes") <= 12, sizes
    assert flags.count("no") >= 140


def test_one_class_is_no_shift_and_nan_is_refused():
    assert label_shift([1, 1], [1]).flag == "no"
    assert label_shift(np.array([1, 1]), [1]).distance == 0.0
    with pytest.raises(ValueError, match="label_shift: source must have a label for every example, got NaN"):
        label_shift([0.0], [float("nan")])
    with pytest.raises(ValueError, match="missing_classes: target must be one or more labels, got none"):
        missing_classes([], ["a"])


def test_missing_classes_planted_and_absent():
    target = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    found = missing_classes(target, ["a"] * 60)
    assert found.flag == "yes" and found.missing == ("b", "c") and found.share == pytest.approx(2 / 3)
    assert (
        found.example_share == pytest.approx(0.5)
        and "lacks 2 of the target's 3 classes (b, c)" in found.sentence()
    )
    assert missing_classes(target, ["a", "b"]).flag == "not clear"  # as two of the target would
    none = missing_classes(target, target)
    assert none.flag == "no" and none.sentence() == "The source has all 3 classes of the target."
    assert missing_classes(["a"], ["a", "b"]).sentence() == "The source has the only class of the target."
    rng = np.random.default_rng(1)
    many = [str(c) for c in rng.zipf(1.5, 300) if c < 200]
    flags = [missing_classes(many, rng.choice(many, 60).tolist(), draws=99, seed=n).flag for n in range(100)]
    assert flags.count("yes") <= 10


def test_input_shift_planted_and_absent():
    rng = np.random.default_rng(0)
    source = rng.standard_normal((300, 6))
    shifted = rng.standard_normal((240, 6)) + np.array([3, 0, 0, 0, 0, 0])
    found = input_shift(shifted, source, splits=5)
    assert found.flag == "yes" and found.rows == 120
    # The best rule cuts halfway: err = Φ(-1.5) = 0.067.
    assert found.error == pytest.approx(0.067, abs=0.03)
    assert found.distance == pytest.approx(2 * (1 - 2 * found.error))
    assert abs(found.null_mean) < 0.25 and found.sentence().startswith(
        "The inputs of target and source can be"
    )
    json.dumps(found.to_json(), allow_nan=False)


def test_input_shift_is_rarely_found_where_there_is_none():
    rng = np.random.default_rng(1)
    flags = [input_shift(*rng.standard_normal((2, 80, 4)), splits=5, folds=2, seed=n).flag for n in range(40)]
    assert flags.count("yes") <= 4


def test_input_shift_takes_constant_features_and_refuses():
    x = np.random.default_rng(2).standard_normal((40, 1))
    constant = np.hstack([x, np.ones((40, 1))])
    assert input_shift(constant[:20], constant[20:], splits=2).flag != "yes"
    with pytest.raises(ValueError, match="input_shift: target must be finite numbers, got nan at"):
        input_shift(np.full((20, 1), np.nan), x)
    with pytest.raises(ValueError, match="source must have target's 2 features, got 1"):
        input_shift(constant, x)
    with pytest.raises(ValueError, match="target must have at least 2 rows for each of 5 folds, got 3"):
        input_shift(x[:3], x)


def test_input_shift_names_the_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"^input_shift needs scikit-learn: pip install scikit-learn$"):
        input_shift(np.zeros((20, 1)), np.zeros((20, 1)))


def texts(rng, words, n=60, length=8):
    return [" ".join(rng.choice(words, length)) for _ in range(n)]


def test_words_of_another_language_are_unknown_and_case_is_told_apart():
    rng = np.random.default_rng(0)
    own = [f"wort{n}" for n in range(30)]
    found = word_coverage(texts(rng, own), texts(rng, [*own[:15], *(w.upper() for w in own[15:])]))
    assert found.flag == "yes" and found.unknown == pytest.approx(0.5, abs=0.1)
    assert found.folded < 0.05 and found.null_mean < 0.05 and len(found.examples) == 3
    assert found.unknown_to_all == pytest.approx(0.5, abs=0.1)
    assert found.sentence().startswith("The source lacks words of the target: ")


def test_coverage_by_hand():
    """Halves of one text each: "a b" against "a c" lacks b; the source has a alone."""
    found = word_coverage(["a b", "a c"], ["a a a"], splits=4, min_effect=0.6)
    assert found.null_mean == 0.5 and found.unknown == 0.5 and found.words == 2 and found.flag == "no"
    assert found.unknown_to_all == 0.5 and found.examples == ("b", "c")


def test_coverage_of_the_same_language_is_rarely_flagged_and_refuses():
    rng = np.random.default_rng(1)
    words = np.array([f"w{n}" for n in range(400)])
    pool = [texts(rng, words, 70) for _ in range(60)]
    same = [word_coverage(found[:40], found[40:], splits=10).flag for found in pool]
    assert same.count("yes") <= 4
    with pytest.raises(ValueError, match="target must have 2 or more texts with a word, got 1"):
        word_coverage(["a", " "], ["a"])
    with pytest.raises(ValueError, match="source must have 1 or more texts with a word, got 0"):
        word_coverage(["a", "b"], [])


def pieces(text):
    """Two letters a token; z is unknown."""
    return ["?" if "z" in t else t for w in text.split() for t in (w[i : i + 2] for i in range(0, len(w), 2))]


def test_token_costs_by_hand_and_planted():
    rng = np.random.default_rng(0)
    corpora = {"en": texts(rng, ["aa", "bbbb"]), "fi": texts(rng, ["aabbaabb", "zzaabb"])}
    found = token_costs(corpora, "fi", tokenizer=pieces, unknown="?")
    fi, en = found.languages
    assert fi.name == "fi" and fi.words == 480 and fi.tokens == sum(len(pieces(t)) for t in corpora["fi"])
    assert fi.fertility == fi.tokens / 480 and en.unknown_share == 0.0
    assert found.fertility.excess == pytest.approx(fi.fertility / en.fertility - 1)
    assert found.flag == "yes" and found.unknown is not None and found.unknown.flag == "yes"
    assert found.sentence().startswith("The tokenizer serves fi worse than the sources: ")
    nameless = token_costs(corpora, "fi", tokenizer=pieces)
    assert nameless.unknown is None and nameless.to_json()["languages"][0]["unknown_share"] is None


def test_without_a_tokenizer_nothing_is_said_of_one():
    sentence = r"^token_costs: tokenizer must be a function .* got None \(word_coverage tells of words\)$"
    with pytest.raises(ValueError, match=sentence):
        token_costs({"en": ["one two", "three"], "es": ["uno dos", "tres"]}, "es")


def test_the_token_sentence_speaks_of_tasks():
    """A domain is no language."""
    found = token_costs(
        {"books": ["aa aa", "bb"] * 9, "dvd": ["aa zz"] * 9}, "dvd", tokenizer=pieces, unknown="?"
    )
    assert found.sentence().count("halves of one task differ by") == 2 and "language" not in found.sentence()


def test_one_language_twice_rarely_costs_more():
    rng = np.random.default_rng(2)
    flags = []
    for _ in range(80):
        a, b = texts(rng, ["aa", "bbbbbb", "zz"], 30), texts(rng, ["aa", "bbbbbb", "zz"], 30)
        flags.append(token_costs({"a": a, "b": b}, "a", tokenizer=pieces, unknown="?", splits=20).flag)
    assert flags.count("yes") <= 4


def test_token_costs_refuse():
    with pytest.raises(ValueError, match="texts must have the target fr and a source, got en"):
        token_costs({"en": ["a", "b"]}, "fr", tokenizer=pieces)
    with pytest.raises(ValueError, match="texts of en must be 2 or more with a word to measure, got 0"):
        token_costs({"fr": ["a", "b"], "en": []}, "fr", tokenizer=pieces)


@pytest.mark.parametrize("size", [4, 400])
def test_coverage_compares_samples_of_one_size(size):
    rng = np.random.default_rng(5)
    words = np.array([f"w{n}" for n in range(200)])
    found = word_coverage(texts(rng, words, 30), texts(rng, words, size))
    assert found.words == min(15, size) * 8 and found.flag != "yes"
    assert found.unknown == pytest.approx(found.null_mean, abs=0.06)
