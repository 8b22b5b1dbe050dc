"""Accumulation, clipping, averages, selection, precision, compilation: each does what it says and no more."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from toy_training import ToyMethod, toy_streams, weights

from xferkit.methods import Phase, PhaseLoss, Stage
from xferkit.trainers import Interrupted, NonFiniteError, Trainer, TrainerConfig


def fit(steps: int = 6, dropout: float = 0.0, method: ToyMethod | None = None, evaluate=None, **config):
    method = method or ToyMethod(dropout=dropout)
    trainer = Trainer(progress="silent", **config)
    return method, trainer.fit(method, toy_streams(), steps, evaluate=evaluate)


def test_settings_out_of_range_are_named():
    for name, value, words in (
        ("log_every", 0, "log_every must be at least 1"),
        ("keep_checkpoints", 1, "keep_checkpoints must be at least 2"),
        ("patience", -1, "patience must be at least 0"),
        ("accumulation", 0, "accumulation must be at least 1"),
        ("strategy", "dp", "strategy must be one of auto, single, ddp, fsdp, got 'dp'"),
        ("select", "test", "select must be one of source_dev, target_dev, last"),
        ("clip_norm", 0.0, "clip_norm must be positive"),
        ("ema_decay", 1.0, "ema_decay must be in"),
    ):
        with pytest.raises(ValueError, match=words):
            TrainerConfig(**{name: value})


def test_accumulated_parts_give_the_loss_and_gradient_of_the_whole_batch():
    whole, history = fit(log_every=1)
    for parts in (2, 3, 6):
        cut, other = fit(log_every=1, accumulation=parts)
        torch.testing.assert_close(weights(cut)[1:-1], weights(whole)[1:-1], rtol=1e-4, atol=1e-5)
        for a, b in zip(history.records, other.records, strict=True):
            assert b.metrics == pytest.approx(a.metrics, rel=1e-5)
    with pytest.raises(ValueError, match="a batch of 12 texts cannot be cut into 13 shards"):
        fit(accumulation=13)


def test_clipping_bounds_the_norm_of_the_update():
    def step_norm(clip: float | None) -> float:
        method = ToyMethod(dropout=0.0)
        method.optimizers["main"] = torch.optim.SGD(method.model.parameters(), lr=1.0)
        before = [p.detach().clone() for p in method.model.parameters()]
        method.stages = lambda steps: [Stage("s", [Phase("main", method.main_loss, ("main",))], steps)]
        fit(1, method=method, clip_norm=clip)
        moved = [p.detach() - b for p, b in zip(method.model.parameters(), before, strict=True)]
        return torch.nn.utils.get_total_norm(moved).item()

    free = step_norm(None)
    assert step_norm(free / 4) == pytest.approx(free / 4, rel=1e-4)
    assert step_norm(free * 4) == pytest.approx(free, rel=1e-6)


def test_nothing_is_stepped_on_a_gradient_that_is_not_finite():
    method = ToyMethod()
    calls = []

    def loss(next_batch):
        result = ToyMethod.main_loss(method, next_batch)
        calls.append([p.detach().clone() for p in method.module.parameters()])
        factor = math.nan if len(calls) == 4 else 1.0
        return PhaseLoss(result.total * factor, result.metrics)

    method.stages = lambda steps: [Stage("train", [Phase("main", loss, ("main",))], steps)]
    with pytest.raises(NonFiniteError, match=r"phase 'main' has norm nan and its loss is nan .* at step 4"):
        fit(9, method=method)
    for p, before in zip(method.module.parameters(), calls[-1], strict=True):
        assert torch.equal(p, before)


def test_the_average_follows_its_formula_and_takes_the_parameters_place():
    method = ToyMethod(dropout=0.0)
    parameters = dict(method.module.named_parameters())
    average = {name: p.detach().clone() for name, p in parameters.items()}
    step = method.optimizers["main"].step

    def step_and_average(*args, **kwargs):  # the last update of a step is the main one
        step(*args, **kwargs)
        for name, p in parameters.items():
            average[name] = 0.75 * average[name] + 0.25 * p.detach()

    method.optimizers["main"].step = step_and_average
    last = []
    fit(4, method=method, ema_decay=0.75, select="last", evaluate=lambda: last.append(weights(method)) or {})
    for name, p in parameters.items():
        torch.testing.assert_close(p.detach(), average[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(weights(method), last[-1])  # what was evaluated is what is kept


def test_the_best_source_score_selects_and_patience_ends():
    scores = iter([0.2, 0.5, math.nan, 0.4, 0.5, 0.9])
    kept = []
    method = ToyMethod()

    def evaluate():
        kept.append(weights(method))
        assert not method.module.training
        torch.rand(3)  # evaluation may draw: the training must not see it
        return {"source_dev/score": next(scores), "target_dev/score": -len(kept)}

    _, history = fit(20, method=method, evaluate=evaluate, eval_every=2, patience=3, log_every=100)
    assert history.stopped_early and history.selected_step == 2 + 4 and len(kept) == 5
    assert torch.equal(weights(method), kept[1]) and history.selected["source_dev/score"] == 0.5
    assert history.records[-1].step == history.steps == 2 + 10

    scores = iter([0.2, 0.5, 0.4])
    kept.clear()
    other = method = ToyMethod()
    _, history = fit(6, method=other, evaluate=evaluate, eval_every=2, select="target_dev")
    assert history.selected_step == 4 and torch.equal(weights(other), kept[0])
    with pytest.raises(ValueError, match="needs 'source_dev/score' from evaluate, got \\['dev'\\]"):
        fit(evaluate=lambda: {"dev": 1.0})


def test_evaluation_changes_no_bit():
    plain, _ = fit(8, dropout=0.3)
    method = ToyMethod(dropout=0.3)
    fit(
        8,
        method=method,
        evaluate=lambda: {**method.score(), "draw": float(torch.rand(()))},
        eval_every=1,
        select="last",
    )
    assert torch.equal(weights(method), weights(plain))


def test_bf16_runs_the_forward_pass_in_bf16():
    seen = []
    method = ToyMethod()
    method.model["out"].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    fit(3, method=method, precision="bf16")
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in method.module.parameters()} == {torch.float32}
    seen.clear()
    fit(3, method=method)
    assert set(seen) == {torch.float32}


def test_what_is_asked_for_and_not_in_effect_is_refused():
    with pytest.raises(ValueError, match="strategy 'ddp' was asked for and one process runs"):
        fit(strategy="ddp")
    with pytest.raises(ValueError, match="strategy 'fsdp' was asked for and one process runs"):
        fit(strategy="fsdp")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="precision 'fp16' needs a GPU"):
            fit(precision="fp16")
    with pytest.raises(ValueError, match="tracker 'swanlab' is not in effect"):
        fit(trackers=("swanlab",))
    method = ToyMethod()
    method.replicable = False
    with pytest.raises(ValueError, match="cannot be cut"):
        fit(method=method, accumulation=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own modules
def test_a_tracker_gets_the_metrics(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard comes with the extra `trackers`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    method = ToyMethod()
    trainer = Trainer(progress="silent", log_every=2, trackers=("tensorboard",), title="toy")
    history = trainer.fit(method, toy_streams(), 4, evaluate=method.score, folder=tmp_path)
    found = {}
    for path in tmp_path.rglob("events.out.*"):
        events = EventAccumulator(str(path)).Reload()
        found |= {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["main/nll"] == pytest.approx([r.metrics["main/nll"] for r in history.records])
    assert len(found["source_dev/score"]) == 1


@pytest.mark.slow
def test_compiled_modules_give_the_same_training():
    plain, _ = fit(4)

    class Compiled(ToyMethod):
        def __init__(self) -> None:
            super().__init__(dropout=0.0)
            self.module = nn.ModuleDict({"model": self.model, "discriminator": self.discriminator})

    compiled, _ = fit(4, method=Compiled(), compile=True)
    assert compiled.discriminator._compiled_call_impl is not None
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-5)


def test_metrics_are_written_as_lines_and_as_a_table(tmp_path):
    method = ToyMethod()
    trainer = Trainer(progress="silent", log_every=2, eval_every=3)
    history = trainer.fit(method, toy_streams(), 6, evaluate=method.score, folder=tmp_path)
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if "metrics" in e] == [2, 4, 6, 8]
    assert [e["step"] for e in entries if "scores" in e] == [5, 8]
    assert entries[1]["metrics"] == history.records[1].metrics
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.startswith("step,stage,seconds,main/nll,lr/main") and len(rows) == 6


_SIGNALLED = """
import os, signal, sys
sys.path.insert(0, {api!r})
from toy_training import ToyMethod, toy_streams
from xferkit.trainers import Interrupted, Trainer
method = ToyMethod()
loss, calls = method.main_loss, []
def slow(next_batch):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.{name})
    return loss(next_batch)
method.main_loss = slow
try:
    Trainer(progress="silent").fit(method, toy_streams(), 20, folder={folder!r})
except Interrupted as stop:
    print(stop)
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_the_step_and_saves(tmp_path, name, code):
    from pathlib import Path

    script = _SIGNALLED.format(api=str(Path(__file__).parent), name=name, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert f"stopped by {name} after step 4; the state is saved" in done.stdout
    resumed, left_alone = ToyMethod(), ToyMethod()
    Trainer(progress="silent").fit(resumed, toy_streams(), 20, folder=tmp_path)
    torch.manual_seed(0)
    left_alone = ToyMethod()
    Trainer(progress="silent").fit(left_alone, toy_streams(), 20)
    assert torch.equal(weights(resumed), weights(left_alone))
    assert Interrupted(15, 1).exit_code == 143
