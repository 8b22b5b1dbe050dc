"""Equal and near-equal texts across splits and tasks: planted, absent, by hand, and refused."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from xferkit.transfer.causes import TextPart, fold_text, leakage, near_pairs
from xferkit.transfer.causes.shingles import jaccard, shingles


def texts(rng, words, n=60, length=8):
    return [" ".join(rng.choice(words, length)) for _ in range(n)]


def test_folding_and_shingles():
    assert fold_text("  Stra\u00dfe\tCAFE\u0301\n") == "strasse café"
    assert len(shingles("abcdef", 5)) == 2 and len(shingles("abc", 5)) == 1 and len(shingles("", 5)) == 0
    assert len(shingles("aaaaaaa", 5)) == 1
    # abcd: ab bc cd; bcde: bc cd de
    assert jaccard(shingles("abcd", 2), shingles("bcde", 2)) == pytest.approx(2 / 4)
    assert jaccard(shingles("", 2), shingles("", 2)) == 0.0


def test_near_pairs_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnop"]
    found = texts(rng, words, 40, 12)
    found += [text[:n] + "x" + text[n + 1 :] for text, n in zip(found[:20], range(3, 23), strict=True)]
    sets = [shingles(text, 3) for text in found]
    exact = {
        (i, j): jaccard(sets[i], sets[j])
        for i, j in itertools.combinations(range(len(found)), 2)
        if jaccard(sets[i], sets[j]) >= 0.7
    }
    assert {(i, j): x for i, j, x in near_pairs(found, threshold=0.7, length=3)} == exact
    assert len(exact) >= 20
    with pytest.raises(ValueError, match=r"threshold must be in \[0\.5, 1\], got 0\.1"):
        near_pairs(found, threshold=0.1)


LONG = "this product broke after two days of careful use and the shop did not answer any of my letters"


def unrelated(rng, n):
    return texts(rng, ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(300)], n, 12)


def test_duplicates_are_counted_with_positions():
    rng = np.random.default_rng(1)
    train, test = unrelated(rng, 60), unrelated(rng, 20)
    train[4], train[7] = LONG, f"The  {test[2]}"
    test[3], test[5], test[9] = LONG.upper() + " ", LONG.replace("letters", "mails"), ""
    train[11] = " "
    found = leakage(
        TextPart("books test", test),
        [
            TextPart("books train", train, "books/train.tsv", range(2, 62)),
            TextPart("dvd train", unrelated(rng, 30)),
        ],
        min_effect=0.05,
    )
    assert found.flag == "yes" and found.leaked == 1 and found.effect >= 1 / 20
    first, second = found.parts
    assert (first.exact, first.near, second.exact, second.near) == (1, 2, 0, 0)
    assert (first.flag, second.flag) == ("yes", "no")
    assert (
        first.examples[0].position == "books test, text 4"
        and first.examples[0].other_position == "books/train.tsv:6"
    )
    assert first.examples[0].text == LONG.upper()[:80] and first.examples[0].similarity == 1.0
    assert 0.8 <= first.examples[1].similarity < 1.0 and len(first.examples) == 3
    assert found.sentence().startswith(
        "1 of 20 texts of books test stand in other parts too, where none is expected"
    )
    json.dumps(found.to_json(), allow_nan=False)


def test_near_duplicates_are_held_against_those_within_a_part():
    """Forms filled in alike are near-equal everywhere, which is no leak; unlike texts with copies are one."""
    rng = np.random.default_rng(2)
    form = lambda n: [f"{LONG} number {rng.integers(10**6)}" for _ in range(n)]  # noqa: E731
    flags = [
        leakage(TextPart("test", form(10)), [TextPart("train", form(25))], splits=20, seed=n).flag
        for n in range(10)
    ]
    assert "yes" not in flags
    train = unrelated(rng, 50)
    test = [*(f"{text} x" for text in train[:20]), *unrelated(rng, 10)]
    planted = leakage(TextPart("test", test), [TextPart("train", train)])
    assert planted.flag == "yes" and planted.parts[0].near == 20 and planted.parts[0].exact == 0
    assert planted.parts[0].null_share == 0.0 and planted.parts[0].p_value < 0.01


def test_unrelated_texts_have_no_duplicates():
    rng = np.random.default_rng(3)
    parts = [TextPart(name, unrelated(rng, 25)) for name in ("test", "train")]
    found = leakage(parts[0], parts[1:], splits=10)
    assert found.flag == "no" and found.sentence().startswith("None of the 25 texts of test")
    single = leakage(TextPart("test", ["a text"]), [TextPart("train", ["another"])])
    assert single.flag == "no" and single.to_json()["parts"][0]["null_share"] is None


def test_leakage_refuses():
    part = TextPart("test", ["a"])
    with pytest.raises(ValueError, match="others must be one or more parts, got none"):
        leakage(part, [])
    with pytest.raises(ValueError, match="others must have texts, got none in train"):
        leakage(part, [TextPart("train", [])])
    with pytest.raises(ValueError, match="probe must have a line for each of its 1 texts, got 2 in test"):
        leakage(TextPart("test", ["a"], lines=[1, 2]), [part])


def test_parts_with_the_same_templates_are_rarely_a_leak():
    rng = np.random.default_rng(4)

    def part(name, bases, n):
        made = [f"{bases[rng.integers(5)]} {rng.integers(10**4)}" for _ in range(n)]
        return TextPart(name, [*made[: n // 3], *unrelated(rng, n - n // 3)])

    flags = []
    for n in range(20):
        bases = unrelated(rng, 5)
        flags.append(leakage(part("test", bases, 30), [part("train", bases, 60)], splits=20, seed=n).flag)
    assert flags.count("yes") <= 1


def test_equal_texts_are_looked_for_everywhere_and_near_ones_among_a_sample():
    rng = np.random.default_rng(3)
    train, test = unrelated(rng, 300), unrelated(rng, 40)
    train[290:295] = test[30:35]
    train[280] = LONG.replace("letters", "mails")
    test[5] = LONG
    everything = leakage(TextPart("t", test), [TextPart("s", train)])
    assert (everything.leaked, everything.parts[0].near) == (
        5,
        1,
    ) and "were looked for" not in everything.sentence()
    some = leakage(TextPart("t", test), [TextPart("s", train)], compared=20)
    assert (some.leaked, some.parts[0].exact, some.parts[0].size, some.size) == (5, 5, 300, 40)
    assert some.parts[0].examples[0].other_position == "s, text 291"
    assert "nearly equal ones of 20 were looked for among 200 of each part" in some.sentence()
    clean = leakage(TextPart("t", unrelated(rng, 40)), [TextPart("s", unrelated(rng, 300))], compared=20)
    assert clean.sentence().startswith("None of the 40") and "among 200" in clean.sentence()
    with pytest.raises(ValueError, match="compared must be at least 2, got 1"):
        leakage(TextPart("t", test), [TextPart("s", train)], compared=1)


def test_near_copies_in_a_large_part_are_found_in_a_sample_of_it():
    rng = np.random.default_rng(5)
    test, train = unrelated(rng, 100), unrelated(rng, 3000)
    for n in range(20):
        train[150 * n] = test[n] + " more"
    sampled = leakage(TextPart("t", test), [TextPart("s", train)], compared=100)
    assert sampled.parts[0].size == 3000 and sampled.parts[0].flag == "yes"
    none = leakage(TextPart("t", unrelated(rng, 100)), [TextPart("s", unrelated(rng, 3000))], compared=100)
    assert none.flag == "no"
