"""``diagnose``: how training functions are called and checked, what it answers, and in which words."""

from __future__ import annotations

import csv
import functools
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy_transfer import EFFECTS, Known, by_steps, per_example

from xferkit.transfer import Diagnosis, RunError, Verdict, diagnose

TASKS = ("en", "de", "fr", "xx")


@pytest.fixture(scope="module")
def known() -> Diagnosis:
    return diagnose(Known(), TASKS, target="en")


def test_it_finds_what_is_there(known) -> None:
    verdicts = {cell.sources[0]: cell.verdict for cell in known.cells}
    assert verdicts == {"de": Verdict.HELPS, "fr": Verdict.HURTS, "xx": Verdict.INCONCLUSIVE}
    for cell in known.cells:
        assert cell.gain == pytest.approx(EFFECTS[cell.sources[0]], abs=0.01)
        assert cell.judgement.interval.n == 5 and len(cell.gains) == 5
    assert [score.tasks for score in known.scores] == [("en",), ("en", "de"), ("en", "fr"), ("en", "xx")]
    alone, with_de = known.scores[:2]
    np.testing.assert_allclose(known.cell("en", "de").gains, np.subtract(with_de.values, alone.values))


def test_it_says_so_in_words(known) -> None:
    first, second, third = known.sentences
    fr, de, xx = (known.cell("en", name).judgement.interval for name in ("fr", "de", "xx"))
    assert first == (
        f"fr HURTS en by {-100 * fr.mean:.1f} points [{-100 * fr.high:.1f}, {-100 * fr.low:.1f}] "
        "(5 seeds, training not matched)."
    )
    assert second.startswith(f"de HELPS en by {100 * de.mean:.1f} points [{100 * de.low:.1f}, ")
    assert third.startswith("xx on en: INCONCLUSIVE, 0.0 points [-"), "no sign before a rounded zero"
    assert f"[{100 * xx.low:+.1f}, {100 * xx.high:+.1f}]" in third
    assert "needs " in third and third.endswith("more seeds).")
    assert any("not matched" in note for note in known.notes)
    assert any("all 3 comparisons together (Holm)" in note for note in known.notes)


def test_several_sources_in_words() -> None:
    groups = {"block": ["de", "fr"]}
    answer = diagnose(Known(), TASKS, target="en", budget="full", groups=groups, matchings="total_steps")
    said = "\n".join(["", *answer.sentences])
    assert "block (de, fr) HURTS en by 2." in said
    assert "de + fr + xx together HURT en by 2." in said
    assert "\nAmong en + de + fr + xx: fr HURTS en by " in said
    assert "\nAmong en + de + fr + xx: block (de, fr) HURTS en by " in said
    assert "same total steps" in said and any("the caller's word" in note for note in answer.notes)
    assert answer.cell("en", ["fr", "de"]).kind == "group"
    assert answer.cell("en", "fr", kind="leave_one_out").comparison.without_tasks == ("en", "de", "xx")
    with pytest.raises(KeyError, match="no cell for target 'en'"):
        answer.cell("en", "zz")


def test_losses_turn_the_sign() -> None:
    """The same numbers, read as losses: what helped hurts, in raw units."""
    answer = diagnose(Known(), TASKS, target="en", higher_is_better=False)
    verdicts = {cell.sources[0]: cell.verdict for cell in answer.cells}
    assert verdicts == {"de": Verdict.HURTS, "fr": Verdict.HELPS, "xx": Verdict.INCONCLUSIVE}
    harm = answer.cell("en", "de").judgement.interval
    ends = f"[{-harm.high:.4f}, {-harm.low:.4f}]"
    assert 0.001 < harm.half_width < 0.01, "so that four decimals are two digits of it"
    assert answer.sentences[0].startswith(f"de HURTS en by {-harm.mean:.4f} {ends} (5 seeds, ")
    mixed = diagnose(Known(), TASKS, target=["en", "de"], higher_is_better={"en": False, "de": True})
    assert mixed.cell("en", "fr").verdict is Verdict.HELPS and mixed.cell("de", "fr").points
    with pytest.raises(ValueError, match="for 'de', got None"):
        diagnose(Known(), TASKS, target=["en", "de"], higher_is_better={"en": True})


