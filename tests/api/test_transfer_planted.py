"""A planted conflict is found and null tasks are left alone: a small version of the benchmark of that name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.systems.bench_planted_conflict import (
    Counts,
    PlantedTasks,
    count_verdicts,
    main,
)
from xferkit.transfer import make_plan


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str], Counts]:
    return {(row.source, row.matching): row for row in count_verdicts(40, angle=120.0)}


@pytest.mark.parametrize("matching", ["per_task_steps", "total_steps"])
def test_a_planted_conflict_is_found(counts, matching) -> None:
    row = counts["conflict", matching]
    assert row.repeats == 40 and row.hurts >= 0.8 * 40 and row.helps == 0
    assert row.hurts + row.helps + row.inconclusive == 40 and row.mean_gain < -0.1


@pytest.mark.parametrize(
    ("source", "matching"),
    [("twin", "per_task_steps"), ("twin", "total_steps"), ("separate", "per_task_steps")],
)
def test_null_tasks_are_not_blamed(counts, source, matching) -> None:
    row = counts[source, matching]
    assert row.hurts <= 0.05 * 40 and abs(row.mean_gain) < 0.02


def test_without_an_angle_the_conflict_is_none() -> None:
    """The same source labelled as the target is: what was found above was the angle."""
    (row,) = (
        r for r in count_verdicts(10, angle=0.0, matchings=("per_task_steps",)) if r.source == "conflict"
    )
    assert row.hurts == 0


def test_a_task_alone_is_learnt() -> None:
    (run,) = (r for r in make_plan(("target", "twin"), 1, target="target").runs if len(r.tasks) == 1)
    assert PlantedTasks(0)(run.tasks, 1, run)["target"] > 0.8


def test_the_benchmark_runs(tmp_path, capsys) -> None:
    path = tmp_path / "counts.json"
    assert main(["--repeats", "2", "--angles", "120", "--seeds", "5", "--json", str(path)]) == 0
    assert "as promised" in capsys.readouterr().out and '"source": "twin"' in path.read_text()
