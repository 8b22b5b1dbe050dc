"""Spans from BIO tags: both readings by hand and against seqeval."""

from __future__ import annotations

import math
import random
import warnings
from functools import partial

import numpy as np
import pytest

from xferkit.metrics import Span, bio_spans, span_f1, token_accuracy
from xferkit.metrics.spans import as_bio

SCHEMES = ("conlleval", "strict")


def test_well_formed_tags_have_one_reading():
    tags = ["O", "B-PER", "I-PER", "B-PER", "B-LOC", "I-LOC", "O", "B-LOC"]
    expected = [Span(1, 3, "PER"), Span(3, 4, "PER"), Span(4, 6, "LOC"), Span(7, 8, "LOC")]
    for scheme in SCHEMES:
        assert bio_spans(tags, scheme) == expected
        assert bio_spans([], scheme) == bio_spans(["O", "O"], scheme) == []


@pytest.mark.parametrize(
    ("tags", "lenient", "strict"),
    [
        (["I-PER", "I-PER"], [Span(0, 2, "PER")], []),
        (["O", "I-PER", "O"], [Span(1, 2, "PER")], []),
        (["B-PER", "I-LOC", "I-LOC"], [Span(0, 1, "PER"), Span(1, 3, "LOC")], [Span(0, 1, "PER")]),
        (["B-PER", "I-PER", "I-LOC"], [Span(0, 2, "PER"), Span(2, 3, "LOC")], [Span(0, 2, "PER")]),
        (["B-a-b", "I-a-b", "I-a"], [Span(0, 2, "a-b"), Span(2, 3, "a")], [Span(0, 2, "a-b")]),
    ],
)
def test_broken_tags_have_two_readings(tags, lenient, strict):
    assert bio_spans(tags, "conlleval") == lenient
    assert bio_spans(tags, "strict") == strict


def test_scores_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "I-LOC"]]
    scores = span_f1(gold, predicted)
    assert (scores.right, scores.predicted, scores.gold, scores.scheme) == (1, 3, 3, "conlleval")
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert list(scores.per_type) == ["LOC", "PER"]
    assert scores.per_type["PER"].f1 == pytest.approx(2 / 3)
    assert (scores.per_type["LOC"].gold, scores.per_type["LOC"].right, scores.per_type["LOC"].f1) == (
        2,
        0,
        0.0,
    )


def test_nothing_to_find_scores_zero_without_a_division_by_zero():
    scores = span_f1([["O", "O"]], [["O", "O"]])
    assert (scores.precision, scores.recall, scores.f1, scores.per_type) == (0.0, 0.0, 0.0, {})
    assert span_f1([], []).f1 == 0.0
    assert span_f1([["B-A"]], [["O"]]).precision == 0.0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_equal_seqeval_on_random_tags(scheme):
    pytest.importorskip("seqeval", reason="seqeval, the reference of these scores, is not installed")
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as lenient
    from seqeval.metrics.v1 import precision_recall_fscore_support as strict
    from seqeval.scheme import IOB2

    reference = lenient if scheme == "conlleval" else partial(strict, scheme=IOB2)
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in ("PER", "LOC", "time-of/day"))]
    rng = random.Random(0)
    compared = 0
    for _ in range(200):
        gold = [[rng.choice(tags) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 6))]
        # Most predictions agree with the gold tags, so that some spans are right.
        guess = [[t if rng.random() < 0.7 else rng.choice(tags) for t in row] for row in gold]
        ours = span_f1(gold, guess, scheme)
        if not ours.gold or not ours.predicted:
            continue
        compared += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of types without a span
            micro = reference(gold, guess, average="micro")
            each = reference(gold, guess, average=None)
        assert (ours.precision, ours.recall, ours.f1) == pytest.approx(micro[:3])
        rows = [(s.precision, s.recall, s.f1, s.gold) for s in ours.per_type.values()]
        assert np.allclose(np.array(rows).T, np.array(each))
    assert compared > 150


def test_what_is_no_tag_or_does_not_pair_up_is_refused():
    for tag in ("X-PER", "B", "I-", "o", "", "B_PER"):
        with pytest.raises(ValueError, match="token 1 has tag"):
            bio_spans(["O", tag])
    with pytest.raises(ValueError, match="'conlleval' or 'strict', got 'iobes'"):
        bio_spans(["O"], "iobes")
    with pytest.raises(
        ValueError, match="sentence 2 has 1 gold tags, expected as many predicted ones, got 2"
    ):
        span_f1([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(ValueError, match=r"sentence 2 has 1 gold tags, .* got none"):
        span_f1([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="1 gold sentences and more predicted"):
        span_f1([["O"]], [["O"], ["O"]])


def test_token_accuracy_leaves_padding_out():
    labels, predictions = [[1, 2, -1], [0, -1, -1]], [[1, 1, 5], [0, 7, -1]]
    assert token_accuracy(labels, predictions) == pytest.approx(2 / 3)
    assert math.isclose(token_accuracy(np.array(labels), np.array(labels)), 1.0)
    with pytest.raises(ValueError, match="labels' shape"):
        token_accuracy([[1]], [1])
    with pytest.raises(ValueError, match="n >= 1"):
        token_accuracy([[-1]], [[0]])


def test_tags_outside_of_the_scheme_can_count_as_o():
    tags = ["B-PER", "Orecurring", "I-", "I-LOC", "X-LOC", "O", ""]
    assert as_bio(tags) == ("B-PER", "O", "O", "I-LOC", "O", "O", "O")
    assert bio_spans(as_bio(tags)) == [Span(0, 1, "PER"), Span(3, 4, "LOC")]
