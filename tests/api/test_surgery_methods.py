"""Each method of surgery against its formula, written out on vectors."""

from __future__ import annotations

import pytest
import torch
from toy_surgery import (
    METHODS,
    TASKS,
    ToyModel,
    assert_same,
    encoder_gradient,
    gradients,
    grads_of,
    orders,
    vaccinated,
    vectors,
)
from toy_surgery import one_thread as one_thread  # a fixture

from xferkit.surgery import MGDA, GradNorm, GradVac, Sum, group_names

pytestmark = pytest.mark.usefixtures("one_thread")

# -- methods against vectors ----------------------------------------------------------------------------------------

GROUPINGS = {"model": 1, "layer": 3, "matrix": 6, (lambda name: name.endswith("bias")): 2}


@pytest.mark.parametrize("grouping", GROUPINGS, ids=["model", "layer", "matrix", "callable"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("GradVac", {"beta": 0.3}),
        ("GradVac", {"beta": 0.3, "apply_to": ("es", "de")}),
        ("PCGrad", {}),
        ("FixedTarget", {"apply_to": ["fr"]}),
    ],
)
def test_pairwise_methods_are_the_loop_over_vectors(method, options, grouping):
    model, groups = ToyModel(), GROUPINGS[grouping]
    surgery = METHODS[method](model.encoder, TASKS, grouping=grouping, seed=7, **options)
    assert len(surgery.groups) == groups
    names = [n for n, _ in model.encoder.named_parameters()]
    of = group_names(names, grouping)
    ema = torch.zeros(groups, 3, 3, dtype=torch.float64)
    apply_to = [task in options.get("apply_to", TASKS) for task in TASKS]
    for step in range(6):
        model.zero_grad()
        found = gradients(model, model.losses(step))
        info = surgery.backward(model.losses(step))
        order = orders(7, step, groups, 3)
        for k, group in enumerate(surgery.groups):
            members = [name for name, own in zip(names, of, strict=True) if own == group]
            wanted = vaccinated(
                vectors(found, members), order[k], ema[k],
                beta=options.get("beta", 0.0),
                target={"PCGrad": 0.0, "FixedTarget": 0.3}.get(method),
                apply_to=apply_to,
            )  # fmt: skip
            got = encoder_gradient(model, members)
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
        if method == "GradVac":
            torch.testing.assert_close(surgery.ema, ema, rtol=1e-9, atol=1e-12)
        assert not info.moved[:, ~torch.tensor(apply_to)].any()
    assert surgery.seed_step.tolist() == [7, 6]
    if method == "GradVac":
        assert info.moved.any(), "something happened"


def test_raw_averages_are_those_of_the_tasks_own_gradients():
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS, grouping="layer", beta=0.25, ema="raw", apply_to=("de", "es"))
    ema = torch.zeros_like(surgery.ema)
    for step in range(4):
        info = surgery.backward(model.losses(step))
        ema[:, [0, 2]] += 0.25 * (info.similarity - ema)[:, [0, 2]]
    ema.diagonal(dim1=1, dim2=2).zero_()
    torch.testing.assert_close(surgery.ema, ema)
    assert surgery.ema[:, 0, 2].equal(surgery.ema[:, 2, 0]), "whatever the order, both ways alike"


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("grouping", ["model", "layer"])
def test_mgda_finds_the_shortest_convex_combination(normalization, grouping):
    model = ToyModel()
    surgery = MGDA(model.encoder, TASKS, normalization=normalization, grouping=grouping)
    losses = model.losses()
    found, values = gradients(model, losses), torch.stack([v.detach() for v in losses.values()])
    info = surgery.backward(losses)
    names = list(found["de"])
    for k, group in enumerate(surgery.groups):
        members = [n for n, own in zip(names, group_names(names, grouping), strict=True) if own == group]
        raw = torch.stack(vectors(found, members))
        scale = {
            "none": torch.ones(3), "l2": raw.norm(dim=1), "loss": values, "loss+": values * raw.norm(dim=1)
        }[normalization].double()  # fmt: skip
        alpha = info.weights[k]
        assert (alpha >= 0).all() and alpha.sum().item() == pytest.approx(1)
        shortest = alpha @ (raw / scale[:, None])
        # Optimal: no task's gradient points less far along it than it does itself.
        slack = (raw / scale[:, None]) @ shortest - shortest @ shortest
        assert slack.min() > -1e-8 * (raw / scale[:, None]).norm(dim=1).max() ** 2
        torch.testing.assert_close(encoder_gradient(model, members), alpha @ raw)