def test_tables(known) -> None:
    text = known.table().splitlines()
    assert len(text) == 2 + 3 and text[0].split()[:2] == ["target", "source"] and "95 % interval" in text[0]
    assert len({line.index("training") for line in text[2:]}) == 1, "columns are aligned"
    rows = known.table("markdown").splitlines()
    assert all(row.count("|") == 11 for row in rows) and rows[1].startswith("| :-- |")
    assert rows[3].endswith("| HURTS |")
    latex = known.to_latex()
    assert latex.count(r"\\") == 4 and r"95 \% interval" in latex and r"$<0.001$" in latex
    with pytest.raises(ValueError, match="'text' or 'markdown'"):
        known.table("html")


def test_names_with_signs_stay_in_their_cell() -> None:
    odd = ("a|b", "c_d & 100%", "[e]\nf", 'g,"h"')
    answer = diagnose(lambda tasks, seed: {t: 0.5 + 0.01 * seed * len(tasks) for t in tasks}, odd, 2)
    for row in answer.table("markdown").splitlines():
        assert row.replace("\\|", "").count("|") == 11
    latex = answer.to_latex()
    assert r"c\_d \& 100\%" in latex and "\n{[e] f} &" in latex
    assert all(
        line.count("&") - line.count(r"\&") == 9 for line in latex.splitlines() if line.endswith("\\\\")
    )
    rows = list(csv.DictReader(io.StringIO(answer.to_csv())))
    assert len(rows) == 12 and {row["target"] for row in rows} == set(odd)


def test_json_and_csv_hold_everything(known) -> None:
    content = json.loads(known.to_json())
    assert content["seeds"] == [1, 2, 3, 4, 5] and content["runs"] == 20 and content["comparisons"] == 3
    rows = list(csv.DictReader(io.StringIO(known.to_csv())))
    for cell, record, row in zip(known.cells, content["cells"], rows, strict=True):
        judgement = cell.judgement
        assert record["gains"] == list(cell.gains) and record["verdict"] == row["verdict"] == cell.verdict
        assert record["interval"]["low"] == judgement.interval.low == float(row["low"])
        assert record["ntg"] == -cell.gain == -float(row["gain"])
        assert (record["p"], record["holm_p"]) == (judgement.p, judgement.holm_p)
        assert [float(v) for v in row["gains"].split(";")] == list(cell.gains)
    assert content["scores"][0]["values"] == list(known.scores[0].values)
    one = json.loads(diagnose(Known(), TASKS, 1).to_json())
    assert one["cells"][0]["interval"]["low"] is None, "JSON has no NaN"


def test_scores_per_example_get_an_interval_over_examples() -> None:
    answer = diagnose(per_example, ("en", "fr", "de"), target="en")
    fr, de = answer.cell("en", "fr"), answer.cell("en", "de")
    assert fr.examples is not None and fr.examples.examples == 200
    assert fr.examples.mean == pytest.approx(fr.gain) and fr.examples.high < 0.0
    assert de.examples is not None and (de.examples.low, de.examples.high) == (0.0, 0.0)
    assert json.loads(answer.to_json())["cells"][0]["examples"]["method"] == "bca"
    assert diagnose(Known(), TASKS, target="en").cells[0].examples is None

    def shrinking(tasks, seed):
        return {task: np.ones(10 - len(tasks)) for task in tasks}

    with pytest.raises(RunError, match=r"the run en \+ de, seed 1 scored 8 .* 'en' and the run en, seed 1 9"):
        diagnose(shrinking, ("en", "de"), target="en")


# Calls


