"""A training that was stopped anywhere goes on to the same bits; one of something else is refused."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from toy_training import ToyMethod, toy_streams, weights

from xferkit.checkpoints import CheckpointStore
from xferkit.trainers import Trainer
from xferkit.trainers import state as training_state

STEPS = 9  # and two of the first stage
OPTIONS = {"schedule": "cosine", "ema_decay": 0.9, "log_every": 4, "eval_every": 3, "clip_norm": 1.0}


class Stop(Exception):
    pass


def fit(folder=None, *, stop_after: int | None = None, every: int = 1, seed: int = 0, **options):
    """Train; ``stop_after`` main updates it is cut off as a crash would."""
    method = ToyMethod(seed)
    if stop_after is not None:
        loss, count = method.main_loss, [0]

        def counted(next_batch):
            if count[0] == stop_after:
                raise Stop
            count[0] += 1
            random.random(), np.random.rand()
            return loss(next_batch)

        method.main_loss = counted
    trainer = Trainer(progress="silent", checkpoint_every=every, **(OPTIONS | options))
    history = trainer.fit(method, toy_streams(), STEPS, evaluate=method.score, folder=folder)
    return method, history


def final(folder) -> dict:
    return CheckpointStore(folder / "checkpoints").load_newest(None).state


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def gold(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gold")
    random.seed(0), np.random.seed(0)
    method, history = fit(folder)
    return weights(method), history, final(folder)


@pytest.mark.parametrize("stop", range(1, STEPS + 2))
def test_stopped_after_any_step_it_ends_in_the_same_state(tmp_path, gold, stop):
    random.seed(0), np.random.seed(0)
    with pytest.raises(Stop):
        fit(tmp_path, stop_after=stop)
    torch.manual_seed(99)  # what another process would have; the state brings its own
    method, history = fit(tmp_path)
    assert torch.equal(weights(method), gold[0])
    state = final(tmp_path)
    for name in ("module", "optimizers", "average", "best", "best_weights", "streams", "position"):
        assert equal(state[name], gold[2][name]), name
    assert equal(state["random"]["generators"], gold[2]["random"]["generators"])
    assert [r.metrics for r in history.records] == [r.metrics for r in gold[1].records]
    assert [e.scores for e in history.evaluations] == [e.scores for e in gold[1].evaluations]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in lines if "metrics" in e] == [r.step for r in gold[1].records]


def test_rare_checkpoints_and_none_but_the_last_give_the_same_weights(tmp_path, gold):
    for every in (0, 4):
        assert torch.equal(weights(fit(tmp_path / str(every), every=every)[0]), gold[0])
    assert torch.equal(weights(fit(None)[0]), gold[0])


def test_a_finished_training_is_not_trained_again(tmp_path, gold):
    fit(tmp_path)
    method, history = fit(tmp_path, stop_after=0)  # would raise at the first update
    assert torch.equal(weights(method), gold[0]) and history.steps == STEPS + 2
    assert history.selected_step == gold[1].selected_step


@pytest.mark.parametrize("forgotten", ["streams", "random", "optimizers", "average"])
def test_a_state_that_forgets_a_part_is_noticed(tmp_path, gold, forgotten, monkeypatch):
    """The comparison above can fail: with any part left as it is at the start, the bits differ."""
    with pytest.raises(Stop):
        fit(tmp_path, stop_after=5)
    restore = training_state.restore_state

    def forgetful(state, replica, streams, best, average):
        fresh = training_state.collect_state(replica, streams, best, average)
        restore({**state, forgotten: fresh[forgotten]}, replica, streams, best, average)

    monkeypatch.setattr("xferkit.trainers.trainer.restore_state", forgetful)
    torch.manual_seed(99)
    fit(tmp_path)
    state = final(tmp_path)
    assert not all(equal(state[name], gold[2][name]) for name in ("optimizers", "average"))


def test_checkpoints_of_something_else_are_refused(tmp_path):
    fit(tmp_path)
    method = ToyMethod()
    trainer = Trainer(progress="silent", **OPTIONS)
    with pytest.raises(ValueError, match="stages"):
        trainer.fit(method, toy_streams(), STEPS + 1, evaluate=method.score, folder=tmp_path)
    with pytest.raises(ValueError, match="data"):
        trainer.fit(method, toy_streams(), STEPS, folder=tmp_path, identity={"data": "other"})
    method.model["out"] = torch.nn.Linear(5, 4)
    with pytest.raises(ValueError, match="model"):
        trainer.fit(method, toy_streams(), STEPS, evaluate=method.score, folder=tmp_path)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, gold):
    with pytest.raises(Stop):
        fit(tmp_path, stop_after=7)
    folders = sorted(p for p in (tmp_path / "checkpoints").iterdir() if p.is_dir())
    tensors = next(folders[-1].glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-3])
    said = []
    method = ToyMethod()
    trainer = Trainer(progress="silent", checkpoint_every=1, **OPTIONS)
    trainer.fit(method, toy_streams(), STEPS, evaluate=method.score, folder=tmp_path, warn=said.append)
    assert torch.equal(weights(method), gold[0])
    assert len(said) == 1 and folders[-1].name in said[0]
