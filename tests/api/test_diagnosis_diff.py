"""Two reports compared: which verdicts changed, which comparisons are new or gone, and files that are no reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from xferkit.cli.main import main
from xferkit.diagnosis.diff import Change, diff_reports


def cell(source: str, mean: float, verdict: str, **change: Any) -> dict[str, Any]:
    return {
        "kind": "pair",
        "sources": [source],
        "target": "en",
        "matching": "per_task_steps",
        "interval": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 5},
        "verdict": verdict,
        **change,
    }


def written(folder: Path, *cells: Any, **facts: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps({**facts, "matrix": {"cells": list(cells)}}))
    return folder


def facts(data: str = "0" * 64, **change: Any) -> dict[str, Any]:
    """What a report says of itself."""
    found: dict[str, Any] = {
        "metric": "accuracy",
        "target": "en",
        "part": "dev",
        "facts": {"conditions": {"data": data, "code": "1"}},
        "settings": {"seeds": [1, 2, 3], "budget": "quick", "problem": {"steps": 300, "metric": "accuracy"}},
    }
    settings = {**found["settings"], **change.pop("settings", {})}
    return {**found, **change, "settings": settings}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    before = written(
        tmp_path / "before",
        cell("de", 0.05, "HELPS"),
        cell("fr", -0.05, "HURTS"),
        cell("nl", 0.0, "INCONCLUSIVE"),
    )
    after = written(
        tmp_path / "after",
        cell("de", 0.055, "HELPS"),
        cell("fr", 0.02, "INCONCLUSIVE"),
        cell("it", 0.1, "HELPS"),
        cell("xx", 0.1, "HELPS", kind="leave_out", sources=["xx", "de"]),
    )
    return before, after


def test_new_and_gone_comparisons_are_no_changed_verdicts(two) -> None:
    found = {change.name.split(" -> ")[0]: change for change in diff_reports(*two).changes}
    assert list(found) == ["de", "fr", "nl", "it", "all but de+xx"]
    assert [name for name, c in found.items() if c.changed] == ["fr"]
    assert [name for name, c in found.items() if c.new] == ["it", "all but de+xx"]
    assert [name for name, c in found.items() if c.gone] == ["nl"]
    assert found["de"] == Change("de -> en (per_task_steps)", 0.05, 0.055, ("HELPS", "HELPS"), overlap=True)
    assert found["fr"].overlap is False and found["it"].overlap is None
    assert found["nl"].verdicts == ("INCONCLUSIVE", "") and found["nl"].after is None


def test_the_last_line_counts_them_apart(two, capsys) -> None:
    assert main(["diff", *map(str, two)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 verdicts changed, 2 new, 1 gone."
    assert main(["diff", str(two[0]), str(two[0] / "report.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 3 verdicts changed, 0 new, 0 gone."


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"data": "a" * 32 + "b" * 32},
            "Different data: SHA-256 000000000000 before and SHA-256 aaaaaaaaaaaa after.",
        ),
        ({"part": "test"}, "Different part of the data: dev before and test after."),
        ({"settings": {"seeds": [1, 2]}}, "Different seeds: 1, 2, 3 before and 1, 2 after."),
        ({"settings": {"budget": "pairs"}}, "Different budget: quick before and pairs after."),
        ({"settings": {"seeds": None}}, "Different seeds: 1, 2, 3 before and unknown after."),
        ({"settings": {"problem": {"steps": 600}}}, "Other settings of the problem: steps."),
        ({"part": "a\nb" * 99}, f"Different part of the data: dev before and {('a b' * 99)[:80]}… after."),
        ({"metric": None}, "Different metric: accuracy before and unknown after."),
        ({}, None),
    ],
)
def test_what_else_differs_is_told_first(change, sentence, tmp_path, capsys) -> None:
    before = written(tmp_path / "before", cell("de", 0.05, "HELPS"), **facts())
    after = written(tmp_path / "after", cell("de", 0.05, "HELPS"), **facts(**change))
    assert main(["diff", str(before), str(after)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[: -len(EXPECTED)] == ([sentence] if sentence else [])
    assert [line.split("  ")[0] for line in lines[-len(EXPECTED) :]] == EXPECTED


EXPECTED = ["comparison", "de -> en (per_task_steps)", "0 of 1 verdicts changed, 0 new, 0 gone."]


def test_several_differences_are_told_in_order(tmp_path) -> None:
    before = written(tmp_path / "before", **facts())
    other = facts("f" * 64, settings={"seeds": [7], "budget": "full"})
    found = diff_reports(before, written(tmp_path / "after", **other)).differences
    assert [sentence.partition(":")[0] for sentence in found] == [
        "Different data",
        "Different seeds",
        "Different budget",
    ]


@pytest.mark.parametrize(("name", "other"), [("metric", "macro_f1"), ("target", "de")])
def test_gains_of_another_question_are_refused(name, other, tmp_path, capsys) -> None:
    before = written(tmp_path / "before", cell("de", 0.05, "HELPS"), **facts())
    after = written(tmp_path / "after", cell("de", 0.05, "HELPS"), **facts(**{name: other}))
    assert main(["diff", str(before), str(after)]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert (
        f"the {name} is {facts()[name]} in {before / 'report.json'} and {other} in " in line
        and not output.out
    )
    assert line.endswith(f"expected two reports of one {name}")


def test_reports_without_a_common_comparison_cannot_be_compared(tmp_path, capsys) -> None:
    before = written(tmp_path / "before", cell("de", 0.05, "HELPS"))
    after = written(tmp_path / "after", cell("fr", 0.05, "HELPS"), cell("nl", 0.05, "HELPS"))
    assert main(["diff", str(before), str(after)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 + 1
    assert lines[-1] == "Nothing can be compared: no comparison is in both reports, 2 new, 1 gone."
    none = str(written(tmp_path / "none"))
    assert main(["diff", none, none]) == 0
    assert capsys.readouterr().out == (
        "Nothing can be compared: no comparison is in both reports, 0 new, 0 gone.\n"
    )


def test_a_single_seed_has_no_ends(tmp_path) -> None:
    one = written(
        tmp_path / "one", cell("de", 0.1, "INCONCLUSIVE", interval={"mean": 0.1, "low": None, "high": None})
    )
    (change,) = diff_reports(one, one).changes
    assert change.overlap is None and not change.changed


def test_no_comparison_at_all(tmp_path) -> None:
    assert diff_reports(written(tmp_path / "none"), written(tmp_path / "none")).changes == ()


def _without(name: str) -> dict[str, Any]:
    values = copy.deepcopy(cell("de", 0.1, "HELPS"))
    del values[name]
    return values


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (_without("interval"), "comparison 2 of its transfer matrix has no 'interval' with a number as 'mean'"),
        (cell("fr", 0.1, "HELPS", interval=[1, 2]), "has no 'interval' with a number as 'mean'"),
        (cell("fr", 0.1, "HELPS", interval={"low": 0.0}), "has no 'interval' with a number as 'mean'"),
        (cell("fr", 0.1, "HELPS", interval={"mean": "0.1"}), "has no 'interval' with a number as 'mean'"),
        (cell("fr", 0.1, "HELPS", interval={"mean": True}), "has no 'interval' with a number as 'mean'"),
        (cell("fr", 0.1, "HELPS", interval={"mean": float("nan")}), "has no 'interval' with a number as 'mean'"),
        (cell("fr", 0.1, "HELPS", interval={"mean": 10**400}), "has no 'interval' with a number as 'mean'"),
        (cell("fr", 0.1, "HELPS", interval={"mean": 0.1, "low": "a"}), "an 'interval' whose ends are no numbers"),
        (_without("verdict"), "has no text as 'verdict'"),
        (cell("fr", 0.1, None), "has no text as 'verdict'"),
        (cell("fr", 0.1, "HELPS", kind=3), "has no text as 'kind'"),
        (_without("target"), "has no text as 'target'"),
        (_without("matching"), "has no text as 'matching'"),
        (_without("sources"), "has no list of texts as 'sources'"),
        (cell("fr", 0.1, "HELPS", sources="fr"), "has no list of texts as 'sources'"),
        (cell("fr", 0.1, "HELPS", sources=["fr", 1]), "has no list of texts as 'sources'"),
        ("fr", "is no object"),
        (None, "is no object"),
    ],
)  # fmt: skip
def test_a_damaged_comparison_is_one_sentence(bad, sentence, two, tmp_path, capsys) -> None:
    damaged = written(tmp_path / "damaged", cell("de", 0.1, "HELPS"), bad)
    assert main(["diff", str(two[0]), str(damaged)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line and f"{damaged / 'report.json'}: comparison 2 " in line
    assert line.endswith("expected the report.json of a diagnosis")


@pytest.mark.parametrize(
    "content", [{}, {"matrix": None}, {"matrix": []}, {"matrix": {"cells": {}}}, {"matrix": {}}]
)
def test_a_file_without_a_matrix_is_one_sentence(content, two, tmp_path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"report\.json: holds no transfer matrix; expected the report.json of"
    ):
        diff_reports(two[0], tmp_path)


def test_a_folder_without_a_report_is_named(two, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nothing"):
        diff_reports(two[0], tmp_path / "nothing")
