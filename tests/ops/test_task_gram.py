"""The two passes over gradients, task_gram and combine_gradients: exact, in place, in one piece or in lists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from surgery_vectors import conflicting, cosine_of, normal, random_orders, vaccinate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import xfercore
from xfercore.reference.gradient_surgery import GradVacCoef
from xfercore.testing import assert_close, float_dtypes, same_values

CPU = torch.device("cpu")
dtypes = pytest.mark.parametrize("dtype", float_dtypes(CPU), ids=str)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _lists(arena: Tensor, shapes: list[tuple[int, ...]]) -> list[list[Tensor | None]]:
    """The rows of an arena cut into parameters."""
    sizes = [math.prod(shape) for shape in shapes]
    return [
        [part.reshape(shape) for part, shape in zip(row.split(sizes), shapes, strict=True)] for row in arena
    ]


# ---- the Gram matrix


@dtypes
@pytest.mark.parametrize("tasks", [*range(1, 12), 16, 33, 65])
def test_every_number_of_tasks_and_width_of_the_tiles(tasks: int, dtype: torch.dtype) -> None:
    """Rows are multiplied in tiles of 3 or 5, columns in blocks of 128 and chunks of 16 Ki."""
    for columns in (1, 2, 15, 16, 17, 127, 128, 129, 400):
        g = normal(tasks, columns, seed=columns, dtype=dtype)
        gram = xfercore.task_gram(g)
        assert torch.equal(gram, gram.mT) and gram.dtype == torch.float64
        assert_close(gram[0], g.double() @ g.double().mT, f"{tasks}x{columns}", tolerance=1e-14)


@pytest.mark.parametrize("columns", [16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 50_001])
def test_chunks_of_columns(columns: int) -> None:
    g = normal(6, columns, dtype=torch.float32)
    offsets = [0, 1, 16_000, columns]
    # In extended precision: products of float64 matrices are off by more than ours, on some machines by 2e-14.
    parts = [p.numpy().astype(np.longdouble) for p in g.split([1, 15_999, columns - 16_000], dim=1)]
    wanted = torch.from_numpy(np.stack([np.einsum("ik,jk->ij", p, p) for p in parts]).astype(np.float64))
    assert_close(xfercore.task_gram(g, offsets), wanted, "groups", tolerance=1e-14)


def test_products_and_sums_are_exact_to_the_last_digits() -> None:
    """Against rational arithmetic, where sums cancel: the error is that of float64 sums of exact products."""
    g = normal(2, 3001, dtype=torch.float32)
    g[1, 1500:3000] = -g[1, :1500] * g[0, :1500] / g[0, 1500:3000]
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(g[0].tolist(), g[1].tolist(), strict=True))
    scale = float(g[0].double().norm() * g[1].double().norm())
    assert abs(float(exact)) < 0.1 * scale
    assert abs(xfercore.task_gram(g)[0, 0, 1].item() - float(exact)) < 1e-15 * scale


def test_gradients_that_all_but_cancel_keep_their_direction() -> None:
    """|g_0 + g_1|² from the Gram matrix, down to an angle of 1e-7; a float32 matmul has lost it at 1e-4."""
    for sine in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        g = normal(2, 40_000)
        g[1] = -g[0] + sine * (g[1] - g[0] * (g[0] @ g[1]) / (g[0] @ g[0])) * (g[0].norm() / g[1].norm())
        exact = float((g[0] + g[1]).norm() ** 2)
        gram = xfercore.task_gram(g)[0]
        left = float(gram[0, 0] + 2 * gram[0, 1] + gram[1, 1])
        assert abs(left / exact - 1) < 0.2 * (1e-7 / sine) ** 2 + 1e-9, sine
        if sine <= 1e-4:
            single = g.float() @ g.float().mT
            assert abs(float(single.sum()) / exact - 1) > 0.5, "float32 was good enough"


@dtypes
def test_lists_equal_the_arena_to_the_bit_group_by_group(dtype: torch.dtype) -> None:
    shapes: list[tuple[int, ...]] = [(7, 31), (0,), (1,), (), (2, 3, 4), (16_385,)]
    ends = torch.tensor([0, *(math.prod(shape) for shape in shapes)]).cumsum(0)
    arena = normal(7, int(ends[-1]), dtype=dtype)
    lists = _lists(arena, shapes)
    gram = xfercore.task_gram(arena, ends)
    assert torch.equal(gram, xfercore.task_gram(lists, list(range(len(shapes) + 1))))
    assert torch.equal(gram, xfercore.task_gram(lists, torch.arange(len(shapes) + 1)))
    joined = xfercore.task_gram(lists)
    assert_close(joined, gram.sum(0, keepdim=True), "one group", tolerance=1e-14)
    weights = normal(len(shapes), 7)
    combined = xfercore.combine_gradients(arena, ends, weights)
    parts = xfercore.combine_gradients(lists, list(range(len(shapes) + 1)), weights)
    assert [tuple(p.shape) for p in parts] == shapes
    assert torch.equal(torch.cat([p.flatten() for p in parts]), combined)


@pytest.mark.parametrize("bad", [1.0, math.nan, math.inf])
def test_none_is_a_gradient_of_zeros_to_the_bit(bad: float) -> None:
    """0 times NaN and 0 times infinity included: what a task lacks hides nothing of the others."""
    lists = _lists(normal(4, 50, dtype=torch.float32), [(5, 4), (30,)])
    lists[3][0][0, 0] = bad
    missing = [list(row) for row in lists]
    missing[0][0] = missing[2][0] = missing[1][1] = None
    zeros = [
        [torch.zeros_like(g) if m is None else g for g, m in zip(*rows, strict=True)]
        for rows in zip(lists, missing, strict=True)
    ]
    for offsets in (None, [0, 1, 2], [1, 2]):
        found = xfercore.task_gram(missing, offsets)
        assert same_values(found, xfercore.task_gram(zeros, offsets))
        for definition in (missing, zeros):
            assert_close(
                found, xfercore.reference.task_gram(definition, offsets), "reference", tolerance=1e-12
            )


def test_the_gram_is_additive_over_shards() -> None:
    """Uneven ones, one of them empty, and lists cut in the middle of a parameter."""
    g = normal(5, 1001, dtype=torch.float32)
    whole = xfercore.task_gram(g, [0, 300, 1001])
    shards = [(g[:, :137], [0, 137, 137]), (g[:, 137:137], [0, 0, 0]), (g[:, 137:], [0, 163, 864])]
    parts = [xfercore.task_gram(part, offsets) for part, offsets in shards]
    assert_close(torch.stack(parts).sum(0), whole, "sum of the shards", tolerance=1e-14)


# ---- the combination


@dtypes
def test_combines_in_float32_and_rounds_once(dtype: torch.dtype) -> None:
    g, weights = normal(65, 301, dtype=dtype), normal(1, 65)
    out = xfercore.combine_gradients(g, None, weights)
    exact = (weights[0, :, None] * g.double()).sum(0)
    scale = (weights[0, :, None] * g.double()).abs().sum(0)
    sums = 1e-15 if dtype == torch.float64 else 2e-6
    assert bool(((out - exact).abs() <= sums * scale + torch.finfo(dtype).eps / 2 * exact.abs()).all())


def test_columns_of_no_group_are_zero() -> None:
    g, weights = torch.ones(2, 9), torch.ones(2, 2, dtype=torch.float64)
    for out in (None, torch.full((9,), math.nan)):
        combined = xfercore.combine_gradients(g, [2, 4, 7], weights, out=out)
        assert combined.tolist() == [0, 0, 2, 2, 2, 2, 2, 0, 0]
        assert out is None or combined is out
    lists = [[torch.ones(2), torch.ones(()), torch.ones(1)]] * 2
    parts = xfercore.combine_gradients(lists, [1, 2], weights[:1])
    assert [p.tolist() for p in parts] == [[0, 0], 2, [0]]


def test_lists_of_results_hold_none_where_nothing_is_known_or_wanted() -> None:
    lists = [[torch.ones(3), None, None], [None, None, torch.ones(2)]]
    weights = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    parts = xfercore.combine_gradients(lists, None, weights)
    assert parts[1] is None and parts[0].tolist() == [2.0] * 3 and parts[2].tolist() == [3.0] * 2
    out = [None, torch.full((7,), math.nan), torch.full((2,), math.nan)]
    given = xfercore.combine_gradients(lists, None, weights, out=out)
    assert given[0] is None and given[1] is out[1] and given[2] is out[2]
    assert torch.equal(out[1], torch.zeros(7)), "a parameter without any gradient"
    assert torch.equal(out[2], torch.full((2,), 3.0))


@pytest.mark.parametrize("form", ["arena", "list"])
def test_the_result_may_take_the_place_of_a_gradient(form: str) -> None:
    g, weights = normal(3, 20_000, dtype=torch.float32), normal(1, 3)
    wanted = xfercore.combine_gradients(g, None, weights)
    if form == "arena":
        xfercore.combine_gradients(g, None, weights, out=g[1])
        assert torch.equal(g[1], wanted)
        return
    lists = _lists(g.clone(), [(100, 100), (10_000,)])
    xfercore.combine_gradients(lists, None, weights, out=[lists[2][0], lists[0][1]])
    assert torch.equal(torch.cat([lists[2][0].flatten(), lists[0][1]]), wanted)


def test_straight_into_the_parameters_grad() -> None:
    model = torch.nn.Linear(5, 3)
    x = normal(7, 5, dtype=torch.float32)
    grads = [torch.autograd.grad(model(x).pow(power).mean(), tuple(model.parameters())) for power in (1, 2)]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    places = [p.grad.data_ptr() for p in model.parameters()]
    weights = torch.ones(1, 2, dtype=torch.float64)
    xfercore.combine_gradients(grads, None, weights, out=[p.grad for p in model.parameters()])
    for p, a, b, place in zip(model.parameters(), *grads, places, strict=True):
        assert p.grad.data_ptr() == place and torch.equal(p.grad, a + b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_of_zero_hides_no_nan(bad: float) -> None:
    g = torch.ones(2, 200)
    g[1, [3, 150]] = bad
    out = xfercore.combine_gradients(g, None, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert out.isnan().nonzero().flatten().tolist() == [3, 150]


def test_weights_beyond_float32_reach_gradients_that_they_fit() -> None:
    """A task whose gradient all but vanished: its weight is a ratio of norms, and the product is in range."""
    g = torch.tensor([[3.0, -1.0, 2.0], [-1e-42, 2e-42, 1e-42]])
    found = xfercore.pcgrad_coef(xfercore.task_gram(g), order=torch.arange(2))
    assert float(found.weights.max()) > 1e39
    exact = (found.weights[0, :, None] * g.double()).sum(0)
    assert_close(xfercore.combine_gradients(g, None, found.weights), exact, "combined", tolerance=1e-6)
    wide = g.repeat(1, 200)
    assert_close(
        xfercore.combine_gradients(wide, None, found.weights), exact.repeat(200), "wide", tolerance=1e-6
    )


# ---- offsets


@pytest.mark.parametrize("offsets", [[0, 3, 2, 5], [-1, 5], [0, 6], [3, 2]])
@pytest.mark.parametrize("form", ["arena", "list"])
def test_offsets_out_of_order_or_range_raise_with_place_and_value(offsets: list[int], form: str) -> None:
    arena = torch.ones(2, 5)
    grads: Any = arena if form == "arena" else [list(row) for row in arena]
    weights = torch.ones(len(offsets) - 1, 2, dtype=torch.float64)
    place = next(k for k, v in enumerate(offsets) if not (0 if k == 0 else offsets[k - 1]) <= v <= 5)
    for given in (offsets, torch.tensor(offsets)):
        text = rf"offsets\[{place}\] = {offsets[place]} is out of order or range.* 0 to 5"
        with pytest.raises(ValueError, match=rf"task_gram\(\): {text}"):
            xfercore.task_gram(grads, given)
        with pytest.raises(ValueError, match=rf"combine_gradients\(\): {text}"):
            xfercore.combine_gradients(grads, given, weights)


# ---- sizes


def test_rows_further_apart_than_31_bits() -> None:
    """Pages that are never touched cost no memory."""
    stride = 2**30 + 5
    wide = torch.empty(3 * stride, dtype=torch.bfloat16).view(3, stride)
    g = wide[:, :1000]
    g.copy_(normal(3, 1000))
    packed = g.contiguous()
    assert torch.equal(xfercore.task_gram(g), xfercore.task_gram(packed))
    weights = normal(1, 3)
    one, other = (xfercore.combine_gradients(x, None, weights) for x in (g, packed))
    assert torch.equal(one, other)


@pytest.mark.slow
def test_more_columns_than_31_bits() -> None:
    """Zeros that NumPy leaves to the kernel: one page of memory stands for all of them."""
    size = 2**31 + 5
    row = torch.from_numpy(np.zeros(size, dtype=np.float16))
    row[0], row[2**31 - 1], row[-1] = 1.0, 2.0, 3.0
    g = row.expand(2, size)  # rows of stride 0
    assert torch.equal(xfercore.task_gram(g), torch.full((1, 2, 2), 14.0, dtype=torch.float64))
    found = xfercore.task_gram(g, torch.tensor([0, 2**31, size]))
    assert found[:, 0, 1].tolist() == [5.0, 9.0]


@pytest.mark.long
def test_more_results_than_31_bits() -> None:
    """4 GiB are written."""
    size = 2**31 + 5
    row = torch.from_numpy(np.zeros(size, dtype=np.float16))
    row[0], row[2**31 - 1], row[-1] = 1.0, 2.0, 3.0
    out = xfercore.combine_gradients(
        row.expand(2, size), [0, 2**31, size], torch.tensor([[1.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    )
    for start, values in ((0, [2.0, 0.0]), (2**31 - 2, [0.0, 4.0, 0.0]), (size - 2, [0.0, 15.0])):
        assert out[start : start + len(values)].tolist() == values


# ---- from gradients to the result


def _whole(g: Tensor, ema: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, GradVacCoef]:
    gram = xfercore.task_gram(g, [0, g.shape[1] // 3, g.shape[1]])
    ema = torch.full_like(gram, 0.3) if ema is None else ema
    found = xfercore.gradvac_coef(gram, ema, **({"order": random_orders(len(g))} | kwargs))
    return xfercore.combine_gradients(g, [0, g.shape[1] // 3, g.shape[1]], found.weights), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_scaling_the_gradients_scales_the_result_to_the_bit(dtype: torch.dtype) -> None:
    g = conflicting(5, 90, dtype=dtype)
    out, found = _whole(g)
    assert found.moved.any()
    for power in (-90, -60, -33, -1, 1, 13, 60, 90):
        scaled, same = _whole(g * 2.0**power)
        assert torch.equal(scaled, out * 2.0**power), power
        assert all(same_values(a, b) for a, b in zip(found, same, strict=True)), power


@pytest.mark.parametrize("norm", [1e-7, 1e-12, 1e-20, 1e-30])
def test_tiny_gradients_are_still_operated_on(norm: float) -> None:
    g = normal(2, 64)
    g[1] = 0.5 * g[1] - g[0]
    g = (g / g.norm(dim=1, keepdim=True) * norm).float()
    found = xfercore.pcgrad_coef(xfercore.task_gram(g), order=torch.arange(2))
    rows = found.coefficients[0] @ g.double()
    assert found.moved.sum() == 2
    assert abs(cosine_of(rows[0], g[1].double())) < 1e-12 and abs(cosine_of(rows[1], g[0].double())) < 1e-12


def test_norms_above_the_range_of_float16() -> None:
    """Squares of norms above 256 overflow float16, and float32's do at 1e19."""
    for dtype, top in ((torch.float16, 6e4), (torch.float32, 1e30), (torch.bfloat16, 1e30)):
        g = (conflicting(4, 200) * 0.1 * top).clamp(-top, top).to(dtype)
        found = xfercore.pcgrad_coef(xfercore.task_gram(g), order=random_orders(4))
        wanted = vaccinate(
            g.double(), torch.zeros(4, 4, dtype=torch.float64), random_orders(4)[0], target=0.0
        )
        assert wanted.moved.any() and torch.equal(found.moved[0], wanted.moved)
        assert_close(found.coefficients[0] @ g.double(), wanted.rows, str(dtype), tolerance=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_one_nan_step_reaches_the_output_and_never_the_averages(bad: float, dtype: torch.dtype) -> None:
    g = conflicting(4, 60, dtype=dtype)
    _, before = _whole(g)
    spoilt = g.clone()
    spoilt[1, 50] = bad  # in the second group
    out, found = _whole(spoilt, before.ema)
    assert not out[50].isfinite() and out[:20].isfinite().all()
    assert found.ema.isfinite().all() and found.weights.isfinite().all()
    assert torch.equal(found.ema[1, 1], before.ema[1, 1]) and torch.equal(
        found.ema[1, :, 1], before.ema[1, :, 1]
    )
    again, _ = _whole(g, found.ema)
    assert again.isfinite().all()


@pytest.mark.usefixtures("threads")
def test_any_number_of_threads_gives_the_same_bits_from_gradients_to_result() -> None:
    g = conflicting(33, 40_000, dtype=torch.float32)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        out, found = _whole(g)
        results.append((out, *found))
    assert all(same_values(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["arena", "list"])
def test_no_copy_of_the_gradients_and_no_memory_of_their_size(form: str) -> None:
    """Below the dispatcher too: the profiler sees the tables and blocks of the passes alone."""
    g = normal(8, 200_000, dtype=torch.float32)
    grads: Any = g if form == "arena" else _lists(g, [(400, 250), (100_000,)])
    out: Any = g[0] if form == "arena" else list(grads[0])
    weights = torch.ones(1, 8, dtype=torch.float64)
    with _Calls() as calls:
        xfercore.task_gram(grads)
        xfercore.combine_gradients(grads, None, weights, out=out)
    ours = [name for name in calls.names if name.startswith("xfercore")]
    assert len(ours) == 2 and not any(
        "copy" in n or "clone" in n or "cat" in n or "contiguous" in n for n in calls.names
    )
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as prof:
        xfercore.task_gram(grads)
        xfercore.combine_gradients(grads, None, weights, out=out)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in prof.events())
    # 64 KiB of scratch a thread, the partial sums of each chunk, a few tables.
    assert 0 < allocated < 200_000 + 100_000 * torch.get_num_threads() < 4 * 200_000, f"{allocated} bytes"


def test_arguments_are_not_changed() -> None:
    g, weights = conflicting(3, 50, dtype=torch.float32), normal(1, 3)
    offsets = torch.tensor([0, 50])
    before = [t.clone() for t in (g, weights, offsets)]
    xfercore.task_gram(g, offsets)
    xfercore.combine_gradients(g, offsets, weights)
    assert all(torch.equal(a, b) for a, b in zip((g, weights, offsets), before, strict=True))
