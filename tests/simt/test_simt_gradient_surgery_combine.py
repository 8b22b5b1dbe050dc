"""combine_gradients' CUDA kernel, run thread by thread, against the reference."""

from __future__ import annotations

import pytest
import torch
from simt_harness import Arena, SimtError
from simt_surgery import (
    TOLERANCE,
    arena_view,
    assert_combined,
    combine,
    cut,
    gradients,
    list_view,
    lists,
    some_weights,
)

from xfercore.reference import gradient_surgery as reference


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 7, 8, 25, 33])
def test_combination_matches_the_reference(tasks: int, dtype: torch.dtype) -> None:
    for columns, pieces in ((0, 1), (1, 1), (17, 3), (5003, 7)):
        grads, offsets = gradients(tasks, columns, dtype), cut(columns, pieces)
        weights = some_weights(pieces, tasks)
        wanted = reference.combine_gradients(grads, offsets, weights)
        for stride, layout in ((columns, 0), ((columns + 7) // 8 * 8, 1)):
            arena = Arena(layout)
            found = combine(arena, arena_view(arena, grads, offsets, stride), weights)
            assert_combined(found, wanted, dtype)


def test_columns_outside_all_groups_are_zero() -> None:
    grads = gradients(3, 4000)
    offsets = [2, 1500, 1500, 3990]
    weights = some_weights(3, 3)
    arena = Arena()
    found = combine(arena, arena_view(arena, grads, offsets), weights)
    assert_combined(found, reference.combine_gradients(grads, offsets, weights), torch.float32)
    assert not found[:2].any() and not found[3990:].any() and found[2:3990].all()
    arena = Arena()
    assert not combine(arena, arena_view(arena, grads, [0, 4000]), some_weights(1, 3)[:0], groups=[0]).any()


@pytest.mark.parametrize("layout", [0, 1])
def test_combination_of_lists(layout: int) -> None:
    sizes = [1, 0, 2100, 64, 7, 90]
    grads = lists(5, sizes)
    for task in grads:
        task[3] = None  # no task has a gradient for this one
    groups, weights = [0, 1, 1, 5], some_weights(3, 5)
    arena = Arena(layout)
    view = list_view(arena, grads, sizes, torch.float32)
    places = [arena.output(f"out{n}", (size,), torch.float32) for n, size in enumerate(sizes)]
    places[4] = 0  # no result is wanted
    table = torch.tensor(places)
    combine(arena, view, weights, groups=groups, out=arena.input("out_pointers", table))
    like = [torch.empty(size) if place else None for size, place in zip(sizes, places, strict=True)]
    wanted = reference.combine_gradients(grads, groups, weights, out=like)
    for n in (0, 1, 2, 3):
        assert_combined(arena.outputs[f"out{n}"], wanted[n], torch.float32)
    assert not arena.outputs["out5"].any()  # in no group


@pytest.mark.parametrize("row", [0, 2])
def test_the_result_may_replace_a_gradient(row: int) -> None:
    grads, weights = gradients(3, 2600), some_weights(2, 3)
    wanted = reference.combine_gradients(grads, [0, 1001, 2600], weights)
    arena = Arena(1)
    view = arena_view(arena, grads, [0, 1001, 2600])
    view.base = arena.output("both", (3, 2600), torch.float32)
    arena.outputs["both"].copy_(grads)
    combine(arena, view, weights, out=view.base + row * 2600 * 4)
    assert_combined(arena.outputs["both"][row], wanted, torch.float32)
    others = [t for t in range(3) if t != row]
    assert torch.equal(arena.outputs["both"][others], grads[others])


def test_a_weight_of_zero_does_not_hide_nan() -> None:
    grads = gradients(3, 2000)
    grads[1, 5], grads[1, 1999] = float("nan"), float("inf")
    arena = Arena()
    weights = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    found = combine(arena, arena_view(arena, grads, [0, 2000]), weights)
    assert found[5].isnan() and found[1999].isnan() and found.isnan().sum() == 2


@pytest.mark.parametrize("offsets", [[0, 2000, 100, 3000], [-5, 100, 3000], [0, 100, 3100]])
def test_combination_with_wrong_offsets_writes_every_column_once(offsets: list[int]) -> None:
    grads = gradients(2, 3000)
    arena = Arena()
    found = combine(arena, arena_view(arena, grads, offsets), some_weights(len(offsets) - 1, 2))
    assert found.isfinite().all()


def test_combination_bits_do_not_depend_on_the_order_of_threads() -> None:
    grads, weights, runs = gradients(9, 4100), some_weights(3, 9), []
    for seed in range(3):
        arena = Arena()
        runs.append(combine(arena, arena_view(arena, grads, [0, 7, 2050, 4100]), weights, seed=seed))
    assert all(torch.equal(runs[0], other) for other in runs[1:])


def test_more_tasks_than_shared_memory_holds_is_an_error() -> None:
    arena = Arena()
    view = arena_view(arena, torch.ones(13654, 1), [0, 1])
    with pytest.raises(SimtError, match=r"combine_gradients: num_tasks must be at most 13653 .* got 13654"):
        combine(arena, view, some_weights(1, 13654))


def test_weights_beyond_float32_reach_gradients_that_they_fit() -> None:
    grads = torch.tensor([[3.0, -1.0, 2.0, 0.5], [-1e-42, 2e-42, 1e-42, 0.0]])
    weights = torch.tensor([[1.0, 5e41]], dtype=torch.float64)
    arena = Arena()
    found = combine(arena, arena_view(arena, grads, [0, 4]), weights)
    exact = (weights[0, :, None] * grads.double()).sum(0)
    assert torch.allclose(found.double(), exact, rtol=0.0, atol=2e-6)
