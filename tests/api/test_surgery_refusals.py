"""What surgery refuses: a sentence each, and nothing changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_surgery import ALL, TASKS, NoVmap, ToyModel, assert_same, grads_of
from toy_surgery import one_thread as one_thread  # a fixture

from xferkit.surgery import MGDA, FixedTarget, GradNorm, GradVac, PCGrad, Sum, TaskGradients

pytestmark = pytest.mark.usefixtures("one_thread")

# -- refusals -------------------------------------------------------------------------------------------------------


def build(**changes):
    model = ToyModel()
    arguments = {"shared": model.encoder, "tasks": TASKS, **changes}
    return lambda: GradVac(arguments.pop("shared"), arguments.pop("tasks"), **arguments)


def frozen_model():
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (build(tasks=()), "GradVac: tasks must name at least one task, got none"),
        (build(tasks="de"), "GradVac: tasks must be a list of names, got the text 'de'"),
        (build(tasks=("de", "fr", "de")), "GradVac: tasks names 'de' twice; expected each task once"),
        (build(tasks=("de", 1)), "GradVac: tasks must be names (texts), got 1"),
        (build(apply_to=("de", "es", "es")), "GradVac: apply_to names 'es' twice; expected each task once"),
        (build(apply_to=("d",)), "GradVac: unknown task 'd', expected one of de, fr, es; the nearest is 'de'"),
        (build(task_weights={"dee": 1}), "unknown task 'dee', expected one of de, fr, es; the nearest is 'de'"),
        (build(task_weights={"de": 0}), "GradVac: the weight of task 'de' must be a positive number, got 0"),
        (build(beta=1.5), "GradVac: beta must be in [0, 1], got 1.5"),
        (build(ema="mean"), "GradVac: ema must be 'modified' or 'raw', got 'mean'"),
        (build(seed=0.5), "GradVac: seed must be a whole number of 64 bits, got 0.5"),
        (build(backward="fast"), "GradVac: backward must be 'loop', 'batched' or 'auto', got 'fast'"),
        (build(grouping="rows"), "grouping must be one of 'model', 'layer', 'matrix', 'encoder_decoder' or a"),
        (build(shared=frozen_model()), "GradVac: shared has no trainable parameter; expected at least one"),
        (build(shared=nn.Linear(2, 2).parameters()), "GradVac: shared holds a Parameter; expected a module, or names"),
        (build(shared=[("a", nn.Parameter(torch.ones(2)) * 2)]), "'a' is a tensor that was computed; expected a"),
        (build(shared=[("a", 1)]), "GradVac: 'a' is a int; expected a parameter (a leaf tensor)"),
        (lambda: FixedTarget(ToyModel().encoder, TASKS, target=1.0), "FixedTarget: target must be a cosine in ("),
        (lambda: FixedTarget(ToyModel().encoder, TASKS, target=torch.ones(3)), "must be cosines in (-1, 1) of shape"),
        (lambda: MGDA(ToyModel().encoder, TASKS, normalization="l1"), "MGDA: normalization must be 'none', 'l2', "),
        (lambda: GradNorm(ToyModel().encoder, TASKS, alpha=-1), "GradNorm: alpha must be a number of at least 0, "),
        (lambda: GradNorm(ToyModel().encoder, TASKS, floor=0.0), "GradNorm: floor must be in (0, 1), got 0.0"),
        (lambda: GradNorm(ToyModel().encoder, TASKS, norm_of="9"), "norm_of must be 'last', 'all' or one of the "),
        (lambda: TaskGradients(ToyModel().encoder, 0), "TaskGradients: num_tasks must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_gets_one_sentence(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_parameters_that_cannot_stand_together_are_named():
    model = ToyModel()
    model.encoder[2].bias = nn.Parameter(model.encoder[2].bias.float())
    with pytest.raises(
        ValueError, match=r"parameter '2\.bias' is torch\.float32; expected torch\.float64 as '0\.weigh"
    ):
        GradVac(model.encoder, TASKS)
    meta = nn.Linear(2, 2)
    meta.bias = nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match="parameter 'bias' is meta; expected cpu as 'weight' is"):
        GradVac(meta, TASKS)
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="the shared parameters 'a' and 'b' are the same tensor"):
        GradVac([("a", p), ("b", p)], TASKS)
    with pytest.raises(ValueError, match="two shared parameters are named 'a'"):
        GradVac([("a", p), ("a", nn.Parameter(torch.ones(2)))], TASKS)
    with pytest.raises(ValueError, match=r"parameter 'a' is torch\.complex64; expected a floating-point"):
        GradVac([("a", nn.Parameter(torch.ones(2, dtype=torch.complex64)))], TASKS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m, given: {}, "GradVac: expected a mapping from tasks to losses, got an empty one"),
        (lambda m, given: list(given.values()), "GradVac: expected a mapping from tasks to losses, got a list"),
        (lambda m, given: {"dee": given["de"]}, "unknown task 'dee', expected one of de, fr, es; the nearest is 'de'"),
        (lambda m, given: {**given, "xx": given["de"]}, "GradVac: unknown task 'xx', expected one of de, fr, es"),
        (lambda m, given: {**given, "fr": torch.ones(2)}, "the loss of 'fr' must be a scalar, got shape [2]"),
        (lambda m, given: {**given, "fr": 0.5}, "the loss of 'fr' must be a scalar tensor, or a function that"),
        (lambda m, given: {**given, "fr": given["fr"].detach()}, "the loss of 'fr' does not require grad; expected"),
        (lambda m, given: {**given, "fr": m.heads["fr"].weight.sum()}, "the loss of 'fr' reaches no shared parameter"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GradVac", "Sum"])
def test_losses_that_cannot_be_differentiated_change_nothing(method, change, sentence):
    model = ToyModel()
    surgery = ALL[method](model.encoder, TASKS)
    with pytest.raises(ValueError) as caught:
        surgery.backward(change(model, model.losses()))
    assert sentence.replace("GradVac", method) in str(caught.value) and "\n" not in str(caught.value)
    assert grads_of(model) == {} and surgery.info is None
    surgery.backward(model.losses())
    other = ToyModel()
    ALL[method](other.encoder, TASKS).backward(other.losses())
    assert_same(grads_of(model), grads_of(other), rtol=0, atol=0)


def test_functions_that_go_wrong_leave_the_shared_gradients():
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    model.encoder[0].bias.grad = kept = torch.ones(7, dtype=torch.float64)
    good = lambda: model.losses(tasks=("de",))["de"]  # noqa: E731

    def crash():
        raise KeyError("data")

    for bad, error, sentence in (
        (
            lambda: torch.ones(2, requires_grad=True),
            ValueError,
            r"the loss of 'fr' must be a scalar, got shape \[2\]",
        ),
        (
            lambda: None,
            ValueError,
            "the loss of 'fr' must be a scalar tensor, or a function that computes one, got a N",
        ),
        (lambda: model.heads["fr"].weight.sum(), ValueError, "the loss of 'fr' reaches no shared parameter"),
        (crash, KeyError, "data"),
    ):
        with pytest.raises(error, match=sentence):
            surgery.backward({"de": good, "fr": bad})
        assert model.encoder[0].bias.grad is kept and kept.tolist() == [1.0] * 7
        assert model.encoder[0].weight.grad is None and not surgery.seed_step[1]
        with pytest.raises(RuntimeError, match="GradVac: nothing was collected since the last combination"):
            surgery.combine()
    with pytest.raises(ValueError, match="backward='batched' needs losses of one graph, got a function"):
        GradVac(model.encoder, TASKS, backward="batched").backward({"de": good, "fr": good})


def test_a_graph_that_hides_its_parameters_is_tried():
    """A function in Python may differentiate more in its own backward pass; only when it does not, it is refused."""
    from torch.utils.checkpoint import checkpoint

    model = ToyModel()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    loss = checkpoint(model.encoder, x, use_reentrant=True).square().mean()
    PCGrad(model.encoder, ("de",)).backward({"de": loss})
    got = grads_of(model.encoder)
    model.zero_grad()
    model.encoder(x).square().mean().backward()
    assert_same(got, grads_of(model.encoder))
    model.zero_grad()
    loss = NoVmap.apply(x).sum()
    with pytest.raises(
        RuntimeError, match="PCGrad: the loss of 'de' reaches no shared parameter; expected one"
    ):
        PCGrad(model.encoder, ("de",)).backward({"de": loss})
    assert grads_of(model) == {}


def test_hooks_that_take_gradients_away_are_noticed():
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    handle = model.encoder[2].weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with pytest.raises(
        RuntimeError, match=r"the gradient of '2\.weight' was replaced during the backward pass of 'de'"
    ):
        surgery.backward(model.losses())
    handle.remove()
    assert grads_of(model.encoder) == {}
    surgery.backward(model.losses())


def test_a_module_whose_parameters_have_changed_is_refused():
    for change, what in (
        (lambda e: e.append(nn.Linear(6, 6).double()), r"'4\.weight' was added or unfrozen"),
        (lambda e: e[0].bias.requires_grad_(False), r"'0\.bias' was removed or frozen"),
        (
            lambda e: setattr(e[0], "bias", nn.Parameter(torch.zeros(7).double())),
            r"'0\.bias' was added or unfrozen",
        ),
    ):
        model = ToyModel()
        surgery = GradVac(model.encoder, TASKS)
        change(model.encoder)
        with pytest.raises(ValueError, match=f"GradVac: the shared module's parameters have changed, {what}"):
            surgery.backward(model.losses())
        assert grads_of(model) == {}


def test_parts_have_one_scaler():
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    surgery.collect(model.losses())
    with pytest.raises(ValueError, match="expected one scaler for all parts of a step, got another"):
        surgery.collect(model.losses(), scaler=torch.amp.GradScaler("cpu"))


def test_an_error_while_collecting_drops_what_was_collected():
    model = ToyModel()
    grads = TaskGradients(model.encoder, 2)
    with grads.collecting("de"):
        model.losses()["de"].backward()
    with pytest.raises(KeyError), grads.collecting("fr"):
        raise KeyError("data")
    assert grads.tasks == () and grads_of(model.encoder) == {}


def test_more_tasks_than_rows_are_refused():
    model = ToyModel()
    grads = TaskGradients(model.encoder, 1)
    with grads.collecting("de"):
        model.losses()["de"].backward()
    with pytest.raises(ValueError, match="TaskGradients: there are 1 rows, and 'fr' would be one task more"):
        grads.row("fr")


def test_several_processes_are_refused(monkeypatch):
    model = ToyModel()
    surgery = GradVac(model.encoder, TASKS)
    total = Sum(model.encoder, TASKS)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for call in (lambda: surgery.backward(model.losses()), lambda: PCGrad(model.encoder, TASKS)):
        with pytest.raises(
            RuntimeError, match=r"torch\.distributed runs 2 processes, and surgery on each replica's"
        ):
            call()
    assert grads_of(model) == {}
    total.backward(model.losses())  # exact on replicas


def test_parameters_cut_over_processes_are_refused():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = distribute_module(ToyModel().encoder, init_device_mesh("cpu", (1,)))
        with pytest.raises(
            RuntimeError, match=r"parameter '0\.weight' is cut over processes \(a DTensor\), and surgery"
        ):
            GradVac(model, TASKS)
    finally:
        dist.destroy_process_group()
