"""Negative transfer: the gap, its interval, Holm, verdicts, and the plan of runs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from toy_transfer import by_steps, by_total, ignores_sources

from xferkit.transfer import (
    Verdict,
    bootstrap_examples,
    diagnose,
    holm,
    judge,
    make_plan,
    more_seeds,
    paired_p_value,
    transfer_gap,
)

TASKS = ("en", "de", "fr")


def draws(repeats: int, n: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.3, size=(repeats, n))


# The gap


def test_gap_by_hand_and_both_directions() -> None:
    up = transfer_gap([0.6, 0.7, 0.5], [0.7, 0.9, 0.8], metric="accuracy")
    np.testing.assert_allclose(up.gains, [-0.1, -0.2, -0.3])
    assert (up.gain, up.ntg) == pytest.approx((-0.2, 0.2)) and up.is_negative_transfer
    assert up.metric == "accuracy"
    assert up.interval.high == pytest.approx(-0.2 + stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    down = transfer_gap([0.6, 0.7, 0.5], [0.7, 0.9, 0.8], higher_is_better=False)
    np.testing.assert_allclose(down.gains, [0.1, 0.2, 0.3])
    assert down.ntg == pytest.approx(-0.2) and not down.is_negative_transfer


def test_gap_pairs_by_seed() -> None:
    """Seeds that differ by far more than the gain do not hide it."""
    without = np.array([0.1, 0.5, 0.9, 0.3])
    paired = transfer_gap((without + 0.01).tolist(), without.tolist())
    assert paired.interval.half_width < 1e-9 and paired.gain == pytest.approx(0.01)
    with pytest.raises(ValueError, match="pair seed by seed, got 2 and 1"):
        transfer_gap([0.1, 0.2], [0.1])


def test_gap_of_a_method_that_ignores_the_source_is_exactly_zero() -> None:
    for higher in (True, False):
        answer = diagnose(ignores_sources, TASKS, budget="full", higher_is_better=higher)
        assert len(answer.cells) == 3 * (2 + 1 + 2)
        for cell in answer.cells:
            assert cell.gains == (0.0,) * 5
            gap = transfer_gap([0.3], [0.3], higher_is_better=higher)
            assert str(cell.gain) == str(gap.ntg) == "0.0"  # no minus before a zero
            assert cell.verdict is Verdict.INCONCLUSIVE and cell.judgement.p == 1.0
            assert cell.judgement.note == "no difference in any seed"
    # Not because everything is the same: the seeds and the tasks differ.
    assert len({value for score in answer.scores for value in score.values}) == 15


@pytest.mark.parametrize("function", [by_steps, by_total])
def test_both_matchings(function) -> None:
    """Without any conflict, the same steps per task change nothing, and the same total costs what it takes away."""
    both = ("per_task_steps", "total_steps")
    answer = diagnose(function, TASKS, target="en", budget="full", matchings=both)
    per_task = answer.cell("en", "de", matching="per_task_steps")
    total = answer.cell("en", "de", matching="total_steps")
    assert per_task.gains == (0.0,) * 5
    np.testing.assert_allclose(total.gains, 1 / 100 - 1 / 50)
    everything = answer.cell("en", ("de", "fr"), kind="all", matching="total_steps")
    np.testing.assert_allclose(everything.gains, 1 / 100 - (1 / 34 if function is by_steps else 3 / 100))
    assert answer.plan.matchings == both
    assert {run.matching for run in answer.plan.runs if len(run.tasks) > 1} == set(both)
    alone = [run for run in answer.plan.runs if len(run.tasks) == 1]
    assert len(alone) == 5, "a task alone is trained once a seed, whichever the matching"


_TRAINED: list[tuple[tuple[str, ...], int]] = []  # a global: a change of it makes no other function


def _stops_in_its_fifth_run(tasks: tuple[str, ...], seed: int) -> dict[str, float]:
    if len(_TRAINED) == 4:
        raise KeyboardInterrupt
    _TRAINED.append((tasks, seed))
    return {task: 0.5 + 0.01 * seed - 0.02 * len(tasks) * (seed % 2) for task in tasks}


def test_resumption(tmp_path: Path) -> None:
    """A stopped call goes on with what is missing, and ends with the answer of one that was never stopped."""
    done = []
    for _ in range(2):
        _TRAINED.clear()
        with pytest.raises(KeyboardInterrupt):
            diagnose(_stops_in_its_fifth_run, TASKS, 3, target="en", out=tmp_path)
        done += _TRAINED
    _TRAINED.clear()
    answer = diagnose(_stops_in_its_fifth_run, TASKS, 3, target="en", out=tmp_path)
    done += _TRAINED
    assert len(done) == len(set(done)) == answer.plan.num_runs == 9 and len(_TRAINED) == 1
    gains = [-0.02 * (seed % 2) for seed in (1, 2, 3)]
    np.testing.assert_allclose(answer.cell("en", "de").gains, gains, atol=1e-12)


# Intervals and p-values


@pytest.mark.parametrize("n", [3, 5])
def test_paired_interval_covers_what_it_says(n) -> None:
    with_source, without = draws(4000, n, 0.4, 1), draws(4000, n, 0.1, 2)
    hits = 0
    for a, b in zip(with_source, without, strict=True):
        interval = transfer_gap(a.tolist(), b.tolist()).interval
        hits += interval.low <= 0.3 <= interval.high
    assert 0.93 <= hits / 4000 <= 0.97


def test_a_bootstrap_over_few_seeds_does_not() -> None:
    """Why there is none: of 3 seeds it covers about 73 %, of 5 about 83 %."""
    for n, low, high in ((3, 0.68, 0.80), (5, 0.78, 0.88)):
        hits = 0
        for row in draws(600, n, 0.3, 3):
            found = bootstrap_examples(row, np.zeros(n), method="percentile", samples=400)
            hits += found.low <= 0.3 <= found.high
        assert low < hits / 600 < high


def test_p_value_is_that_of_the_paired_t_test() -> None:
    for row in draws(20, 5, 0.5):
        assert paired_p_value(row) == pytest.approx(stats.ttest_1samp(row, 0.0).pvalue)
    assert paired_p_value([0.2]) == paired_p_value([0.1, 0.1]) == 1.0
    with pytest.raises(ValueError, match="finite"):
        paired_p_value([0.1, math.nan])


# Several comparisons


def test_holm_by_hand() -> None:
    # .005 · 4 = .02; .01 · 3 = .03; .03 · 2 = .06; .04 · 1 = .04, raised to the .06 before it.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == (1.0, 1.0) and holm([]) == () and holm([0.03]) == (0.03,)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, 1.5])


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6))
def test_holm_is_bonferroni_over_every_subset(p_values) -> None:
    """Closed testing: a hypothesis falls when every intersection that holds it does."""
    places = range(len(p_values))
    subsets = [s for k in range(1, len(p_values) + 1) for s in itertools.combinations(places, k)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in places
    ]
    np.testing.assert_allclose(holm(p_values), expected, atol=1e-15)


def test_family_wise_error_of_verdicts() -> None:
    """Six sources that do nothing, against one baseline that all share: any verdict is false."""
    generator = np.random.default_rng(5)
    any_wrong = any_wrong_alone = 0
    repeats = 1500
    for _ in range(repeats):
        gains = generator.standard_normal((6, 5)) - generator.standard_normal(5)
        found = judge(gains.tolist())
        any_wrong += any(j.verdict is not Verdict.INCONCLUSIVE for j in found)
        any_wrong_alone += any(j.p <= 0.05 for j in found)
    assert 0.005 < any_wrong / repeats <= 0.05
    assert any_wrong_alone / repeats > 0.10, "without Holm it would be far more, so this test can fail"


def test_verdict_under_holm_is_weaker_than_alone() -> None:
    clear, weak, nothing = [0.10, 0.11, 0.09, 0.10, 0.12], [-0.1, -0.25, -0.6, -0.06, -0.4], [1.0, -1.0, 0.1]
    one = judge([weak])[0]
    assert one.verdict is Verdict.HURTS and one.p == one.holm_p < 0.05
    first, second, third = judge([clear, weak, nothing])
    assert first.verdict is Verdict.HELPS and first.holm_p == pytest.approx(3 * first.p)
    assert second.p == one.p and second.holm_p == pytest.approx(2 * one.p) and second.interval.high < 0.0
    assert second.verdict is Verdict.INCONCLUSIVE
    assert second.phrase().startswith("INCONCLUSIVE (clear by itself, not after Holm; needs about ")
    # What is missing is counted at the level at which Holm stopped: 5 % over the two that are open.
    assert second.more_seeds == more_seeds(weak, 0.025)
    assert third.more_seeds == more_seeds(nothing, 0.025) is None
    assert third.phrase() == "INCONCLUSIVE (needs more than 100 more seeds)"


def test_seeds_that_are_missing() -> None:
    for row in draws(30, 5, 0.5, 8):
        expected = None
        for k in range(1, 101):
            n = 5 + k
            if stats.t.ppf(0.975, n - 1) * row.std(ddof=1) / math.sqrt(n) < abs(row.mean()):
                expected = k
                break
        assert more_seeds(row) == expected
    assert more_seeds([-1.0, 1.0, 0.001]) is None and more_seeds([0.2]) is None
    almost = judge([[0.30, 0.05, 0.22, 0.06]])[0]
    assert almost.phrase() == "INCONCLUSIVE (needs about 1 more seed)"


def test_a_training_without_a_seed_convinces_nobody() -> None:
    """Five runs that are one: the deviation is 0 (or rounding) and a t-test would be certain."""
    same = [0.7 - 0.8, 0.6 - 0.7, 0.5 - 0.6, 0.9 - 1.0]
    assert len(set(same)) > 1, "rounding makes them differ"
    found = judge([same, [0.1]])
    assert [j.verdict for j in found] == [Verdict.INCONCLUSIVE] * 2
    assert "does not use its seed" in found[0].phrase() and "one seed" in found[1].phrase()
    assert math.isnan(found[1].interval.half_width)


# Bootstrap over test examples


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_over_examples_agrees_with_scipy(method) -> None:
    gains = np.random.default_rng(4).exponential(size=60) - 0.5
    ours = bootstrap_examples(gains, np.zeros(60), method=method, samples=20_000)
    theirs = stats.bootstrap(
        (gains,), np.mean, method={"bca": "BCa"}.get(method, method), n_resamples=20_000, rng=1
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)
    assert ours.mean == pytest.approx(gains.mean()) and ours.examples == 60
    plain = bootstrap_examples(gains, np.zeros(60), method="percentile", samples=20_000)
    assert method == "percentile" or ours.high > plain.high + 0.012, "a skewed sample moves the BCa ends"


def test_bootstrap_over_examples_counts_ties_half() -> None:
    """Means of few right and wrong answers tie with the mean itself, which must not pass for a bias."""
    gains = np.array([0.0] * 9 + [1.0] * 3)
    ours = bootstrap_examples(gains, np.zeros(12), samples=20_000)
    theirs = stats.bootstrap((gains,), np.mean, n_resamples=20_000, rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_bootstrap_over_examples_covers_pairs_and_averages_seeds() -> None:
    generator = np.random.default_rng(9)
    hits = 0
    for _ in range(300):
        hard = generator.random(80)  # what both models share, and only pairing removes
        a, b = (generator.random((3, 80)) < 0.3 + 0.6 * hard for _ in range(2))
        found = bootstrap_examples(a, b, samples=300)
        hits += found.low <= 0.0 <= found.high
        assert found.mean == pytest.approx(a.mean() - b.mean())
    assert 0.90 <= hits / 300 <= 0.985
    up, down = (bootstrap_examples(a, b, higher_is_better=higher) for higher in (True, False))
    assert down.mean == -up.mean and down.low < -up.mean < down.high
    assert bootstrap_examples(a, b) == bootstrap_examples(a, b) != bootstrap_examples(a, b, seed=1)
    same = bootstrap_examples(a, a)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([1.0], [1.0, 2.0]), r"got \[1\] and \[2\]"),
        (([], []), "must have one shape"),
        (([math.inf], [0.0]), "finite"),
    ],
)
def test_bootstrap_refuses(arguments, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        bootstrap_examples(*arguments)
    for wrong in ({"confidence": 1.0}, {"method": "basic"}, {"samples": 10}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            bootstrap_examples([1.0, 2.0], [0.0, 1.0], **wrong)


# The plan


def test_pairs_share_their_runs() -> None:
    plan = make_plan(("a", "b", "c", "d"), 3)
    assert len(plan.comparisons) == 12 and plan.num_runs == 3 * (4 + 6)
    assert plan.describe() == "12 comparisons of 10 task sets, 3 seeds: 30 runs."
    assert make_plan(("a", "b"), 1, target="a").describe() == "1 comparison of 2 task sets, 1 seed: 2 runs."
    assert plan.runs[0].tasks == ("a",) and {run.seed for run in plan.runs[:10]} == {1}
    for comparison in plan.comparisons:
        assert comparison.without_tasks == (comparison.target,)
        for with_source, without in plan.pairs(comparison):
            assert with_source.seed == without.seed and {with_source, without} <= set(plan.runs)
    one = make_plan(("a", "b", "c", "d"), [7, 9], target="c")
    assert one.num_runs == 2 * 4 and [c.sources for c in one.comparisons] == [("a",), ("b",), ("d",)]
    assert one.comparisons[2].with_tasks == ("c", "d") and one.comparisons[0].with_tasks == ("a", "c")


def test_full_matrix() -> None:
    plan = make_plan(
        ("a", "b", "c"), 1, target="a", budget="full", matchings=("per_task_steps", "total_steps")
    )
    kinds = [(c.kind, c.sources, c.without_tasks) for c in plan.comparisons if c.matching == "total_steps"]
    assert kinds == [
        ("pair", ("b",), ("a",)),
        ("pair", ("c",), ("a",)),
        ("all", ("b", "c"), ("a",)),
        ("leave_one_out", ("b",), ("a", "c")),
        ("leave_one_out", ("c",), ("a", "b")),
    ]
    assert plan.num_runs == 1 + 2 * 3  # a alone once; ab, ac, abc in both matchings
    two = make_plan(("a", "b"), 1, budget="full")
    assert [c.kind for c in two.comparisons] == ["pair", "pair"], "of two tasks all kinds are one comparison"


def test_groups_leave_their_target_out() -> None:
    groups = {"near": ["a", "b"], "far": ["c", "d"], "self": ["a"]}
    plan = make_plan(("a", "b", "c", "d"), 1, target="a", budget="groups", groups=groups)
    assert [(c.group, c.sources, c.kind) for c in plan.comparisons] == [
        ("near", ("b",), "group"),
        ("far", ("c", "d"), "group"),
    ]
    full = make_plan(("a", "b", "c", "d"), 1, target="a", budget="full", groups=groups)
    assert [c.without_tasks for c in full.comparisons if c.kind == "leave_group_out"] == [("a", "b")]


def test_a_target_without_labels_is_never_trained_alone() -> None:
    plan = make_plan(("a", "b", "c"), 1, target="a", budget="leave_out", groups={"g": ["b", "c"]})
    assert [(c.kind, c.without_tasks) for c in plan.comparisons[:2]] == [
        ("leave_one_out", ("a", "c")),
        ("leave_one_out", ("a", "b")),
    ]
    some = make_plan(("a", "b", "c"), 1, target="a", budget="leave_groups_out", groups={"g": ["b"]})
    assert [(c.kind, c.group, c.without_tasks) for c in some.comparisons] == [
        ("leave_group_out", "g", ("a", "c"))
    ]


def test_steps_of_a_run() -> None:
    per_task, total = make_plan(
        ("a", "b", "c"), 1, target="a", budget="full", matchings=("total_steps", "per_task_steps")
    ).runs[-2:]
    assert per_task.steps(100) == {"a": 100, "b": 100, "c": 100} and per_task.cost == 3.0
    assert total.steps(100) == {"a": 34, "b": 33, "c": 33} and total.cost == 1.0
    with pytest.raises(ValueError, match="no matching"):
        make_plan(("a", "b"), 1, matchings="own").runs[0].steps(10)
    with pytest.raises(ValueError, match="1 or more"):
        total.steps(0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tasks": "ab"}, r"tasks must be a list of names, got the single text 'ab'; expected \['ab', ...\]"),
        ({"tasks": None}, "tasks must be a list of names, got None"),
        ({"tasks": 3}, "tasks must be a list of names, got 3"),
        ({"tasks": {"a", "b"}}, "got a set, which has no order"),
        ({"groups": {"g": "b"}}, r"groups\['g'\] must be a list of names, got the single text 'b'"),
        ({"tasks": ["a"]}, "2 names or more"),
        ({"tasks": ["a", "b", "a"]}, "'a' more than once"),
        ({"tasks": ["a", ""]}, "list of names"),
        ({"target": "c"}, "'c' is none of the tasks a, b"),
        ({"seeds": 0}, "1 or more"),
        ({"seeds": [1, 1]}, "differ"),
        ({"seeds": [1.5]}, "whole numbers"),
        ({"seeds": True}, "whole numbers"),
        ({"seeds": []}, "one or more"),
        ({"budget": "quick"}, "one of groups, pairs, full"),
        ({"budget": "groups"}, "give them as groups"),
        ({"budget": "groups", "groups": {"g": ["a"]}, "target": "a"}, "nothing to compare"),
        ({"groups": {"g": ["z"]}}, r"groups\['g'\]: 'z' is none"),
        ({"matchings": ["steps"]}, "matchings must be some of"),
        ({"matchings": ["own", "total_steps"]}, "stands alone"),
    ],
)
def test_plan_refuses(change, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_plan(**{"tasks": ["a", "b"], **change})


def test_tasks_may_be_anything_in_an_order() -> None:
    assert make_plan({"b": 1, "a": 2}.keys(), 1).tasks == ("b", "a")
    assert make_plan(iter("ab"), 1, groups={"g": {"a", "b"}}).tasks == ("a", "b")


def test_seeds_may_be_numpy_integers() -> None:
    assert make_plan(("a", "b"), np.arange(3)).seeds == (0, 1, 2)
