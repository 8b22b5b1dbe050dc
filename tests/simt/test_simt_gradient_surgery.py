"""task_gram's CUDA kernels, run thread by thread, against the reference in fp64."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from simt_harness import (
    Arena,
    TaskGradientsView,
    TaskGramArgs,
    call,
    library,
)
from simt_surgery import (
    TOLERANCE,
    Lists,
    arena_view,
    assert_combined,
    combine,
    cut,
    gradients,
    list_view,
    lists,
)
from torch import Tensor

from xfercore.reference import gradient_surgery as reference

UNIT = 64  # columns of a chunk in most tests
TASKS = [1, 2, 3, 7, 8, 9, 13, 17, 20, 25, 30, 33, 65]


@pytest.fixture(autouse=True)
def _small_chunks() -> Iterator[None]:
    chunk_unit(UNIT)
    yield
    chunk_unit(0)


def chunk_unit(columns: int) -> None:
    library().task_gram_chunk_unit(ctypes.c_int64(columns))


def run_gram(
    arena: Arena,
    view: TaskGradientsView,
    groups: Sequence[int] | None = None,
    seed: int = 0,
    status: bool = True,
) -> tuple[Tensor, int]:
    num_groups = view.num_segments if groups is None else len(groups) - 1
    args = TaskGramArgs(
        grads=view,
        num_groups=num_groups,
        group_offsets=None if groups is None else arena.input("group_offsets", torch.tensor(groups)),
        gram=arena.output("gram", (num_groups, view.num_tasks, view.num_tasks), torch.float64),
    )
    flag = torch.zeros(1, dtype=torch.int32)
    if status:
        args.status = arena.output("status", (1,), torch.int32)
        arena.outputs["status"].zero_()
        flag = arena.outputs["status"]
    measure = library().task_gram_workspace_bytes
    measure.restype = ctypes.c_int64
    args.workspace = arena.output("workspace", (measure(ctypes.byref(args)) // 8,), torch.float64)
    call("task_gram", args, seed)
    return arena.outputs["gram"].clone(), int(flag.item())


def gram(
    grads: Tensor, offsets: Sequence[int], *, seed: int = 0, layout: int = 0, stride: int | None = None
) -> Tensor:
    arena = Arena(layout)
    found, status = run_gram(arena, arena_view(arena, grads, offsets, stride), seed=seed)
    assert status == 0
    return found


def gram_of_lists(
    grads: Lists, sizes: Sequence[int], groups: Sequence[int], dtype: torch.dtype, layout: int = 0
) -> Tensor:
    arena = Arena(layout)
    found, status = run_gram(arena, list_view(arena, grads, sizes, dtype), groups)
    assert status == 0
    return found


def assert_gram(found: Tensor, wanted: Tensor) -> None:
    assert torch.equal(found, found.transpose(1, 2))
    scale = wanted.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)[:, None, None]
    torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("tasks", "columns"),
    [(tasks, columns) for tasks in TASKS for columns in (0, 1, 3, 17, 260)]
    + [(3, 1031), (8, 1031), (25, 1031)],
)
def test_gram_matches_the_reference(tasks: int, columns: int) -> None:
    grads = gradients(tasks, columns)
    for offsets, layout in ((cut(columns, 1), 0), (cut(columns, 4), 1)):
        assert_gram(gram(grads, offsets, layout=layout), reference.task_gram(grads, offsets))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tasks", [2, 8, 9, 25, 33])
def test_gram_of_every_dtype_and_alignment(dtype: torch.dtype, tasks: int) -> None:
    grads = gradients(tasks, 211, dtype)
    offsets = [0, 5, 130, 211]
    for stride, layout in ((216, 1), (216, 2), (213, 0)):
        found = gram(grads, offsets, stride=stride, layout=layout)
        assert_gram(found, reference.task_gram(grads, offsets))


def test_chunks_of_the_real_size() -> None:
    chunk_unit(0)
    grads = gradients(5, 3 * 1024 + 7)
    for offsets in ([0, 3079], [0, 1, 1024, 1030, 3072, 3079]):
        assert_gram(gram(grads, offsets, layout=1), reference.task_gram(grads, offsets))


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 0, 0, 300, 300],  # empty groups at both ends
        [0, UNIT, UNIT, 2 * UNIT, 3 * UNIT, 300],  # borders and an empty group where chunks meet
        [0, *range(1, 60), 300],  # many groups in a chunk
        [70, 71, 200],  # columns outside all groups
        [300, 300],
        [0],
    ],
    ids=["empty", "borders", "many", "outside", "nothing", "no group"],
)
def test_groups_and_chunks_meet_anywhere(offsets: list[int]) -> None:
    for tasks in (3, 33):
        grads = gradients(tasks, 300)
        assert_gram(gram(grads, offsets), reference.task_gram(grads, offsets))


@pytest.mark.parametrize("tasks", [1, 4, 9, 25, 35])
def test_gram_of_lists_with_missing_gradients(tasks: int) -> None:
    sizes = [1, 0, 130, 64, 7, 90]
    for groups in ([0, 1, 2, 3, 4, 5, 6], [0, 0, 3, 6], [0, 6], [1, 2, 5]):
        grads = lists(tasks, sizes)
        grads[0] = [torch.randn(size) for size in sizes]  # the reference wants one gradient
        wanted = reference.task_gram(grads, groups)
        for layout in (0, 1):
            assert_gram(gram_of_lists(grads, sizes, groups, torch.float32, layout), wanted)


def test_missing_gradients_are_zeros_to_what_is_not_finite() -> None:
    grads = lists(9, [40, 40], missing=0.0)
    grads[8][0] = None
    grads[2][0][3], grads[3][1][7] = float("inf"), float("nan")
    found = gram_of_lists(grads, [40, 40], [0, 1, 2], torch.float32)
    wanted = reference.task_gram(grads, [0, 1, 2])
    assert wanted[0, 2, 2].isinf() and wanted[0, 2, 8].isnan() and wanted[1, 3].isnan().all()
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("tasks", [3, 25, 33])
def test_nan_stays_in_its_group_row_and_column(tasks: int) -> None:
    grads = gradients(tasks, 200)
    grads[tasks - 1, 150] = float("nan")
    found = gram(grads, [0, 100, 200])
    wanted = torch.zeros(2, tasks, tasks, dtype=torch.bool)
    wanted[1, tasks - 1] = wanted[1, :, tasks - 1] = True
    assert torch.equal(found.isnan(), wanted)


@pytest.mark.parametrize("tasks", [2, 9, 33])
def test_gram_bits_do_not_depend_on_the_order_of_threads(tasks: int) -> None:
    grads = gradients(tasks, 400)
    runs = [gram(grads, [0, 3, 220, 400], seed=seed) for seed in range(3)]
    assert all(torch.equal(runs[0], other) for other in runs[1:])


@pytest.mark.parametrize(
    "offsets", [[0, 200, 100, 300], [-1, 100, 300], [0, 100, 301], [0, 2**62, -(2**62), 300]]
)
def test_offsets_out_of_order_or_range_give_nan_and_set_the_flag(offsets: list[int]) -> None:
    for tasks in (3, 33):
        arena = Arena()
        found, status = run_gram(arena, arena_view(arena, gradients(tasks, 300), offsets))
        assert status == 2 and found.isnan().all()
        arena = Arena()
        found, _ = run_gram(arena, arena_view(arena, gradients(tasks, 300), offsets), status=False)
        assert found.isnan().all()


@pytest.mark.parametrize("groups", [[0, 2, 1, 4], [0, 5], [-1, 2]])
def test_groups_out_of_order_or_range_are_nan(groups: list[int]) -> None:
    arena = Arena()
    sizes = [10, 80, 3, 70]
    found, status = run_gram(arena, list_view(arena, lists(3, sizes), sizes, torch.float32), groups)
    ordered = [0 <= a <= b <= len(sizes) for a, b in pairwise(groups)]
    assert status == 2
    assert found.isnan().all(2).all(1).tolist() == [not good for good in ordered]


def test_nearly_opposite_gradients_keep_their_digits() -> None:
    grads = gradients(2, 999)
    noise = torch.randn(999, generator=torch.Generator().manual_seed(1))
    grads[1] = -grads[0] + 1e-6 * noise * grads[0].abs().clamp(min=0.1)
    g = gram(grads, [0, 999])[0]
    total = grads.double().sum(0)
    # |g_0 + g_1|^2 out of the Gram alone: 12 of its digits cancel.
    assert abs(g.sum() / (total @ total) - 1).item() < 1e-3
    scaled = gram(grads * 2.0**-60, [0, 999])[0]
    assert torch.equal(scaled * 2.0**120, g)


def test_columns_beyond_32_bits() -> None:
    chunk_unit(0)
    sizes = [3_000_000_000, 50]
    arena = Arena()
    tail = [torch.randn(50) for _ in range(2)]
    pointers = torch.tensor([[0, 0], [arena.input("a", tail[0]), arena.input("b", tail[1])]])
    view = TaskGradientsView(num_tasks=2, num_columns=sum(sizes), num_segments=2)
    view.offsets = arena.input("offsets", torch.tensor([0, sizes[0], sum(sizes)]))
    view.pointers = arena.input("pointers", pointers)
    found, _ = run_gram(arena, view)
    assert not found[0].any()
    assert_gram(found[1:], reference.task_gram(torch.stack(tail), [0, 50]))


def test_rows_beyond_32_bits() -> None:
    stride, columns = 2**31 + 8, 90
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, 2 * (stride + columns), flags=flags)  # pages that nobody touches cost nothing
    rows = [
        torch.frombuffer(memory, dtype=torch.bfloat16, count=columns, offset=2 * t * stride) for t in range(2)
    ]
    grads = gradients(2, columns, torch.bfloat16)
    for row, values in zip(rows, grads, strict=True):
        row.copy_(values)
    arena = Arena()
    view = arena_view(arena, grads, [0, columns])
    view.base, view.row_stride = rows[0].data_ptr(), stride
    assert_gram(run_gram(arena, view)[0], reference.task_gram(grads, [0, columns]))
    weights = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    assert_combined(
        combine(arena, view, weights), reference.combine_gradients(grads, None, weights), grads.dtype
    )
