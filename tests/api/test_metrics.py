"""Scores and intervals against hand-computed values and scipy.stats."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferkit.metrics import (
    Interval,
    accuracy,
    binomial_error,
    macro_f1,
    majority_rate,
    paired_difference,
    t_interval,
    verdict,
)


def test_scores_by_hand():
    labels, predictions = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 0]
    assert accuracy(labels, predictions) == pytest.approx(3 / 6)
    # class 0: TP 2, FP 1, FN 1 -> 2/3; class 1: TP 1, FP 1, FN 1 -> 1/2; class 2: TP 0 -> 0
    assert macro_f1(labels, predictions) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert majority_rate(labels) == pytest.approx(0.5)


def test_macro_f1_counts_a_class_that_is_only_predicted_and_skips_one_that_is_absent():
    assert macro_f1([0, 0], [0, 5]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1([1, 1], [1, 1]) == 1.0


def test_scores_take_numpy_arrays():
    labels = np.array([0, 1, 2, 2])
    assert accuracy(labels, labels) == macro_f1(labels, labels) == 1.0
    assert accuracy(labels, labels + 1) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), st.randoms())
def test_scores_do_not_depend_on_order_or_class_numbers(pairs, random):
    y, p = [a for a, _ in pairs], [b for _, b in pairs]
    shuffled = random.sample(pairs, len(pairs))
    renamed = [7, 3, 9, 1, 5]
    for score in (accuracy, macro_f1):
        value = score(y, p)
        assert 0.0 <= value <= 1.0
        assert score([a for a, _ in shuffled], [b for _, b in shuffled]) == pytest.approx(value)
        assert score([renamed[a] for a in y], [renamed[b] for b in p]) == pytest.approx(value)


@pytest.mark.parametrize(
    ("labels", "predictions", "sentence"),
    [
        ([], [], r"accuracy: labels must be of shape \[n\] with n >= 1, got shape \[0\]"),
        ([0, 1], [0], r"accuracy: predictions must be of the labels' shape \[2\], got \[1\]"),
        ([[0]], [[0]], r"got shape \[1, 1\]"),
        ([0.5], [0.5], r"accuracy: labels must be integer class numbers, got float64"),
    ],
)
def test_wrong_scores(labels, predictions, sentence):
    with pytest.raises(ValueError, match=sentence):
        accuracy(labels, predictions)


def test_t_interval_by_hand():
    # 1..5: mean 3, s = sqrt(2.5), t_{.975, 4} = 2.776445 (tables)
    interval = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == pytest.approx(3.0)
    assert interval.half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert interval.low == pytest.approx(3.0 - interval.half_width)
    assert interval.high == pytest.approx(3.0 + interval.half_width)
    assert interval.n == 5


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_t_interval_equals_scipy(n, confidence):
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(n).normal(0.6, 0.05, n)
    low, high = stats.t.interval(confidence, n - 1, loc=x.mean(), scale=stats.sem(x))
    interval = t_interval(x.tolist(), confidence)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-10)


def test_paired_difference_equals_the_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.7, 0.1, 6), rng.normal(0.6, 0.1, 6)
    interval = paired_difference(a.tolist(), b.tolist())
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-10)
    mirrored = paired_difference(b.tolist(), a.tolist())
    assert mirrored.mean == pytest.approx(-interval.mean)


def test_one_run_has_no_interval():
    interval = t_interval([0.5])
    assert interval.mean == 0.5 and math.isnan(interval.half_width)
    assert verdict(interval) == "one run only"


def test_equal_runs_have_an_interval_of_width_zero():
    assert t_interval([0.25, 0.25, 0.25]).half_width == 0.0


@pytest.mark.parametrize(
    ("mean", "half_width", "expected"),
    [
        (0.05, 0.04, "helps"),
        (-0.05, 0.04, "hurts"),
        (0.05, 0.06, "no clear difference"),
        (-0.05, 0.06, "no clear difference"),
        (0.05, 0.05, "no clear difference"),
        (0.0, 0.0, "no clear difference"),
    ],
)
def test_verdict(mean, half_width, expected):
    assert verdict(Interval(mean, half_width, 5)) == expected


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(3)
    inside = 0
    for x in rng.normal(0.0, 1.0, (2000, 4)):
        interval = t_interval(x.tolist())
        inside += interval.low <= 0.0 <= interval.high
    assert 0.935 < inside / 2000 < 0.965  # binomial standard error .005


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: t_interval([]), "t_interval: values must be of shape"),
        (lambda: t_interval([1.0, math.nan]), "values must be finite"),
        (lambda: t_interval([1.0, 2.0], confidence=1.0), r"confidence must be in \(0, 1\), got 1.0"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "got 1 and 2 runs"),
        (lambda: binomial_error(1.5, 10), r"rate must be in \[0, 1\], got 1.5"),
        (lambda: binomial_error(0.5, 0), "num_examples must be at least 1, got 0"),
    ],
)
def test_wrong_intervals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_binomial_error_by_hand():
    assert binomial_error(0.5, 100) == pytest.approx(0.05)
    assert binomial_error(1.0, 10) == 0.0
