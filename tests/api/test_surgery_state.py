"""What surgery keeps from step to step: by names of tasks, in a model's buffers, refused where it does not fit."""

from __future__ import annotations

import io

import pytest
import torch
from toy_surgery import TASKS, ToyModel
from toy_surgery import one_thread as one_thread  # a fixture

from xferkit.surgery import MGDA, FixedTarget, GradNorm, GradVac, PCGrad, Sum

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = {
    "GradVac": lambda *a, **k: GradVac(*a, beta=0.3, **k),
    "PCGrad": PCGrad,
    "FixedTarget": lambda *a, **k: FixedTarget(*a, target=0.3, **k),
    "MGDA": MGDA,
    "GradNorm": GradNorm,
    "Sum": Sum,
}


def train(surgery, model: ToyModel, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        surgery.backward(model.losses(step, tasks=TASKS if step % 3 else TASKS[:2]))
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * (p.grad if p.grad is not None else 0)


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("method", ALL)
def test_a_fresh_instance_goes_on_to_the_same_bits(method):
    whole = ToyModel()
    seed = {"seed": 5} if method in ("GradVac", "PCGrad", "FixedTarget") else {}
    surgery = ALL[method](whole.encoder, TASKS, grouping="layer", **seed)
    train(surgery, whole, range(7))
    first = ToyModel()
    half = ALL[method](first.encoder, TASKS, grouping="layer", **seed)
    train(half, first, range(4))
    second = ToyModel(seed=1)
    second.load_state_dict(first.state_dict())
    fresh = ALL[method](second.encoder, TASKS, grouping="layer")
    fresh.load_state_dict(through_a_file(half.state_dict()))
    train(fresh, second, range(4, 7))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, buffer in surgery.state.named_buffers():
        assert torch.equal(fresh.state.get_buffer(name), buffer), name


@pytest.mark.parametrize("method", ["GradVac", "GradNorm"])
def test_the_order_of_tasks_and_groups_does_not_matter(method):
    model = ToyModel()
    surgery = ALL[method](model.encoder, TASKS, grouping="layer")
    train(surgery, model, range(4))
    backwards = dict(reversed(list(model.encoder.named_parameters())))
    other = ALL[method](backwards.items(), ("es", "de", "fr"), grouping="layer")
    assert other.groups == ("3", "2", "0")
    other.load_state_dict(surgery.state_dict())
    if method == "GradVac":
        assert surgery.ema.any()
        for k, group in enumerate(other.groups):
            for i, a in enumerate(other.tasks):
                for j, b in enumerate(other.tasks):
                    was = surgery.ema[surgery.groups.index(group), TASKS.index(a), TASKS.index(b)]
                    assert other.ema[k, i, j] == was
    else:
        assert other.weights.tolist() == surgery.weights[[2, 0, 1]].tolist()
        assert other.initial_losses.tolist() == surgery.initial_losses[[2, 0, 1]].tolist()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda e: PCGrad(e, TASKS), "GradVac: the state is one of PCGrad; expected one of GradVac"),
        (lambda e: GradVac(e, ("de", "fr")), "GradVac: the state is of 2 tasks and lacks 'es'; expected the 3 "),
        (lambda e: GradVac(e, (*TASKS, "it")), "the state is of 4 tasks and has 'it' besides; expected the 3 tasks "),
        (lambda e: GradVac(e, ("de", "fr", "it")), "lacks 'es' and has 'it' besides; expected the 3 tasks de, fr, es"),
        (lambda e: GradVac(e, TASKS, grouping="layer"), "the state is of 3 groups and lacks 'model' and has '0', '2'"),
    ],
)  # fmt: skip
def test_a_state_of_something_else_is_refused_and_nothing_changed(make, sentence):
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    train(surgery, model, range(3))
    before = {name: b.clone() for name, b in surgery.state.named_buffers()}
    with pytest.raises(ValueError) as caught:
        surgery.load_state_dict(make(model.encoder).state_dict())
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(b, before[name]) for name, b in surgery.state.named_buffers())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("tasks"), "GradVac: the state lacks 'tasks'; expected what state_dict() gave"),
        (lambda s: s.update(tasks=["de", "fr", "es", "es"]), "the state is of 4 tasks and names some twice; expected"),
        (lambda s: s["tensors"].pop("ema"), "GradVac: the state holds seed_step; expected ema, seed_step"),
        (lambda s: s["tensors"].update(ema=s["tensors"]["ema"].float()), "ema of the state is torch.float32 [1, 3"),
        (lambda s: s["tensors"].update(ema=torch.zeros(1, 2, 2).double()), "ema of the state is torch.float64 [1, 2"),
        (lambda s: s["tensors"].update(ema=0.5), "ema of the state is 0.5; expected torch.float64 [1, 3, 3]"),
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused_and_nothing_changed(change, sentence):
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    train(surgery, model, range(3))
    state, before = surgery.state_dict(), surgery.ema.clone()
    state["tensors"]["seed_step"] += 7
    change(state)
    with pytest.raises(ValueError) as caught:
        surgery.load_state_dict(state)
    assert sentence in str(caught.value)
    assert torch.equal(surgery.ema, before) and surgery.seed_step.tolist() == [0, 3]


def test_the_state_lives_in_a_model_and_is_written_in_place():
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    model.surgery = surgery.state
    assert {"surgery.ema", "surgery.seed_step"} <= set(model.state_dict())
    assert not any(name.startswith("surgery") for name, _ in model.named_parameters())
    places = {name: b.data_ptr() for name, b in surgery.state.named_buffers()}
    train(surgery, model, range(3))
    surgery.load_state_dict(surgery.state_dict())
    assert {name: b.data_ptr() for name, b in model.surgery.named_buffers()} == places
    other = ToyModel()
    again = GradVac(other.encoder, TASKS)
    other.surgery = again.state
    other.load_state_dict(model.state_dict())
    assert torch.equal(again.ema, surgery.ema) and again.seed_step.tolist() == [0, 3]


def test_the_state_keeps_its_precision_and_the_arena_follows_the_model():
    model = ToyModel(dtype=torch.float32)
    surgery = GradVac(model.encoder, TASKS, beta=0.5)
    model.surgery = surgery.state
    surgery.backward(model.losses())
    before = surgery.ema.clone()
    model.to(torch.bfloat16)
    assert surgery.ema.dtype == torch.float64 and torch.equal(surgery.ema, before)
    assert model.surgery.seed_step.dtype == torch.int64
    model.zero_grad()
    surgery.backward(model.losses())
    assert model.encoder[0].weight.grad.dtype == torch.bfloat16 and surgery.seed_step[1] == 2
    model.to(torch.float64)
    model.zero_grad()
    surgery.backward(model.losses())
    assert model.encoder[0].weight.grad.dtype == torch.float64


def test_copies_of_a_state_do_not_move_with_it():
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    train(surgery, model, range(2))
    state = surgery.state_dict()
    kept = state["tensors"]["ema"].clone()
    train(surgery, model, range(2, 4))
    assert torch.equal(state["tensors"]["ema"], kept) and not torch.equal(surgery.ema, kept)
    assert state["kind"] == "GradVac" and state["tasks"] == list(TASKS) and state["groups"] == ["model"]
