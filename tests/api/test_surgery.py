"""Gradient surgery in anybody's loop: one line, the arena, steps in parts, tasks that are absent."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_surgery import ALL, METHODS, TASKS, ToyModel, assert_same, gradients, grads_of, vectors
from toy_surgery import one_thread as one_thread  # a fixture

from xferkit.surgery import MGDA, GradVac, PCGrad, Sum, TaskGradients, group_names

pytestmark = pytest.mark.usefixtures("one_thread")

# -- one line in a loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_one_line_trains_a_model(method):
    model = ToyModel(dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    surgery = ALL[method](model.encoder, tasks=("de", "fr", "es"))
    first = sum(model.losses(0).values()).item()
    for _ in range(40):
        optimizer.zero_grad()
        surgery.backward(model.losses(0))
        optimizer.step()
    assert sum(model.losses(0).values()).item() < 0.5 * first
    assert surgery.info.tasks == TASKS and surgery.info.weights.shape == (1, 3)


def test_the_import_is_light():
    code = (
        "import sys; from xferkit.surgery import GradVac; "
        "print([m for m in sys.modules if m.startswith('xferkit.') and not m.startswith('xferkit.surgery')], "
        "[m for m in ('accelerate', 'scipy', 'jinja2', 'rich', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("]")[0] == "[" and done.stdout.strip().endswith("[]"), done.stdout


# -- the arena ------------------------------------------------------------------------------------------------------


def test_gradients_are_views_of_the_arena_while_they_are_made():
    model = ToyModel()
    grads = TaskGradients(model.encoder, 3, grouping="layer")
    before = torch.ones_like(model.encoder[0].weight)
    model.encoder[0].weight.grad = before
    for row, (task, loss) in enumerate(model.losses().items()):
        with grads.collecting(task):
            for name, p in model.encoder.named_parameters():
                assert p.grad.untyped_storage().data_ptr() == grads.data.untyped_storage().data_ptr()
                assert p.grad.data_ptr() == grads.gradients(task)[name].data_ptr()
                assert (p.grad.data_ptr() - grads.data.data_ptr()) % (16 * 8) == 0 and not p.grad.any()
            loss.backward(retain_graph=True)
        assert model.encoder[0].weight.grad is before and model.encoder[2].weight.grad is None
        assert grads.tasks[row] == task
    wanted = gradients(model, model.losses())
    for task in TASKS:
        assert_same(grads.gradients(task), wanted[task], rtol=1e-12, atol=1e-15)
    assert grads.groups == ("0", "2", "3") and grads.offsets.tolist() == [0, 64, 128, 160]
    used = torch.zeros(grads.data.shape[1], dtype=torch.bool)
    for task in TASKS:
        for view in grads.gradients(task).values():
            start = (view.data_ptr() - grads.data.data_ptr()) // 8 % grads.data.shape[1]
            used[start : start + view.numel()] = True
    assert not used.all() and not grads.data[:, ~used].any(), "padding stays zero"


def test_groups_stand_together_whatever_the_order_of_the_parameters():
    model = ToyModel()
    grads = TaskGradients(model.encoder, 2, grouping=lambda name: name.endswith("bias"))
    assert grads.groups == ("False", "True") and len(grads.offsets) == 3
    assert [name.endswith("bias") for name in grads.layout] == [False] * 3 + [True] * 3
    with grads.collecting("de"):
        model.losses()["de"].backward()
    found = gradients(model, model.losses(tasks=("de",)))
    for k, end in enumerate(("weight", "bias")):
        (vector,) = vectors(found, [n for n in found["de"] if n.endswith(end)])
        torch.testing.assert_close(grads.gram()[k, 0, 0], vector @ vector)


def test_gradients_lie_in_memory_as_their_parameters_do():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 5, 2)).to(memory_format=torch.channels_last)
    model[1].weight.data = torch.randn(5, 4, 2, 2)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    surgery, x = PCGrad(model, ("a", "b")), torch.randn(2, 3, 5, 5)
    for backward in ("loop", "batched"):
        results = []
        for method in (PCGrad(model, ("a", "b"), backward=backward), None):
            model.zero_grad()
            loss = model(x).square().mean()
            if method is None:
                (2 * loss).backward()
            else:
                method.backward({"a": loss, "b": loss})
                assert all(p.grad.stride() == p.stride() for p in model.parameters())
            results.append(grads_of(model))
        assert_same(*results)
    surgery.backward({"a": model(x).mean()})
    optimizer.step()


class BigOps(TorchDispatchMode):
    """Names of the operators that give or write a tensor as large as a parameter that is told apart."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.names = numel, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.numel() >= self.numel:
                self.names.append(func.overloadpacket._qualified_op_name)
        return out


COPIES = {f"aten::{n}" for n in ("cat", "stack", "clone", "copy_", "_to_copy", "index_select", "contiguous")}