def test_mgda_of_a_loss_that_is_not_positive_is_nan_not_a_wrong_number():
    model = ToyModel()
    losses = model.losses()
    info = MGDA(model.encoder, TASKS, normalization="loss").backward({**losses, "de": -losses["de"]})
    assert info.weights.isnan().any()


@pytest.mark.parametrize(("norm_of", "places"), [("last", [2]), ("all", [0, 1, 2]), ("0", [0])])
def test_gradnorm_is_its_formula(norm_of, places):
    model = ToyModel()
    surgery = GradNorm(
        model.encoder, TASKS, grouping="layer", alpha=0.7, learning_rate=0.1, norm_of=norm_of,
        task_weights={"de": 2.0},
    )  # fmt: skip
    weights = torch.tensor([1.5, 0.75, 0.75], dtype=torch.float64)
    torch.testing.assert_close(surgery.weights, weights)
    first = None
    for step in range(5):
        model.zero_grad()
        losses = model.losses(step)
        found = gradients(model, losses)
        values = torch.stack([v.detach() for v in losses.values()])
        first = values if first is None else first
        info = surgery.backward(losses)
        names = list(found["de"])
        of = group_names(names, "layer")
        members = [n for n, own in zip(names, of, strict=True) if own in [surgery.groups[k] for k in places]]
        norms = torch.stack([v.norm() for v in vectors(found, members)])
        torch.testing.assert_close(
            encoder_gradient(model, names), weights @ torch.stack(vectors(found, names))
        )
        torch.testing.assert_close(info.weights, weights.expand(3, 3))
        rate = values / first
        goal = (weights * norms).mean() * (rate / rate.mean()) ** 0.7
        moved = (weights - 0.1 * (weights * norms - goal).sign() * norms).clamp(min=1e-3)
        weights = 3 * moved / moved.sum()
        torch.testing.assert_close(surgery.weights, weights)
    assert (weights - 1).abs().max() > 0.03


def test_gradnorm_keeps_weights_positive_and_their_sum():
    model = ToyModel()
    surgery = GradNorm(model.encoder, TASKS, learning_rate=50.0)
    for step in range(5):
        surgery.backward(model.losses(step))
    assert (surgery.weights > 0).all() and surgery.weights.sum().item() == pytest.approx(3)


def test_the_sum_is_the_sum_to_the_bit_in_one_pass(monkeypatch):
    calls = []
    plain = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **k: (calls.append(1), plain(self, **k))[1])
    model = ToyModel()
    info = Sum(model.encoder, TASKS, task_weights={"fr": 0.3}).backward(model.losses())
    got, losses = grads_of(model), model.losses()
    assert len(calls) == 1 and info.gram is None and info.weights.tolist() == [[1.0, 0.3, 1.0]]
    model.zero_grad()
    (losses["de"] + 0.3 * losses["fr"] + losses["es"]).backward()
    assert_same(got, grads_of(model), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_heads_get_their_plain_gradients(method):
    model = ToyModel(dtype=torch.float32)
    METHODS[method](model.encoder, TASKS).backward(model.losses())
    got = grads_of(model.heads)
    model.zero_grad()
    sum(model.losses().values()).backward()
    assert_same(got, grads_of(model.heads), rtol=0, atol=0)


def test_task_weights_weigh_the_losses():
    weights = {"de": 0.25, "es": 3.0}
    for method in ("GradVac", "PCGrad", "MGDA"):
        model = ToyModel()
        info = METHODS[method](model.encoder, TASKS, task_weights=weights, grouping="layer").backward(
            model.losses()
        )
        got = grads_of(model)
        model.zero_grad()
        scaled = {task: loss * weights.get(task, 1.0) for task, loss in model.losses().items()}
        plain = METHODS[method](model.encoder, TASKS, grouping="layer").backward(scaled)
        assert_same(got, grads_of(model), rtol=0, atol=0)
        torch.testing.assert_close(info.losses, torch.stack(list(model.losses().values())).detach())
        assert torch.equal(info.gram, plain.gram)
