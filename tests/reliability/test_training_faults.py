"""Trainings killed, refused the disk or cut off the power at any I/O call end as the one left alone, to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import FaultServer, compiler, planned, read_log
from kill_training import kill_runs
from power_loss import cuts

TRAIN = "training_scenarios:train"
RANKS = "training_scenarios:train_ranks"
MODES = ("kill", "torn", "full", "broken")


@pytest.fixture(scope="module")
def trainings() -> Iterator[FaultServer]:
    if compiler() is None:
        pytest.skip("no C compiler for the fault library: set CC or install gcc")
    with FaultServer("training_scenarios") as running:
        yield running


@pytest.fixture(scope="module")
def gold(trainings: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Hashes of the run left alone, and its number of I/O calls."""
    folder = tmp_path_factory.mktemp("gold")
    first = trainings.run(TRAIN, folder / "run", trace=True)
    second = trainings.run(TRAIN, folder / "again", trace=True)
    assert first.status == second.status == 0 and first.value["calls"] > 100
    assert first.value == second.value and len(set(first.value["hashes"].values())) == len(
        first.value["hashes"]
    )
    return {"hashes": first.value["hashes"], "points": first.value["calls"]}


def _ends_as_gold(trainings: FaultServer, folder: Path, gold: dict[str, Any], where: str) -> None:
    outcome = trainings.run(TRAIN, folder, trace=True)
    assert outcome.status == 0, f"{where}: the resumed run failed: {outcome.error}"
    differing = [name for name, value in gold["hashes"].items() if outcome.value["hashes"][name] != value]
    assert not differing, f"{where}: {differing} differ from the run left alone"
    left = [p for p in folder.rglob("*") if p.name.endswith(".tmp") or ".corrupt" in p.name]
    assert not left, f"{where}: {left} is left"


def _faults(
    trainings: FaultServer, tmp_path: Path, gold: dict[str, Any], cases: list[tuple[int, str]]
) -> None:
    folder = tmp_path / "run"
    with planned(len(cases), f"training of {gold['points']} I/O points, faults") as done:
        for k, mode in cases:
            shutil.rmtree(folder, ignore_errors=True)
            outcome = trainings.run(TRAIN, folder, k=k, mode=mode)
            where = f"{mode} at call {k} of {gold['points']}: {outcome.status} {outcome.error}"
            if mode in ("kill", "torn"):
                assert outcome.status == -9 and not outcome.timed_out, where
            else:
                assert outcome.status in (0, 3) and outcome.fired, where
                assert outcome.status == 0 or str(folder) in outcome.error, where
                assert outcome.status == 3 or outcome.value["hashes"] == gold["hashes"], where
            _ends_as_gold(trainings, folder, gold, where)
            done.append(None)


def test_killed_at_random_moments(trainings: FaultServer, tmp_path: Path) -> None:
    _kills(trainings, tmp_path, 6, ranks=1, seed=1)


@pytest.mark.long
@pytest.mark.parametrize(("kills", "ranks"), [(40, 1), (10, 2)])
def test_killed_at_many_random_moments(
    trainings: FaultServer, tmp_path: Path, kills: int, ranks: int
) -> None:
    _kills(trainings, tmp_path, kills, ranks, seed=2)


def _kills(trainings: FaultServer, tmp_path: Path, kills: int, ranks: int, seed: int) -> None:
    tally = kill_runs(trainings, tmp_path, kills, ranks, seed)
    print(f"trainings on {ranks} ranks: planned {kills} kills, executed {tally.kills}, in {tally.runs} runs")
    assert tally.bad == [] and tally.kills == kills and tally.runs > 1


def test_faults_at_some_calls_of_a_training(
    trainings: FaultServer, tmp_path: Path, gold: dict[str, Any]
) -> None:
    points = range(3, gold["points"] + 1, 11)
    _faults(trainings, tmp_path, gold, [(k, MODES[n % len(MODES)]) for n, k in enumerate(points)])


@pytest.mark.long
def test_a_fault_at_every_call_of_a_training(
    trainings: FaultServer, tmp_path: Path, gold: dict[str, Any]
) -> None:
    """Killed at each, and at each one of the other modes in turn."""
    points = range(1, gold["points"] + 1)
    others = [(k, MODES[1 + k % (len(MODES) - 1)]) for k in points]
    _faults(trainings, tmp_path, gold, [(k, "kill") for k in points] + others)


@pytest.mark.long
def test_faults_of_a_training_on_two_ranks(
    trainings: FaultServer, tmp_path: Path, gold: dict[str, Any]
) -> None:
    """A call of one rank fails, nearly always that of the one that saves; the other ends too, and all goes on."""
    whole = trainings.run(RANKS, tmp_path / "gold", ranks=2, trace=True)
    assert whole.value["codes"] == [0, 0]
    folder = tmp_path / "run"
    points = range(1, gold["points"] + 1, 3)
    with planned(
        len(points), f"training of two ranks, {gold['points']} I/O points, faults at a third"
    ) as done:
        for number, k in enumerate(points):
            mode = MODES[number % len(MODES)]
            shutil.rmtree(folder, ignore_errors=True)
            outcome = trainings.run(RANKS, folder, k=k, mode=mode, ranks=2)
            where = f"{mode} at call {k}: {outcome.value} {outcome.error}"
            assert outcome.value and outcome.value["seconds"] < 20, where
            if mode in ("kill", "torn"):
                assert -9 in outcome.value["codes"], where
            else:
                assert set(outcome.value["codes"]) <= {0, 4, -15}, where  # 4: it raised, -15: told to end
            resumed = trainings.run(RANKS, folder, ranks=2, trace=True)
            assert resumed.value and resumed.value["hashes"] == whole.value["hashes"], f"{where}: {resumed}"
            done.append(None)


def _power_cuts(
    trainings: FaultServer, tmp_path: Path, gold: dict[str, Any], stride: int, samples: int
) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    outcome = trainings.run(TRAIN, root, log=log, folder=str(root / "run"))
    assert outcome.status == 0 and outcome.value["hashes"] == gold["hashes"]
    calls = read_log(log)
    wanted = set(range(0, len(calls) + 1, stride))
    with planned(len(wanted) * (2 + samples), f"training of {len(calls)} I/O calls, power cuts") as done:
        for made, name, write in cuts(calls, root, 1, samples):
            if made in wanted:
                shutil.rmtree(root)
                write(root)
                _ends_as_gold(trainings, root / "run", gold, f"power cut after call {made}, {name} arrives")
                done.append(None)


def test_power_cuts_after_some_calls_of_a_training(
    trainings: FaultServer, tmp_path: Path, gold: dict[str, Any]
) -> None:
    _power_cuts(trainings, tmp_path, gold, 17, 0)


@pytest.mark.long
def test_power_cuts_after_every_call_of_a_training(
    trainings: FaultServer, tmp_path: Path, gold: dict[str, Any]
) -> None:
    _power_cuts(trainings, tmp_path, gold, 1, 0)


@pytest.mark.parametrize("forgotten", ["streams", "random", "optimizers", "average"])
def test_a_resume_that_forgets_something_is_noticed(
    trainings: FaultServer, tmp_path: Path, gold: dict[str, Any], forgotten: str
) -> None:
    """The comparison can fail: any part of the state that is not restored shows in the hashes."""
    half = gold["points"] * 6 // 10
    assert trainings.run(TRAIN, tmp_path / "run", k=half, mode="kill").status == -9
    outcome = trainings.run("training_scenarios:train_forgetfully", tmp_path / "run", forgotten=forgotten)
    assert outcome.status == 0 and outcome.value["hashes"] != gold["hashes"]
