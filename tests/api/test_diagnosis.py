"""``xferkit diagnose``: from files to a report, remedies raced and measured anew, and two reports compared."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xferkit.cli.main import main
from xferkit.diagnosis.config import DiagnosisConfig, diagnosis_config
from xferkit.diagnosis.diff import diff_reports
from xferkit.diagnosis.engine import Engine, Results, SpecCell
from xferkit.diagnosis.fixes import candidates, race
from xferkit.diagnosis.pipeline import run_diagnosis
from xferkit.diagnosis.plans import matrix_plan, matrix_specs
from xferkit.diagnosis.problem import RunResult, RunSpec
from xferkit.transfer import Declined, Estimate, Verdict

ROOT = Path(__file__).resolve().parents[2]


class MadeUp:
    """A problem whose scores are a formula: ``bad`` takes 10 points from the target, ``good`` gives 5.

    Dropping ``bad`` or giving it a small weight repairs it. Scores on test data have an offset, so that a test sees
    which part was scored.
    """

    name, metric, higher_is_better, target = "made up", "accuracy", True, "t"

    def __init__(self, labelled: bool = True, higher_is_better: bool = True) -> None:
        self.tasks = ("t", "good", "bad") if labelled else ("good", "bad", "worse")
        self.higher_is_better = higher_is_better
        self.asked: list[RunSpec] = []

    def sizes(self) -> dict[str, dict[str, int]]:
        own = {task: {"train": 10 + 5 * i, "dev": 4, "test": 4} for i, task in enumerate(self.tasks)}
        return {"t": {"dev": 4, "test": 4}, **own}

    def describe(self) -> str:
        return "A formula."

    def settings(self) -> dict[str, Any]:
        return {}

    def fingerprint(self) -> str:
        return "0" * 64

    def texts(self, task: str, split: str = "train") -> Iterable[str]:
        return []

    def labels(self, task: str, split: str = "train") -> Iterable[str]:
        return []

    def encode(self, task: str) -> None:
        return None

    def train(self, spec: RunSpec) -> RunResult:
        self.asked.append(spec)
        weights = spec.weights or {}
        harm = {"bad": 0.1, "worse": 0.15, "good": -0.05, "t": 0.0}
        total = sum(harm[task] * min(1.0, weights.get(task, 1.0)) for task in spec.tasks)
        noise = random.Random(f"{spec.seed} {spec.part} {spec.tasks} {weights}").gauss(0, 0.002)
        score = (
            0.7
            - total
            + noise
            - (0.05 if spec.method != "pooled" else 0.0)
            + (0.1 if spec.part == "test" else 0)
        )
        score = score if self.higher_is_better else 1.5 - score
        return RunResult({"t": score}, {}, 10, dict.fromkeys(spec.tasks, 10), 0.01)


def _run(problem: MadeUp) -> Any:
    def run(specs: Iterable[RunSpec]) -> Results:
        return Results({SpecCell.of(spec): problem.train(spec) for spec in specs})

    return run


# ---- remedies


@pytest.mark.parametrize("higher", [True, False])
def test_the_race_finds_the_remedy_and_measures_it_with_fresh_seeds_on_test_data(higher: bool) -> None:
    problem = MadeUp(higher_is_better=higher)
    groups = {"good": ("good",), "bad": ("bad",)}
    found = race(
        problem,
        candidates(problem, groups),
        _run(problem),
        race_seeds=[101, 102],
        fresh_seeds=[1, 2, 3, 4, 5],
    )
    assert found.winner.name == "without bad" and found.verdict is Verdict.HELPS
    assert found.gain.mean == pytest.approx(0.1, abs=0.01) and found.gain.low > 0
    final = [spec for spec in problem.asked if spec.part == "test"]
    assert {spec.seed for spec in final} == {1, 2, 3, 4, 5} and len(final) == 15
    by_itself = [spec for spec in final if spec.tasks == ("t",)]
    assert len(by_itself) == len(found.alone) == 5
    assert found.alone_gain is not None and found.alone_gain.mean == pytest.approx(0.05, abs=0.01)
    assert "The target by itself against the plain sum: +4.9 points" in found.sentence
    assert {spec.seed for spec in problem.asked if spec.part == "dev"} == {101, 102}
    assert "it helps" in found.sentence and "without bad" in found.sentence


def test_plain_sum_and_scalarisation_are_always_candidates() -> None:
    for labelled in (True, False):
        problem = MadeUp(labelled)
        groups = {"good": ("good",), "others": tuple(t for t in problem.tasks if t not in ("good", "t"))}
        fixes = candidates(problem, groups)
        assert fixes[0].kind == "plain sum" and fixes[0].tasks == problem.tasks
        kinds = {fix.kind for fix in fixes}
        assert {"scalarisation", "temperature", "surgery", "dropping", "mixture"} <= kinds
        assert len({fix.name for fix in fixes}) == len(fixes)
        assert all(set(fix.tasks) <= set(problem.tasks) for fix in fixes)


def test_plain_sum_is_enough_where_nothing_is_better() -> None:
    problem = MadeUp()
    plain = candidates(problem, {})[0]
    worse = [dataclasses.replace(plain, name="GradVac", kind="surgery", method="gradvac")]
    found = race(problem, [plain, *worse], _run(problem), race_seeds=[7], fresh_seeds=[1, 2])
    assert found.winner.kind == "plain sum" and "Plain sum is enough" in found.sentence
    assert found.verdict is Verdict.INCONCLUSIVE


def test_a_remedy_that_cannot_be_trained_is_told_and_the_race_goes_on() -> None:
    problem = MadeUp()
    train = problem.train

    def refusing(spec: RunSpec) -> RunResult:
        if spec.method == "man_moe":
            raise ValueError("man_moe needs unlabelled text")
        return train(spec)

    problem.train = refusing  # type: ignore[method-assign]
    fixes = candidates(problem, {"good": ("good",), "bad": ("bad",)})
    found = race(problem, fixes, _run(problem), race_seeds=[101], fresh_seeds=[1, 2])
    moe = next(t for t in found.tried if t.fix.method == "man_moe")
    assert (
        moe.problem == "man_moe needs unlabelled text"
        and not moe.scores
        and found.winner.name == "without bad"
    )


def test_the_plain_sum_stays_in_the_race_and_seeds_must_be_fresh() -> None:
    problem = MadeUp()
    fixes = candidates(problem, {"good": ("good",), "bad": ("bad",)})
    found = race(problem, fixes, _run(problem), race_seeds=[1, 2, 3], fresh_seeds=[4, 5])
    plain = next(t for t in found.tried if t.fix.kind == "plain sum")
    assert len(plain.scores) == 3
    with pytest.raises(ValueError, match="must be different ones"):
        race(problem, fixes, _run(problem), race_seeds=[1], fresh_seeds=[1, 2])


# ---- plans and runs


@pytest.mark.parametrize("budget", ["quick", "pairs", "full"])
@pytest.mark.parametrize("labelled", [True, False])
def test_every_run_of_a_plan_trains_on_tasks_of_the_problem(budget: Any, labelled: bool) -> None:
    problem = MadeUp(labelled)
    groups = {"g": ("good",), "b": tuple(t for t in problem.tasks if t not in ("good", "t"))}
    plan = matrix_plan(problem, [1, 2], budget, groups)
    specs = matrix_specs(problem, plan)
    assert set(specs) == set(plan.runs) and plan.comparisons
    assert all(
        spec.tasks and set(spec.tasks) <= set(problem.tasks) and spec.part == "dev" for spec in specs.values()
    )
    kinds = {c.kind for c in plan.comparisons}
    assert not kinds & {"pair", "group", "all"} or labelled
    matchings = {c.matching for c in plan.comparisons}
    assert matchings == ({"per_task_steps", "total_steps"} if labelled and budget == "full" else matchings)
    assert labelled or matchings == {"total_steps"}


def test_one_group_of_all_sources_is_taken_apart_where_the_target_has_no_labels() -> None:
    problem = MadeUp(labelled=False)
    plan = matrix_plan(problem, [1], "quick", {"all": problem.tasks})
    assert {c.kind for c in plan.comparisons} == {"leave_one_out"} and len(plan.comparisons) == 3
    assert all(spec.tasks for spec in matrix_specs(problem, plan).values())


@pytest.mark.parametrize(("labelled", "tasks"), [(True, ("t",)), (False, ("good",))])
def test_too_few_sources_is_a_sentence(
    labelled: bool, tasks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xferkit.diagnosis import pipeline

    problem = MadeUp(labelled)
    problem.tasks = tasks
    monkeypatch.setattr(pipeline, "open_problem", lambda config, data: problem)
    with pytest.raises(ValueError, match="expected at least"):
        run_diagnosis(DiagnosisConfig(target="t"), tmp_path, workers=0)


def test_a_run_is_done_once_and_kept(tmp_path: Path) -> None:
    problem = MadeUp()
    specs = [RunSpec(("t",), 1), RunSpec(("t", "bad"), 1), RunSpec(("t",), 1)]
    engine = Engine(problem, tmp_path, workers=0)
    found = engine.run(specs)
    assert len(problem.asked) == 2 and found[specs[0]] == found[specs[2]]
    again = MadeUp()
    engine = Engine(again, tmp_path, workers=0)
    assert (
        engine.run(specs)[specs[1]].scores == found[specs[1]].scores
        and not again.asked
        and engine.reused == 2
    )


def test_a_long_diagnosis_asks_first_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xferkit.diagnosis.engine.ASK_SECONDS", 0.0)
    asked: list[Estimate] = []
    problem = MadeUp()
    engine = Engine(problem, tmp_path, workers=0, confirm=lambda e: bool(asked.append(e)))
    with pytest.raises(Declined):
        engine.run([RunSpec(("t",), seed) for seed in range(5)])
    assert len(asked) == 1 and asked[0].runs_left == 4 and len(problem.asked) == 1
    assert len(list(tmp_path.glob("*.json"))) == 1


# ---- on files


def _write_reviews(folder: Path) -> None:
    """``films`` says what ``books`` says, ``wrong`` the opposite."""
    folder.mkdir()
    for task, flip in (("books", False), ("films", False), ("wrong", True)):
        rng = random.Random(task)
        rows = []
        for _ in range(150):
            label = rng.random() < 0.5
            mood = ["good", "great", "fine"] if label else ["bad", "awful", "dull"]
            words = [rng.choice(mood)] * 2 + [rng.choice("abcdefghij") * 3 for _ in range(5)]
            rng.shuffle(words)
            rows.append(f"{' '.join(words)} {rng.randint(0, 9999)}\t{'neg' if label == flip else 'pos'}")
        (folder / f"{task}.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")


@pytest.mark.slow
def test_own_files_without_a_configuration_give_a_report_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "reviews", tmp_path / "out"
    _write_reviews(data)
    words = ["diagnose", "--data", str(data), "--target", "books", "--seeds", "2", "--budget", "pairs"]
    words += ["--workers", "0", "--out", str(out)]
    assert main(words) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    gains = {tuple(c["sources"]): c["interval"]["mean"] for c in report["matrix"]["cells"]}
    assert gains["wrong",] < 0 and gains["wrong",] < gains["films",]
    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)=\"?http", page) and "<script" not in page and len(page) < 1_000_000
    assert "What these numbers do not say" in page and "No remedy was tried" in page
    assert {"report.html", "report.json", "matrix.csv", "matrix.md", "matrix.tex"} <= {
        p.name for p in out.iterdir()
    }
    assert main(words) == 0
    again = json.loads((out / "report.json").read_text())
    assert again["facts"]["runs_reused"] == report["facts"]["runs"] and again["matrix"] == report["matrix"]
    assert main(["diff", str(out), str(out)]) == 0
    assert "0 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words", "expected"),
    [
        ("text\tstars\tday\nx\t5\tmon\n", ["--target", "books"], r"books\.tsv.*label"),
        ("text\tlabel\nx\ty\n", ["--target", "boks"], r"boks.*books"),
        ("text\tlabel\nx\ty\n", [], "--target is missing"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence_and_exit_code_2(
    make: str, words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    _write_reviews(data)
    (data / "books.tsv").write_text(make)
    code = main(["diagnose", "--data", str(data), *words, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip()
    assert code == 2 and re.search(expected, error) and len(error.splitlines()) == 1, error


@pytest.mark.parametrize(
    "name", ["cldr", "reviews", "ud_pos", "digits_00", "digits_03", "digits_07", "digits_09"]
)
def test_shipped_configurations_are_read(name: str) -> None:
    config = diagnosis_config(ROOT / f"configs/diagnose/{name}.yaml", {"budget": "pairs"})
    assert config.target and config.budget == "pairs" and len(config.seeds) == 5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "target is missing"),
        ({"target": "t", "seeds": (1, 1)}, "seeds must be different"),
        ({"target": "t", "fresh_seeds": (1,)}, "fresh_seeds"),
        ({"target": "t", "sources": ("t",)}, "names the target"),
        ({"target": "t", "budget": "qick"}, "quick"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        DiagnosisConfig(**values)


# ---- comparing


def test_changes_between_reports(tmp_path: Path) -> None:
    def report(name: str, cells: list[tuple[str, float, str]]) -> Path:
        found = [
            {
                "sources": [source],
                "target": "t",
                "kind": "pair",
                "matching": "own",
                "verdict": verdict,
                "interval": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 5},
            }
            for source, mean, verdict in cells
        ]
        path = tmp_path / name
        path.mkdir()
        (path / "report.json").write_text(json.dumps({"matrix": {"cells": found}}))
        return path

    before = report("a", [("x", 0.05, "HELPS"), ("y", 0.0, "INCONCLUSIVE"), ("gone", 0.1, "HELPS")])
    after = report("b", [("x", -0.05, "HURTS"), ("y", 0.005, "INCONCLUSIVE"), ("new", 0.2, "HELPS")])
    changes = {c.name.split(" ")[0]: c for c in diff_reports(before, after).changes}
    assert changes["x"].changed and changes["x"].overlap is False and changes["x"].after == -0.05
    assert not changes["y"].changed and changes["y"].overlap
    assert changes["gone"].after is None and changes["new"].before is None
    (tmp_path / "a" / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="no transfer matrix"):
        diff_reports(before, after)


def test_the_pipeline_on_a_formula_says_what_hurts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all steps but the looks, which a formula has none of."""
    from xferkit.diagnosis import pipeline
    from xferkit.transfer.causes import cluster_sources, rank_causes

    problem = MadeUp()
    monkeypatch.setattr(pipeline, "open_problem", lambda config, data: problem)
    cosines = np.array([[1.0, -0.5], [-0.5, 1.0]])
    monkeypatch.setattr(pipeline, "source_clusters", lambda *a: cluster_sources(cosines, ["good", "bad"]))
    monkeypatch.setattr(pipeline, "find_causes", lambda *a: {"": rank_causes([])})
    said: list[str] = []
    config = DiagnosisConfig(
        target="t", budget="pairs", try_fixes=True, race_seeds=(101, 102), fresh_seeds=(201, 202, 203)
    )
    page = run_diagnosis(config, tmp_path, workers=0, say=said.append)
    report = json.loads((tmp_path / "report.json").read_text())
    verdicts = {tuple(c["sources"]): c["verdict"] for c in report["matrix"]["cells"]}
    assert verdicts["bad",] == "HURTS" and verdicts["good",] == "HELPS"
    assert report["fixes"]["verdict"] == "HELPS" and "bad" in report["fixes"]["winner"]["name"]
    assert any("HURTS" in sentence for sentence in said) and "without bad" in page.read_text()
