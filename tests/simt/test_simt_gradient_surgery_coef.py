"""The CUDA kernels of gradient surgery's coefficients, run thread by thread, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simt_harness import (
    AgemCoefArgs,
    Arena,
    GradNormStatsArgs,
    GradVacCoefArgs,
    MgdaCoefArgs,
    SimtError,
    SurgeryOrder,
    call,
)
from torch import Tensor

from xfercore.reference import gradient_surgery as reference


def some_gram(groups: int, tasks: int, numel: int = 40, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(groups * 1009 + tasks + seed)
    shared = torch.randn(groups, 1, numel, generator=rng, dtype=torch.float64)
    grads = torch.randn(groups, tasks, numel, generator=rng, dtype=torch.float64) - 0.3 * shared
    return grads @ grads.transpose(1, 2)


def numbers(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orders(groups: int, tasks: int, seed: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(tasks, generator=rng) for _ in range(groups * tasks)]
    return torch.stack(rows).reshape(groups, tasks, tasks)


def assert_same(found: dict[str, Tensor], wanted: Any, rtol: float = 1e-11) -> None:
    """Every field that the reference returns, NaN where it has NaN."""
    for name, value in wanted._asdict().items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-13, equal_nan=True, msg=name)


def gradvac(
    gram: Tensor,
    ema: Tensor | None = None,
    *,
    beta: float = 1e-2,
    order: Tensor | None = None,
    seed_step: Tensor | None = None,
    target: float | Tensor | None = None,
    task_weights: Tensor | None = None,
    task_mask: Tensor | None = None,
    apply_to: Tensor | None = None,
    target_clip: float = 1 - 1e-6,
    residual_eps: float = 1e-6,
    seed: int = 0,
) -> dict[str, Tensor]:
    groups, tasks, _ = gram.shape
    arena = Arena()
    given = SurgeryOrder()
    if order is None:
        given.seed_step = arena.input("seed_step", seed_step)
    else:  # broadcast dimensions are read again and again, as in the binding
        wide = order.expand(groups, tasks, tasks) if order.dim() < 3 else order
        stored = order.reshape(-1, tasks)
        given.order = arena.input("order", stored)
        rows, leading = order.shape[-2] if order.dim() > 1 else 1, wide.shape[0] if order.dim() == 3 else 1
        given.row_stride = tasks if rows > 1 else 0
        given.group_stride = tasks * rows if leading > 1 else 0
    number = isinstance(target, float)
    args = GradVacCoefArgs(
        num_groups=groups,
        num_tasks=tasks,
        gram=arena.input("gram", gram),
        ema=arena.input("given_ema", ema),
        beta=beta,
        order=given,
        target=None if number else arena.input("target", target),
        use_target_value=number,
        target_value=target if number else 0.0,
        target_clip=target_clip,
        residual_eps=residual_eps,
        task_weights=arena.input("task_weights", task_weights),
        task_mask=arena.input("task_mask", task_mask),
        apply_to=arena.input("apply_to", apply_to),
        weights=arena.output("weights", (groups, tasks), torch.float64),
        new_ema=arena.output("ema", gram.shape, torch.float64),
        cosine=arena.output("cosine", gram.shape, torch.float64),
        moved=arena.output("moved", gram.shape, torch.bool),
        coefficients=arena.output("coefficients", gram.shape, torch.float64),
    )
    call("gradvac_coef", args, seed)
    return {name: value.clone() for name, value in arena.outputs.items()}


@pytest.mark.parametrize(("groups", "tasks"), [(3, 1), (2, 2), (3, 7), (2, 25), (1, 33)])
def test_gradvac_matches_the_reference(groups: int, tasks: int) -> None:
    gram, ema = some_gram(groups, tasks), numbers(groups, tasks, tasks, spread=0.2).tanh()
    for order in (orders(groups, tasks), orders(1, tasks)[:, :1], orders(1, tasks)[0]):
        assert_same(gradvac(gram, ema, order=order), reference.gradvac_coef(gram, ema, order=order))


@pytest.mark.parametrize(
    "options",
    [
        {"target": 0.0, "beta": 0.0},
        {"target": 0.3},
        {"target": numbers(2, 6, 6, seed=1, spread=0.5)},
        {"task_weights": torch.arange(6.0, dtype=torch.float64), "beta": 0.5},
        {"task_mask": torch.tensor([True, False, True, True, False, True])},
        {"apply_to": torch.tensor([False, True, True, False, True, True])},
        {"target": 1.5, "target_clip": 0.9},
        {"target": 0.9, "residual_eps": 0.95},
    ],
    ids=["pcgrad", "number", "tensor", "weights", "mask", "apply", "clip", "residual"],
)
def test_gradvac_options(options: dict[str, Any]) -> None:
    gram, ema, order = some_gram(2, 6), numbers(2, 6, 6, spread=0.3), orders(2, 6)
    assert_same(
        gradvac(gram, ema, order=order, **options), reference.gradvac_coef(gram, ema, order=order, **options)
    )


@pytest.mark.parametrize("tasks", [1, 5, 8, 35])
def test_gradvac_draws_the_permutations_of_the_reference(tasks: int) -> None:
    gram, seed_step = some_gram(2, tasks), torch.tensor([-(2**40) - 7, 2**33 + 5])
    drawn = gradvac(gram, target=0.1, seed_step=seed_step)
    given = gradvac(gram, target=0.1, order=reference.surgery_order(seed_step, 2, tasks))
    for name, value in drawn.items():
        torch.testing.assert_close(value, given[name], rtol=0, atol=0, equal_nan=True)


def test_gradvac_passes_over_what_is_zero_or_not_finite() -> None:
    gram, ema, order = some_gram(1, 6), numbers(1, 6, 6, spread=0.3), orders(1, 6)
    gram[0, 2], gram[0, :, 2] = 0.0, 0.0
    gram[0, 4], gram[0, :, 4] = float("nan"), float("nan")
    found = gradvac(gram, ema, order=order)
    assert_same(found, reference.gradvac_coef(gram, ema, order=order))
    assert found["ema"].isfinite().all() and torch.equal(found["ema"][0, 4], ema[0, 4])


@pytest.mark.parametrize("wrong", [-1, 5, 2**40, 3], ids=["negative", "too large", "64 bits", "twice"])
def test_an_order_that_is_no_permutation_gives_a_nan_row(wrong: int) -> None:
    gram, ema, order = some_gram(2, 5), numbers(2, 5, 5, spread=0.3), orders(2, 5)
    order[1, 2, int((order[1, 2] != 3).nonzero()[0])] = wrong
    found = gradvac(gram, ema, order=order)
    bad = torch.zeros(2, 5, dtype=torch.bool)
    bad[1, 2] = True
    assert torch.equal(found["coefficients"].isnan().all(2), bad)
    assert torch.equal(found["coefficients"].isnan().any(2), bad)
    assert found["weights"][0].isfinite().all() and found["weights"][1].isnan().all()
    assert torch.equal(found["ema"][1, 2], ema[1, 2]) and not found["moved"][1, 2].any()


def test_gradvac_of_a_thousand_tasks() -> None:
    tasks = 1030
    apply_to = torch.zeros(tasks, dtype=torch.bool)
    apply_to[[0, 517, 1029]] = True
    gram, order = some_gram(1, tasks), orders(1, tasks)[:, :1]
    found = gradvac(gram, target=0.05, order=order, apply_to=apply_to)
    wanted = reference.gradvac_coef(gram, target=0.05, order=order, apply_to=apply_to)
    assert_same(found, wanted, rtol=1e-8)


def test_gradvac_bits_do_not_depend_on_the_order_of_threads() -> None:
    gram, ema, seed_step = some_gram(2, 34), numbers(2, 34, 34, spread=0.3), torch.tensor([1, 2])
    runs = [gradvac(gram, ema, seed_step=seed_step, seed=seed) for seed in range(3)]
    for name, value in runs[0].items():
        assert all(torch.equal(value.nan_to_num(), other[name].nan_to_num()) for other in runs[1:]), name


def mgda(
    gram: Tensor,
    *,
    scale: Tensor | None = None,
    task_mask: Tensor | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 2000,
    seed: int = 0,
) -> dict[str, Tensor]:
    groups, tasks, _ = gram.shape
    arena = Arena()
    args = MgdaCoefArgs(
        num_groups=groups,
        num_tasks=tasks,
        gram=arena.input("gram", gram),
        scale=arena.input("scale", scale),
        task_mask=arena.input("task_mask", task_mask),
        tolerance=tolerance,
        max_iterations=max_iterations,
        weights=arena.output("weights", (groups, tasks), torch.float64),
        gap=arena.output("gap", (groups,), torch.float64),
    )
    call("mgda_coef", args, seed)
    return {name: value.clone() for name, value in arena.outputs.items()}


@pytest.mark.parametrize(("groups", "tasks"), [(2, 1), (3, 2), (3, 7), (2, 25), (1, 65)])
def test_mgda_finds_the_point_of_least_norm(groups: int, tasks: int) -> None:
    gram, scale = some_gram(groups, tasks, numel=200), numbers(groups, tasks).exp()
    for options in ({}, {"scale": scale}):
        found, wanted = mgda(gram, **options), reference.mgda_coef(gram, **options)
        torch.testing.assert_close(found["weights"], wanted.weights, rtol=0, atol=1e-4)
        torch.testing.assert_close(found["weights"].sum(1), torch.ones(groups, dtype=torch.float64))
        assert (found["weights"] >= 0).all() and (found["gap"] <= 1e-10).all()


def test_mgda_stops_after_the_iterations_that_it_is_given() -> None:
    gram = some_gram(2, 9)
    for iterations in (0, 1):  # from the second on rounding decides which of two equal slopes gives mass
        found = mgda(gram, max_iterations=iterations)
        assert_same(found, reference.mgda_coef(gram, max_iterations=iterations))
        assert (found["weights"] > 0).sum().item() == 2 * (iterations + 1)


def test_mgda_of_duplicates_zeros_and_absent_tasks() -> None:
    gram = some_gram(3, 5)
    gram[0, 1], gram[0, :, 1] = 0.0, 0.0
    gram[1] = gram[1, 0, 0]  # one gradient, five times
    gram[2] = 0.0
    mask = torch.tensor([True, True, True, False, True])
    gram[0, 3], gram[0, :, 3] = float("nan"), float("nan")  # an absent task does no harm
    found, wanted = mgda(gram, task_mask=mask), reference.mgda_coef(gram, task_mask=mask)
    torch.testing.assert_close(found["weights"], wanted.weights, rtol=0, atol=1e-4)
    assert (found["gap"] <= 1e-10).all()


def test_mgda_of_what_is_not_finite_is_nan() -> None:
    gram = some_gram(3, 4)
    gram[0, 2, 2] = float("nan")
    gram[1, 0, 0] = float("inf")
    gram[2] = 1.5e308  # steps between opposite gradients overflow
    gram[2, 0, 1:], gram[2, 1:, 0] = -1.5e308, -1.5e308
    found = mgda(gram)
    assert found["weights"].isnan().all() and found["gap"].isnan().all()


def test_mgda_bits_do_not_depend_on_the_order_of_threads() -> None:
    gram = some_gram(2, 34)
    runs = [mgda(gram, seed=seed) for seed in range(3)]
    assert all(torch.equal(runs[0]["weights"], other["weights"]) for other in runs[1:])


@pytest.mark.parametrize(
    "mask", [None, [True, False, True, True, True], [False] * 5], ids=["all", "one", "none"]
)
def test_gradnorm_matches_the_reference(mask: list[bool] | None) -> None:
    groups, tasks = 37, 5
    gram, weights = some_gram(groups, tasks), numbers(groups, tasks).exp()
    losses, initial = numbers(tasks, seed=1).exp(), numbers(tasks, seed=2).exp()
    task_mask = None if mask is None else torch.tensor(mask)
    arena = Arena()
    args = GradNormStatsArgs(
        num_groups=groups,
        num_tasks=tasks,
        gram=arena.input("gram", gram),
        losses=arena.input("losses", losses),
        initial_losses=arena.input("initial_losses", initial),
        weights=arena.input("weights", weights),
        task_mask=arena.input("task_mask", task_mask),
        alpha=1.5,
        grad_weights=arena.output("grad_weights", (groups, tasks), torch.float64),
        loss=arena.output("loss", (groups,), torch.float64),
        norms=arena.output("norms", (groups, tasks), torch.float64),
    )
    call("gradnorm_stats", args, 0)
    assert_same(arena.outputs, reference.gradnorm_stats(gram, losses, initial, weights, task_mask=task_mask))


@pytest.mark.parametrize("row", [0, 3])
def test_agem_matches_the_reference(row: int) -> None:
    groups, tasks = 37, 4
    gram = some_gram(groups, tasks)
    gram[5, row], gram[5, :, row] = 0.0, 0.0
    arena = Arena()
    args = AgemCoefArgs(
        num_groups=groups,
        num_tasks=tasks,
        gram=arena.input("gram", gram),
        reference=row,
        weights=arena.output("weights", (groups, tasks), torch.float64),
        cosine=arena.output("cosine", (groups,), torch.float64),
    )
    call("agem_coef", args, 0)
    wanted = reference.agem_coef(gram, reference=row)
    assert (wanted.weights[:, row] > 0).any() and (wanted.weights[:, row] == 0).any()
    assert_same(arena.outputs, wanted)


def test_more_tasks_than_shared_memory_holds_is_an_error() -> None:
    with pytest.raises(SimtError, match=r"gradvac_coef: num_tasks must be at most 8192 on CUDA, got 8193"):
        call("gradvac_coef", GradVacCoefArgs(num_groups=1, num_tasks=8193), 0)
    with pytest.raises(SimtError, match=r"mgda_coef: num_tasks must be at most 6826 on CUDA, got 6827"):
        call("mgda_coef", MgdaCoefArgs(num_groups=1, num_tasks=6827), 0)


def test_no_group_launches_nothing() -> None:
    call("gradvac_coef", GradVacCoefArgs(num_groups=0, num_tasks=3), 0)
    call("mgda_coef", MgdaCoefArgs(num_groups=0, num_tasks=3), 0)
    call("gradnorm_stats", GradNormStatsArgs(num_groups=0, num_tasks=3), 0)
    call("agem_coef", AgemCoefArgs(num_groups=0, num_tasks=3), 0)