def test_no_gradient_is_copied_or_joined():
    torch.manual_seed(0)
    encoder = nn.Linear(40, 30)
    surgery = GradVac(encoder, ("a", "b"))

    def losses():
        h = encoder(torch.randn(4, 40))
        return {"a": h.square().mean(), "b": -h.mean()}

    for round_ in range(3):
        encoder.zero_grad()
        given = losses()
        with BigOps(encoder.weight.numel()) as seen:
            surgery.backward(given)
        assert not COPIES & set(seen.names), seen.names
        # Rows are cleared and written by autograd; the combination is one operator into a tensor that is there.
        assert seen.names.count("aten::zero_") == 2 and seen.names.count("aten::add_") == 2
        if round_:
            assert "aten::empty_like" not in seen.names and "aten::empty" not in seen.names
    with BigOps(encoder.weight.numel()) as seen:  # the counter counts
        torch.cat([p.grad.flatten() for p in encoder.parameters()])
    assert COPIES & set(seen.names)


def test_absent_tasks_cost_no_row():
    model = ToyModel()
    surgery = PCGrad(model.encoder, TASKS)
    surgery.backward(model.losses(tasks=("es",)))
    surgery._grads.data[1:].fill_(torch.nan)  # rows of the others are neither cleared nor read
    model.zero_grad()
    info = surgery.backward(model.losses(tasks=("es",)))
    assert info.tasks == ("es",) and info.gram.shape == (1, 1, 1)
    assert surgery._grads.data[1:].isnan().all() and not any(
        v.isnan().any() for v in grads_of(model).values()
    )


# -- what is seen ---------------------------------------------------------------------------------------------------


def test_the_info_shows_cosines_and_active_pairs():
    model = ToyModel()
    info = PCGrad(model.encoder, TASKS, grouping="layer").backward(model.losses())
    found = gradients(model, model.losses())
    names = list(found["de"])
    for k, group in enumerate(info.groups):
        members = [n for n, own in zip(names, group_names(names, "layer"), strict=True) if own == group]
        unit = torch.stack([v / v.norm() for v in vectors(found, members)])
        torch.testing.assert_close(info.similarity[k], unit @ unit.T)
    unit = torch.stack([v / v.norm() for v in vectors(found, names)])
    torch.testing.assert_close(info.model_similarity, unit @ unit.T)
    visited = ~info.cosine.isnan()
    assert visited.sum((1, 2)).tolist() == [6, 6, 6] and info.moved.any()
    torch.testing.assert_close(info.active, info.moved.sum((1, 2)) / 6.0, check_dtype=False)
    with pytest.raises(ValueError, match="visits no pairs"):
        _ = MGDA(model.encoder, TASKS).backward(model.losses()).active
    with pytest.raises(ValueError, match="no cosines"):
        _ = Sum(model.encoder, TASKS).backward(model.losses()).similarity


def test_groupings_read_names():
    names = ["encoder.layers.3.attention.key.weight", "encoder.layers.3.mlp.0.bias", "decoder.rnn.weight_ih_l1",
             "decoder.rnn.weight_hh_l1_reverse", "embedding.weight", "scales.0", "bias"]  # fmt: skip
    assert group_names(names, "layer") == [
        "encoder.layers.3", "encoder.layers.3", "decoder.rnn.l1", "decoder.rnn.l1", "embedding", "scales", "bias",
    ]  # fmt: skip
    assert group_names(names, "encoder_decoder") == ["encoder"] * 2 + ["decoder"] * 2 + ["rest"] * 3
    assert group_names(names, "matrix") == names and set(group_names(names, "model")) == {"model"}
    assert group_names(names, lambda name: ("depth", name.count(".")))[0] == "('depth', 5)"
    with pytest.raises(ValueError, match="no parameter's name holds 'encoder' or 'decoder'"):
        group_names(["a.weight"], "encoder_decoder")
    with pytest.raises(ValueError, match="must be one of 'model', 'layer'"):
        group_names(["a"], "layers")
    with pytest.raises(ValueError, match="the groups 1 and '1' read the same"):
        group_names(["a", "b"], lambda name: 1 if name == "a" else "1")


# -- steps in parts, absent tasks, gradients that are there ---------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_parts_add_up_to_a_step(method):
    models = [ToyModel() for _ in range(2)]
    whole, parts = (ALL[method](m.encoder, TASKS, grouping="layer") for m in models)
    for step in range(3):
        for model in models:
            model.zero_grad()
        a, b = models[0].losses(2 * step), models[0].losses(2 * step + 1, tasks=("de", "es"))
        info = whole.backward({task: a[task] + b[task] if task in b else a[task] for task in TASKS})
        # Tasks come with later parts, in another order than they were declared in.
        a, b = models[1].losses(2 * step), models[1].losses(2 * step + 1, tasks=("de", "es"))
        parts.collect({"es": a["es"]}, retain_graph=True)
        parts.collect({"fr": a["fr"], "de": a["de"]})
        assert method == "Sum" or models[1].encoder[0].weight.grad is None
        parts.collect(b)
        again = parts.combine()
        assert again.tasks == info.tasks == TASKS
        torch.testing.assert_close(again.losses, info.losses)
        torch.testing.assert_close(again.weights, info.weights)
        assert_same(grads_of(models[1]), grads_of(models[0]))
    for name, buffer in whole.state.named_buffers():
        torch.testing.assert_close(parts.state.get_buffer(name), buffer)
    with pytest.raises(RuntimeError, match="nothing was collected"):
        parts.combine()


