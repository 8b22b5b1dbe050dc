"""Backward passes of surgery: functions, vectorised passes, autocast, loss scalers, gradients that are not finite."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from toy_surgery import ALL, METHODS, TASKS, NoVmap, ToyModel, assert_same, grads_of
from toy_surgery import one_thread as one_thread  # a fixture

from xferkit.surgery import PCGrad, Sum

pytestmark = pytest.mark.usefixtures("one_thread")

# -- functions, batches, autocast -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_losses_may_be_functions_that_are_called_one_at_a_time(method, monkeypatch):
    model = ToyModel()
    surgery = ALL[method](model.encoder, TASKS)
    surgery.backward(model.losses(separate=True))
    wanted, events = grads_of(model), []
    model.zero_grad()
    plain = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda self, **k: (events.append("pass"), plain(self, **k))[1]
    )

    def loss(task):
        events.append(task)
        return model.losses(tasks=(task,), separate=True)[task]

    surgery.load_state_dict(ALL[method](ToyModel().encoder, TASKS).state_dict())
    surgery.backward({task: lambda t=task: loss(t) for task in ("fr", "es", "de")})
    assert events == ["de", "pass", "fr", "pass", "es", "pass"]
    assert_same(grads_of(model), wanted, rtol=1e-12, atol=1e-15)


def test_graphs_of_their_own_can_be_freed_at_once():
    model = ToyModel()
    surgery = PCGrad(model.encoder, TASKS)
    losses = model.losses(separate=True)
    surgery.backward(losses, retain_graph=False)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        losses["de"].backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        surgery.backward(model.losses(), retain_graph=False)  # one graph for all
    losses = model.losses()
    surgery.backward(losses, retain_graph=True)
    losses["es"].backward()
    # Without a word, nothing is kept longer than it must be: functions' graphs, and that of a sum.
    made = model.losses(separate=True)
    surgery.backward({task: lambda t=task: made[t] for task in TASKS})
    losses = model.losses()
    Sum(model.encoder, TASKS).backward(losses)
    for loss in (*made.values(), losses["de"]):
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()


@pytest.mark.parametrize("method", METHODS)
def test_batched_passes_are_the_loop(method):
    models = [ToyModel() for _ in range(2)]
    loop, batched = (
        METHODS[method](m.encoder, TASKS, grouping="layer", backward=b)
        for m, b in zip(models, ("loop", "batched"), strict=True)
    )
    for step in range(3):
        for model, surgery in zip(models, (loop, batched), strict=True):
            model.zero_grad()
            surgery.collect(model.losses(step))
            surgery.collect(model.losses(step + 10, tasks=("es", "de")))
            surgery.combine()
        tolerance = 1e-6 if method == "MGDA" else 1e-10  # its solver stops at a gap
        assert_same(grads_of(models[1]), grads_of(models[0]), rtol=tolerance, atol=tolerance / 1e3)


def timed_as(measured, clock, run, device) -> float:
    measured(run, device)
    return next(clock)


def test_auto_keeps_the_faster_way_and_leaves_no_trace(monkeypatch):
    import xferkit.surgery.passes as passes

    for times, choice in (((2.0, 1.0), "batched"), ((1.0, 2.0), "loop")):
        model, other = ToyModel(), ToyModel()
        timed = partial(timed_as, passes._second_time, iter(times))
        monkeypatch.setattr(passes, "_second_time", timed)
        auto, loop = PCGrad(model.encoder, TASKS, backward="auto"), PCGrad(other.encoder, TASKS)
        for step in range(2):  # the clock would run out, were it asked in the second step
            for m, surgery in ((model, auto), (other, loop)):
                m.zero_grad()
                surgery.backward(m.losses(step))
            assert_same(grads_of(model), grads_of(other), rtol=1e-10, atol=1e-13)
        assert auto.state_dict()["passes"] == choice
        fresh = PCGrad(other.encoder, TASKS, backward="auto")
        fresh.load_state_dict(auto.state_dict())
        assert fresh.state_dict()["passes"] == choice
        monkeypatch.undo()


def test_auto_keeps_the_loop_where_batching_raises_or_differs(monkeypatch):
    import xferkit.surgery.passes as passes

    model = ToyModel()
    surgery = PCGrad(model.encoder, TASKS, backward="auto")
    surgery.backward({task: NoVmap.apply(loss) for task, loss in model.losses().items()})
    assert surgery.state_dict()["passes"] == "loop" and len(grads_of(model.heads)) == 6
    with pytest.raises(RuntimeError, match=r"one vectorised pass .*; expected backward='loop'"):
        PCGrad(model.encoder, TASKS, backward="batched").backward(
            {task: NoVmap.apply(loss) for task, loss in model.losses().items()}
        )
    monkeypatch.setattr(passes, "_second_time", lambda run, device: (run(), float(run.__name__ == "loop"))[1])
    vectorised = passes._vectorised
    monkeypatch.setattr(
        passes,
        "_vectorised",
        lambda *a, **k: tuple(g if g is None else g * 1.01 for g in vectorised(*a, **k)),
    )
    wrong = PCGrad(model.encoder, TASKS, backward="auto")
    wrong.backward(model.losses())
    assert wrong.state_dict()["passes"] == "loop"


def test_passes_run_outside_autocast_and_functions_inside():
    model = ToyModel(dtype=torch.float32)
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(("forward", torch.is_autocast_enabled("cpu")))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(("backward", torch.is_autocast_enabled("cpu")))
            return grad

    for method in ("PCGrad", "Sum"):
        surgery, results = ALL[method](model.encoder, TASKS), []
        for functions in (True, False):
            model.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = {
                    t: lambda t=t: Watch.apply(model.losses(tasks=(t,), separate=True)[t]) for t in TASKS
                }
                if not functions:
                    losses = {t: loss() for t, loss in losses.items()}
                surgery.backward(losses, retain_graph=False if functions or method == "PCGrad" else None)
            results.append(grads_of(model))
        assert set(seen) == {("forward", True), ("backward", False)}
        assert_same(*results, rtol=0.05, atol=0.02)


# -- loss scalers and gradients that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_a_scaler_changes_nothing_but_the_scale(method):
    models = [ToyModel(dtype=torch.float32) for _ in range(2)]
    plain, scaled = (ALL[method](m.encoder, TASKS, grouping="layer") for m in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(models[1].parameters(), 0.1)
    other = torch.optim.SGD(models[0].parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        other.zero_grad()
        info = plain.backward(models[0].losses(step))
        again = scaled.backward(models[1].losses(step), scaler=scaler)
        if info.gram is not None:
            torch.testing.assert_close(again.gram, info.gram, rtol=1e-6, atol=0)
        torch.testing.assert_close(again.weights, info.weights, rtol=1e-5, atol=1e-7)
        assert_same(
            grads_of(models[1]), {n: 1024 * g for n, g in grads_of(models[0]).items()}, rtol=1e-4, atol=1e-4
        )
        scaler.unscale_(optimizer)
        assert_same(grads_of(models[1]), grads_of(models[0]), rtol=1e-4, atol=1e-7)
        scaler.step(optimizer)
        scaler.update()
        other.step()
    for name, buffer in plain.state.named_buffers():
        torch.testing.assert_close(scaled.state.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_step_that_overflows_enters_no_state(method, bad):
    model = ToyModel(dtype=torch.float32)
    surgery = ALL[method](model.encoder, TASKS, grouping="layer")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    surgery.backward(model.losses(0), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    before = {name: b.clone() for name, b in surgery.state.named_buffers()}
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    losses = model.losses(1)
    surgery.backward({**losses, "fr": losses["fr"] * bad}, scaler=scaler)
    assert not all(g.isfinite().all() for g in grads_of(model.encoder).values())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    for name, buffer in surgery.state.named_buffers():
        assert torch.equal(buffer.nan_to_num(-7), before[name].nan_to_num(-7)), name


def test_gradients_too_small_or_large_for_half_types_count():
    for scale in (1e-30, 1e15):
        model = ToyModel(dtype=torch.float32)
        surgery = PCGrad(model.encoder, TASKS)
        info = surgery.backward({task: loss * scale for task, loss in model.losses().items()})
        plain = ToyModel(dtype=torch.float32)
        wanted = PCGrad(plain.encoder, TASKS).backward(plain.losses())
        torch.testing.assert_close(info.weights, wanted.weights, rtol=1e-4, atol=1e-6)
        assert torch.equal(info.moved, wanted.moved)
