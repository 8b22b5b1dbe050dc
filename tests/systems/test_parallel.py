"""Two processes on gloo train as one does: DDP and FSDP2, accumulation, resumption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("parallel_training.py")


def train(out: Path, processes: int, *, succeeds: bool = True, **settings) -> list[dict]:
    out.mkdir(exist_ok=True, parents=True)
    command = [sys.executable, str(SCRIPT), str(out), json.dumps(settings)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command[1:1] = launcher
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert (done.returncode == 0) == succeeds, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]


def assert_same(runs: list[dict], single: dict, tolerance: float = 1e-5) -> None:
    for run in runs:
        for step, (ours, alone) in enumerate(zip(run["losses"], single["losses"], strict=True)):
            assert ours == pytest.approx(alone, abs=tolerance), step
        assert run["weights"][:-1] == pytest.approx(single["weights"][:-1], abs=1e-4)
        assert run["scores"] == single["scores"]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> dict:
    return train(tmp_path_factory.mktemp("single"), 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("options", [{}, {"accumulation": 3, "clip_norm": 0.5, "ema_decay": 0.8}])
def test_two_processes_give_the_losses_of_one_for_the_same_batch(tmp_path, single, strategy, options):
    if options:
        single = train(tmp_path / "single", 1, **options)[0]
    runs = train(tmp_path / strategy, 2, strategy=strategy, **options)
    assert len(runs) == 2 and runs[0]["weights"] == runs[1]["weights"]
    assert [run["cut"] for run in runs] == [strategy == "fsdp"] * 2
    # Else gloo's threads may abort a process whose training is complete.
    assert all((tmp_path / strategy / f"left-{rank}").exists() for rank in range(2))
    assert_same(runs, single)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"strategy": "ddp"}, pytest.param({"strategy": "fsdp", "accumulation": 2}, marks=pytest.mark.long)],
)
def test_a_man_moe_tagger_trains_on_two_processes_as_on_one(tmp_path, options):
    alone = train(tmp_path / "single", 1, tagger=True)[0]
    runs = train(tmp_path / "two", 2, tagger=True, **options)
    assert_same(runs, alone)
    assert {"main/task", "main/gate_private", "discriminator/accuracy"} <= set(alone["losses"][0])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_two_processes_that_were_killed_end_in_the_same_bits(tmp_path, strategy):
    options = {"strategy": strategy, "dropout": 0.3, "checkpoint_every": 2, "ema_decay": 0.8}
    gold = train(tmp_path / "gold", 2, folder=str(tmp_path / "gold"), **options)
    run = tmp_path / "run"
    train(run, 2, succeeds=False, folder=str(run), stop_after=5, **options)
    assert not list(run.glob("rank-*.json")) and list((run / "checkpoints").iterdir())
    resumed = train(run, 2, folder=str(run), **options)
    assert resumed == gold
    # One process has other random numbers and says so.
    train(run, 1, succeeds=False, folder=str(run), **{**options, "strategy": "single"})
    assert "was saved by 2 processes, expected 1" in (run / "error-0.txt").read_text()


@pytest.mark.slow
def test_a_strategy_that_cannot_be_in_effect_is_refused_on_every_process(tmp_path):
    train(tmp_path, 2, succeeds=False, strategy="single")
    for rank in range(2):
        words = (tmp_path / f"error-{rank}.txt").read_text()
        assert "strategy 'single' was asked for and 2 processes run" in words