def test_discarded_parts_leave_nothing():
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    surgery.collect(model.losses(1))
    surgery.discard()
    surgery.backward(model.losses(0))
    other = ToyModel()
    GradVac(other.encoder, TASKS).backward(other.losses(0))
    assert_same(grads_of(model.encoder), grads_of(other.encoder), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_absent_tasks_leave_their_state(method):
    model = ToyModel()
    surgery = METHODS[method](model.encoder, TASKS, grouping="layer")
    for step in range(2):
        surgery.backward(model.losses(step))
    before = {name: b.clone() for name, b in surgery.state.named_buffers()}
    model.zero_grad()
    info = surgery.backward(model.losses(2, tasks=("es", "de")))
    assert info.tasks == ("de", "es") and info.weights.shape == (3, 2)
    if "ema" in before:
        changed = surgery.ema != before["ema"]
        assert not changed[:, 1].any() and not changed[:, :, 1].any() and changed[:, 0, 2].all()
    if "weights" in before:
        assert surgery.weights[1] == before["weights"][1] and surgery.weights[0] != before["weights"][0]
        assert surgery.weights.sum().item() == pytest.approx(3)
    # The result is that of a surgery that never knew the absent one, from the same state.
    other = ToyModel()
    pair = METHODS[method](other.encoder, ("de", "es"), grouping="layer")
    for name, buffer in pair.state.named_buffers():
        value = before[name]
        for dim, axis in enumerate(pair.state.axes[name]):
            value = value.index_select(dim, torch.tensor([0, 2])) if axis == "task" else value
        buffer.copy_(value)
    pair.backward(other.losses(2, tasks=("de", "es")))
    assert_same(grads_of(model.encoder), grads_of(other.encoder), rtol=1e-12, atol=1e-15)


def test_it_is_added_to_a_gradient_that_is_there():
    model = ToyModel()
    surgery = PCGrad(model.encoder, TASKS, seed=1)
    surgery.backward(model.losses(0))
    once = grads_of(model.encoder)
    surgery.seed_step[1] = 0
    surgery.backward(model.losses(0))  # now onto views of the surgery's own tensor
    assert_same(grads_of(model.encoder), {name: 2 * g for name, g in once.items()}, rtol=1e-14, atol=0)
    for p in model.encoder.parameters():
        p.grad = torch.ones_like(p)
    model.encoder[2].bias.grad = None
    surgery.seed_step[1] = 0
    surgery.backward(model.losses(0))
    wanted = {name: g + (name != "2.bias") for name, g in once.items()}
    assert_same(grads_of(model.encoder), wanted, rtol=1e-14, atol=1e-15)
    model.zero_grad(set_to_none=False)
    surgery.seed_step[1] = 0
    surgery.backward(model.losses(0))
    assert_same(grads_of(model.encoder), once, rtol=1e-14, atol=0)


def test_a_parameter_that_no_task_touches_stays_without_a_gradient():
    model = ToyModel()
    model.encoder.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    surgery = PCGrad(model.encoder, TASKS, grouping="matrix")
    surgery.backward(model.losses())
    assert model.encoder.idle.grad is None and model.encoder[0].weight.grad is not None
    model.encoder.idle.grad = kept = torch.full((3,), 2.0, dtype=torch.float64)
    surgery.backward(model.losses())
    assert model.encoder.idle.grad is kept and kept.tolist() == [2.0] * 3


def test_a_parameter_of_one_task_alone_is_zero_for_the_others():
    model = ToyModel()
    shared = [*model.encoder.named_parameters(), *model.heads["de"].named_parameters(prefix="de")]
    surgery = PCGrad(shared, TASKS, grouping=lambda name: name.startswith("de"))
    info = surgery.backward(model.losses())
    off = info.gram[1].clone()
    assert off[0, 0] > 0 and off.flatten()[1:].abs().max() == 0
    wanted = gradients(model, {})  # nothing: the plain gradient is compared
    assert wanted == {}
    got = model.heads["de"].weight.grad.clone()
    torch.testing.assert_close(got, torch.autograd.grad(model.losses()["de"], model.heads["de"].weight)[0])


def test_the_order_is_drawn_without_the_global_generator_and_repeats():
    results = []
    for _ in range(2):
        model = ToyModel()
        surgery = GradVac(model.encoder, TASKS, beta=0.5, seed=3)
        state = torch.get_rng_state()
        for step in range(4):
            model.zero_grad()
            surgery.backward(model.losses(step))
        assert torch.equal(state, torch.get_rng_state())
        results.append(grads_of(model))
    assert_same(*results, rtol=0, atol=0)