def test_how_a_function_wants_to_be_called() -> None:
    seen = []

    def with_run(tasks, seed, *, run):
        seen.append((tasks, seed, run.tasks, run.seed, run.matching))
        return dict.fromkeys(tasks, 0.5)

    def with_matching(tasks, seed, matching="total_steps"):
        seen.append((tasks, seed, matching))
        return dict.fromkeys(tasks, 0.5)

    def with_rest(tasks, seed, **rest):
        seen.append((tasks, seed, rest))
        return dict.fromkeys(tasks, 0.5)

    diagnose(with_run, ("a", "b"), [3], target="a")
    assert seen[1] == (("a", "b"), 3, ("a", "b"), 3, "per_task_steps")
    seen.clear()
    diagnose(with_matching, ("a", "b"), [3], target="a", budget="full")
    assert [call[2] for call in seen if len(call[0]) == 2] == ["per_task_steps", "total_steps"]
    seen.clear()
    bound = functools.partial(with_matching, matching="total_steps")
    answer = diagnose(bound, ("a", "b"), [3], target="a")
    assert [call[2] for call in seen] == ["total_steps"] * 2 and answer.plan.matchings == ("own",)
    seen.clear()
    assert diagnose(with_rest, ("a", "b"), [3], target="a").plan.matchings == ("own",)
    assert seen[0] == (("a",), 3, {})


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (None, "must be a function"),
        (lambda tasks: {}, r"cannot be called as train_fn\(tasks, seed\)"),
        (lambda tasks, seed, run, more: {}, r"cannot be called as train_fn\(tasks, seed, run=run\)"),
    ],
)
def test_functions_that_cannot_be_called(function, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        diagnose(function, ("a", "b"))


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (None, "must return {task: score}, got NoneType None"),
        (0.5, "must return {task: score}, got float 0.5"),
        ({"a": 0.5}, "no score for 'b'; it returned scores for: a"),
        ({}, "scores for: none"),
        ({"a": 0.5, "b": None}, "NoneType None for 'b'"),
        ({"a": 0.5, "b": "0.7"}, "str '0.7' for 'b'"),
        ({"a": 0.5, "b": ["0.7"]}, "list .* for 'b'"),
        ({"a": 0.5, "b": True}, "bool True for 'b'"),
        ({"a": 0.5, "b": float("nan")}, "nan of 'b'"),
        ({"a": 0.5, "b": [1.0, float("inf")]}, "inf for example 1 of 'b'"),
        ({"a": 0.5, "b": []}, r"shape \[0\] for 'b'"),
        ({"a": 0.5, "b": np.ones((2, 2))}, r"shape \[2, 2\] for 'b'"),
        ({"a": 0.5, "b": {"accuracy": 1.0}}, "dict .* for 'b'"),
        ({"a": 0.5, "b": torch.tensor(0.5, requires_grad=True)}, "requires grad"),
    ],
)
def test_what_it_returns_is_checked(result, sentence) -> None:
    def train(tasks, seed):
        return result if len(tasks) == 2 else {tasks[0]: 0.5}

    with pytest.raises(RunError, match=r"the run a \+ b, seed 1 failed: ValueError: .*") as error:
        diagnose(train, ("a", "b"))
    error.match(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("one", [1, np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_numbers_of_every_library(one) -> None:
    answer = diagnose(lambda tasks, seed: {**dict.fromkeys(tasks, one), "more": "ignored"}, ("a", "b"), 1)
    assert answer.scores[0].values == (float(one),) and answer.cells[0].examples is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"workers": -1}, "workers"),
        ({"confidence": 1.0}, "confidence"),
        ({"higher_is_better": "yes"}, "higher_is_better"),
        ({"settings": {"f": object()}}, "plain JSON"),
        ({"matchings": ("per_task_steps", "total_steps")}, "cannot follow the matchings"),
        ({"workers": 1, "train_fn": lambda tasks, seed: {}}, "cannot be sent to worker processes"),
    ],
)
def test_diagnose_refuses_before_anything_is_trained(change, sentence, tmp_path) -> None:
    calls = tmp_path / "calls"
    with pytest.raises(ValueError, match=sentence):
        diagnose(**{"train_fn": Known(log=str(calls)), "tasks": TASKS, **change})
    assert not calls.exists()


def test_a_failing_run_is_named_with_its_own_error() -> None:
    def train(tasks, seed):
        raise ZeroDivisionError("no batch")

    with pytest.raises(RunError, match=r"the run a, seed 1 failed: ZeroDivisionError: no batch") as error:
        diagnose(train, ("a", "b"))
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_matched_runs_reach_the_function() -> None:
    answer = diagnose(by_steps, ("a", "b"), 2, matchings="total_steps")
    np.testing.assert_allclose(answer.cell("a", "b").gains, -0.01)


def test_nothing_here_imports_torch() -> None:
    code = "import sys, xferkit.transfer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
