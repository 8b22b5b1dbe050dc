"""Runs of a diagnosis: told and asked for before anybody waits, none done twice, reasons for what was not measured."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_diagnosis import MadeUp, _write_reviews

from xferkit.cli.main import main
from xferkit.diagnosis import pipeline
from xferkit.diagnosis.config import DiagnosisConfig
from xferkit.diagnosis.engine import Engine, SpecCell
from xferkit.diagnosis.fixes import Fix, candidates, race, race_specs
from xferkit.diagnosis.pipeline import run_diagnosis
from xferkit.diagnosis.plans import (
    all_tasks_spec,
    capacity_specs,
    matrix_diagnosis,
    matrix_plan,
    matrix_specs,
)
from xferkit.diagnosis.problem import Look, RunResult, RunSpec
from xferkit.transfer import Declined, Estimate, Verdict, make_plan
from xferkit.transfer.causes import gradient_conflict


class Looked(MadeUp):
    """The formula with looks: ``bad`` opposes the target."""

    def train(self, spec: RunSpec) -> RunResult:
        found = super().train(spec)
        everything = ("t", *(task for task in self.tasks if task != "t"))
        rng = random.Random(spec.seed)

        def row(a: str, b: str) -> list[float]:
            sign = -0.5 if ("bad" in (a, b)) != ("worse" in (a, b)) else 0.5
            return [sign + rng.gauss(0, 0.01)] * 2

        cosine = {a: {b: row(a, b) for b in everything[i + 1 :]} for i, a in enumerate(everything[:-1])}
        looks = [
            Look(
                step,
                ["whole", "layer"],
                cosine,
                {t: [0.8, 0.8] for t in everything},
                {t: [1.0 + rng.random(), 1.0] for t in everything},
                dict.fromkeys(everything, 1.0),
            )
            for step in range(1, spec.observe + 1)
        ]
        gates = dict.fromkeys(spec.tasks, 1.0 / len(spec.tasks)) if spec.method != "pooled" else {}
        return RunResult(**{**vars(found), "looks": looks, "gates": gates})


def _engine(tmp_path: Path, problem: MadeUp, **more: Any) -> tuple[Engine, list[str]]:
    said: list[str] = []
    return Engine(problem, tmp_path, workers=0, note=said.append, **more), said


# ---- told and asked


def test_the_question_counts_all_that_is_to_come_not_what_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xferkit.diagnosis.engine.ASK_SECONDS", 0.0)
    asked: list[Estimate] = []
    problem = MadeUp()
    engine, said = _engine(tmp_path, problem, confirm=lambda e: asked.append(e) or True)
    engine.expect("later", [RunSpec(("t", "bad"), seed) for seed in range(10)])
    engine.run([RunSpec(("t",), seed) for seed in range(3)])
    assert len(asked) == 1 and asked[0].runs_left == 2 + 10
    # Costs: two runs of one task, ten of two, 0.01 s a run of one.
    assert asked[0].seconds_left == pytest.approx(0.01 * (2 + 20))
    assert said == ["12 runs are left, about 0.2 s."]
    engine.run([RunSpec(("t", "bad"), seed) for seed in range(10)])
    assert len(asked) == 1, "a yes counts for what was told"


def test_more_runs_than_were_told_are_told_again_and_asked_for_unless_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xferkit.diagnosis.engine.ASK_SECONDS", 0.5)
    asked: list[Estimate] = []
    engine, said = _engine(tmp_path, MadeUp(), confirm=lambda e: asked.append(e) or True)
    engine.run([RunSpec(("t",), seed) for seed in range(5)])
    assert not asked and len(said) == 1
    engine.expect("fixes", [RunSpec(("t",), seed, method="gradvac") for seed in range(100)])
    engine.ask()
    assert len(asked) == 1 and asked[0].runs_left == 100
    # Surgery was not timed yet: it counts as several runs of the plain sum.
    assert asked[0].seconds_left > 2 * 0.01 * 100
    engine.ask()
    assert len(asked) == 1


def test_a_yes_covers_what_was_told_and_not_many_times_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xferkit.diagnosis.engine.ASK_SECONDS", 0.5)
    asked: list[Estimate] = []
    engine, _ = _engine(tmp_path, MadeUp(), confirm=lambda e: asked.append(e) or True)
    engine.expect("more", [RunSpec(("t",), seed) for seed in range(100, 200)])
    engine.run([RunSpec(("t",), 1), RunSpec(("t",), 2)])
    assert len(asked) == 1
    engine.expect("more", [RunSpec(("t",), seed) for seed in range(100, 1100)])
    engine.ask()
    assert len(asked) == 2 and asked[1].runs_left == 1000


def test_runs_on_the_disk_are_not_left(tmp_path: Path) -> None:
    specs = [RunSpec(("t",), seed) for seed in range(5)]
    Engine(MadeUp(), tmp_path, workers=0).run(specs)
    engine, said = _engine(tmp_path, MadeUp())
    engine.expect("all", specs)
    engine.run([RunSpec(("t", "bad"), seed) for seed in range(3)])
    assert len(said) == 1 and said[0].startswith("2 runs are left")


def test_a_no_to_the_remedies_stops_before_any_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Looked()
    monkeypatch.setattr(pipeline, "open_problem", lambda config, data: problem)
    config = DiagnosisConfig(target="t", budget="pairs", seeds=(1, 2))
    run_diagnosis(config, tmp_path, workers=0, say=lambda text: None)
    before = len(problem.asked)
    monkeypatch.setattr("xferkit.diagnosis.engine.ASK_SECONDS", 0.0)
    tried = DiagnosisConfig(target="t", budget="pairs", seeds=(1, 2), try_fixes=True)
    with pytest.raises(Declined):
        run_diagnosis(tried, tmp_path, workers=0, say=lambda text: None, confirm=lambda e: False)
    assert len(problem.asked) == before

    def refuse(specs: list[RunSpec]) -> Any:
        raise Declined("no")

    fixes = candidates(problem, {})
    with pytest.raises(Declined):
        race(problem, fixes, refuse, race_seeds=[1], fresh_seeds=[2])


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("budget", ["quick", "pairs", "full"])
def test_no_run_is_done_twice_and_the_estimate_knows_every_run(
    labelled: bool, budget: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Looked(labelled)
    monkeypatch.setattr(pipeline, "open_problem", lambda config, data: problem)
    said: list[str] = []
    config = DiagnosisConfig(
        target="t", budget=budget, seeds=(1, 2), try_fixes=True, race_seeds=(11, 12), fresh_seeds=(21, 22)
    )
    run_diagnosis(config, tmp_path, workers=0, say=said.append)
    # A look does not change a training: runs with and without one are the same.
    done = Counter(RunSpec(**{**vars(spec), "observe": 0}).__repr__() for spec in problem.asked)
    assert max(done.values()) == 1
    told = next(int(text.split()[0]) for text in said if " left, about" in text)
    assert 0.6 * len(problem.asked) <= told + 1 <= 1.6 * len(problem.asked)


def test_a_race_is_estimated_with_all_its_rounds() -> None:
    problem = MadeUp()
    fixes = [Fix("plain sum", "plain sum", problem.tasks)]
    fixes += [Fix(f"w{i}", "scalarisation", problem.tasks, weights={"bad": 0.1 + i}) for i in range(15)]
    found = race_specs(problem, fixes, [1, 2, 3, 4], [7, 8, 9])
    # Sixteen with one seed, eight with one more, four with two more; plain sum, winner and the target alone at last.
    assert len(found) == 16 + 8 + 4 * 2 + 3 * 3
    asked: list[RunSpec] = []

    def run(specs: list[RunSpec]) -> Any:
        from xferkit.diagnosis.engine import Results

        asked.extend(specs)
        return Results({SpecCell.of(spec): problem.train(spec) for spec in specs})

    race(problem, fixes, run, race_seeds=[1, 2, 3, 4], fresh_seeds=[7, 8, 9])
    assert abs(len(set(map(repr, asked))) - len(found)) <= 4  # the plain sum stays whatever it does


def test_widths_are_compared_with_runs_that_the_matrix_has() -> None:
    for labelled in (True, False):
        problem = MadeUp(labelled)
        groups = {"g": ("good",), "b": tuple(t for t in problem.tasks if t not in ("good", "t"))}
        plan = matrix_plan(problem, [1, 2], "pairs", groups)
        have = {
            *map(repr, matrix_specs(problem, plan).values()),
            *(repr(all_tasks_spec(problem, s)) for s in (1, 2)),
        }
        specs = capacity_specs(problem, "pairs", groups, [1, 2])
        assert specs is not None and len(specs) == 8
        assert all(repr(spec) in have for (width, _, _), spec in specs.items() if width == 1.0)
        assert capacity_specs(problem, "quick", groups, [1, 2]) is None


# ---- remedies


def test_equal_gains_in_all_fresh_seeds_decide_nothing() -> None:
    from xferkit.diagnosis.engine import Results

    class Coarse(MadeUp):
        def train(self, spec: RunSpec) -> RunResult:
            right = 0.75 if "bad" in spec.tasks else 0.875
            return RunResult({"t": right}, {}, 1, {}, 0.01, also={"macro_f1": right / 2})

    problem = Coarse()
    run = lambda specs: Results({SpecCell.of(s): problem.train(s) for s in specs})  # noqa: E731
    found = race(
        problem,
        candidates(problem, {"good": ("good",), "bad": ("bad",)}),
        run,
        race_seeds=[1],
        fresh_seeds=[2, 3],
    )
    assert found.winner.kind == "dropping" and found.verdict is Verdict.INCONCLUSIVE
    assert "too few examples to differ" in found.sentence and "it helps" not in found.sentence
    assert found.also == {"macro_f1": ([0.375] * 2, [0.4375] * 2)}


# ---- what is said


def test_a_target_without_labels_is_in_no_training() -> None:
    problem = MadeUp(labelled=False)
    groups = {"g": ("good",), "b": ("bad", "worse")}
    plan = matrix_plan(problem, [1, 2, 3], "pairs", groups)
    specs = matrix_specs(problem, plan)
    assert all("t" not in run.tasks and specs[run].tasks == run.tasks for run in plan.runs)
    from xferkit.diagnosis.engine import Results

    found = matrix_diagnosis(
        problem, plan, specs, Results({SpecCell.of(s): problem.train(s) for s in specs.values()})
    )
    assert all("t" not in score.tasks and score.target == "t" for score in found.scores)
    hurting = next(text for text in found.sentences if "bad HURTS" in text)
    assert hurting.startswith("Among good + bad + worse: bad HURTS t by")
    with pytest.raises(ValueError, match="budget 'pairs' trains the target alone; expected leave_out"):
        make_plan(("a", "b"), 2, target="a", budget="pairs", trained=False)


@pytest.mark.parametrize("labelled", [True, False])
def test_reasons_for_what_was_not_measured_are_true(
    labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Looked(labelled)
    monkeypatch.setattr(pipeline, "open_problem", lambda config, data: problem)
    config = DiagnosisConfig(target="t", budget="quick", seeds=(1, 2, 3))
    run_diagnosis(config, tmp_path, workers=0, say=lambda text: None)
    report = json.loads((tmp_path / "report.json").read_text())
    why = {c["cause"]: c["why"] for c in report["causes"]["all tasks"]["not_measured"]}
    assert why["gradient conflict"] == "measured for each group"
    assert "--budget pairs" in why["capacity"] and "--try-fixes" in why["gate weights"]
    assert "has no texts" in why["duplicates"] and "examples a mask are too few" in why["mask overlap"]
    for group in (g for g in report["causes"] if g != "all tasks"):
        row = {c["cause"]: c["why"] for c in report["causes"][group]["not_measured"]}
        assert row["domination"] == "measured for all tasks together" and "no labels" in row["label shift"]
        assert "--budget pairs" in row["capacity"] and "too few" in row["mask overlap"]
    assert "no labels" in why["label shift"] and "no texts" in why["unknown words"]
    assert not any(reason == "it does not apply" for reason in why.values())
    page = (tmp_path / "report.html").read_text()
    assert "measured for" not in page and "the cosine of" not in page.split("<h2>Why?")[0]
    assert page.count("<svg") >= 4 and "Cosine minus its null" in page and "nan" not in page


def test_gates_are_judged_with_the_target_s_labels_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Looked()
    monkeypatch.setattr(pipeline, "open_problem", lambda config, data: problem)
    config = DiagnosisConfig(target="t", budget="full", seeds=(1, 2), try_fixes=True)
    run_diagnosis(config, tmp_path, workers=0, say=lambda text: None)
    report = json.loads((tmp_path / "report.json").read_text())
    gate = next(c for c in report["causes"]["all tasks"]["causes"] if c["cause"] == "gate weights")
    assert [source["name"] for source in gate["sources"]] == ["good", "bad"]
    by_pair = {
        c["sources"][0]: c["interval"]["mean"]
        for c in report["matrix"]["cells"]
        if (c["kind"], c["matching"]) == ("pair", "per_task_steps")
    }
    assert {s["name"]: s["gain"] for s in gate["sources"]} == pytest.approx(by_pair)
    assert "cannot be judged" not in gate["sentence"]


@pytest.mark.parametrize("cosine", [-0.6, 0.6, 0.0])
def test_sentences_of_conflict_are_finished(cosine: float) -> None:
    pair = [[[cosine + 0.2 * seed * (-1) ** look * (cosine == 0)] for look in range(3)] for seed in range(3)]
    null = [[[0.8]] * 3] * 3
    found = gradient_conflict(pair, null, null, target="english", source="french")
    text = found.sentence()
    assert "{" not in text and "english" in text and "french" in text
    assert found.groups[0].cosine_by_look == pytest.approx([sum(s[k][0] for s in pair) / 3 for k in range(3)])
    assert found.groups[0].null_by_look == pytest.approx([0.8] * 3)


def test_one_seed_shows_no_interval_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Looked()
    monkeypatch.setattr(pipeline, "open_problem", lambda config, data: problem)
    config = DiagnosisConfig(target="t", budget="pairs", seeds=(1,))
    page = run_diagnosis(config, tmp_path, workers=0, say=lambda text: None).read_text()
    assert "nan" not in page and "one seed tells nothing about others" in page


# ---- at the command line


def test_a_file_as_the_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "reviews", tmp_path / "out"
    _write_reviews(data)
    out.write_text("mine")
    assert main(["diagnose", "--data", str(data), "--target", "books", "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert "is a file; expected a folder" in error and len(error.splitlines()) == 1
    assert out.read_text() == "mine"


@pytest.mark.slow
def test_macro_f1_from_the_variable_xfer_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "reviews", tmp_path / "out"
    _write_reviews(data)
    monkeypatch.setenv("XFER_DATA", str(data))
    words = ["diagnose", "--target", "books", "--seeds", "2", "--metric", "macro_f1", "--workers", "0"]
    assert main([*words, "--out", str(out)]) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert report["metric"] == "macro_f1" and report["other_scores"][0]["accuracy"]["n"] == 2
    assert all(cell["examples"] is None for cell in report["matrix"]["cells"])
    page = (out / "report.html").read_text()
    assert "Score: macro-F1" in page and ">accuracy</th>" in page


@pytest.mark.slow
def test_a_source_that_is_the_target_again_is_told(tmp_path: Path) -> None:
    data, out = tmp_path / "reviews", tmp_path / "out"
    _write_reviews(data)
    (data / "wrong.tsv").unlink()
    (data / "films.tsv").write_text((data / "books.tsv").read_text())
    words = ["diagnose", "--data", str(data), "--target", "books", "--seeds", "2", "--budget", "quick"]
    assert main([*words, "--workers", "0", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    size = report["sizes"]["books"]["train"]
    assert report["facts"]["repeated"] == [
        f"{size} of {size} training texts of books stand in films too, which can teach little new by them."
    ]
    assert "can teach little new" in (out / "report.html").read_text()
    # Of the parts that are scored nothing is left in the source.
    assert all(
        c["flag"] == "no" for c in report["causes"]["all tasks"]["causes"] if c["cause"] == "duplicates"
    )


@pytest.mark.slow
def test_columns_are_named_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "reviews", tmp_path / "out"
    _write_reviews(data)
    for path in data.iterdir():
        path.write_text(path.read_text().replace("text\tlabel", "review\tstars"))
    words = [
        "diagnose",
        "--data",
        str(data),
        "--target",
        "books",
        "--seeds",
        "1",
        "--workers",
        "0",
        "--out",
        str(out),
    ]
    assert main([*words, "--columns", "text=review", "label=stars"]) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert sum(report["sizes"]["books"].values()) == 150
    assert main([*words, "--columns", "text=reviw", "label=stars"]) == 2
    assert "reviw" in capsys.readouterr().err
    config = str(Path(__file__).resolve().parents[2] / "configs/diagnose/cldr.yaml")
    assert main(["diagnose", config, "--columns", "text=review", "--out", str(tmp_path / "no")]) == 2
    assert "--columns is for texts" in capsys.readouterr().err
