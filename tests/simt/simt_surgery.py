"""Task gradients in guarded buffers: what the tests of gradient_surgery's kernels share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from simt_harness import DTYPES, Arena, CombineGradientsArgs, TaskGradientsView, call
from torch import Tensor

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
Lists = list[list[Tensor | None]]


def gradients(tasks: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(tasks * 10007 + columns)
    return torch.randn(tasks, columns, generator=rng).to(dtype)


def lists(
    tasks: int, sizes: Sequence[int], dtype: torch.dtype = torch.float32, missing: float = 0.3
) -> Lists:
    """Gradients by task and parameter; a part of them is None."""
    rng = torch.Generator().manual_seed(tasks * 101 + len(sizes))
    gone = torch.rand(tasks, len(sizes), generator=rng) < missing
    whole = gradients(tasks, sum(sizes), dtype).split(list(sizes), dim=1)
    return [[None if gone[t, n] else whole[n][t].clone() for n in range(len(sizes))] for t in range(tasks)]


def arena_view(
    arena: Arena, grads: Tensor, offsets: Sequence[int], stride: int | None = None
) -> TaskGradientsView:
    tasks, columns = grads.shape
    stride = columns if stride is None else stride
    padded = torch.full((tasks, stride), float("nan"), dtype=grads.dtype)
    padded[:, :columns] = grads
    flat = padded.reshape(-1)[: max((tasks - 1) * stride + columns, 0)]
    return TaskGradientsView(
        dtype=DTYPES[grads.dtype],
        num_tasks=tasks,
        num_columns=columns,
        num_segments=len(offsets) - 1,
        offsets=arena.input("offsets", torch.tensor(offsets)),
        base=arena.input("grads", flat),
        row_stride=stride,
    )


def list_view(arena: Arena, grads: Lists, sizes: Sequence[int], dtype: torch.dtype) -> TaskGradientsView:
    pointers = [
        [arena.input(f"grads[{t}][{n}]", grads[t][n]) or 0 for t in range(len(grads))]
        for n in range(len(sizes))
    ]
    columns = torch.tensor([0, *sizes]).cumsum(0)
    return TaskGradientsView(
        dtype=DTYPES[dtype],
        num_tasks=len(grads),
        num_columns=int(columns[-1]),
        num_segments=len(sizes),
        offsets=arena.input("offsets", columns),
        pointers=arena.input("pointers", torch.tensor(pointers).reshape(len(sizes), len(grads))),
    )


def cut(columns: int, pieces: int) -> list[int]:
    """Offsets of uneven pieces, empty ones among them."""
    rng = torch.Generator().manual_seed(columns + pieces)
    inner = torch.randint(0, columns + 1, (max(pieces - 1, 0),), generator=rng).sort().values.tolist()
    return [0, *inner, columns]


def combine(
    arena: Arena,
    view: TaskGradientsView,
    weights: Tensor,
    *,
    groups: Sequence[int] | None = None,
    out: int | None = None,
    seed: int = 0,
) -> Tensor:
    """The arena form's result; the list form's outputs are in ``arena.outputs``."""
    dtype = {number: dtype for dtype, number in DTYPES.items()}[view.dtype]
    args = CombineGradientsArgs(
        grads=view,
        num_groups=len(weights),
        group_offsets=None if groups is None else arena.input("group_offsets", torch.tensor(groups)),
        weights=arena.input("weights", weights),
    )
    if view.pointers:
        args.out_pointers = out
    else:
        args.out = out or arena.output("out", (view.num_columns,), dtype)
    call("combine_gradients", args, seed)
    return arena.outputs["out"].clone() if "out" in arena.outputs else torch.empty(0)


def some_weights(groups: int, tasks: int) -> Tensor:
    rng = torch.Generator().manual_seed(groups * 31 + tasks)
    return torch.randn(groups, tasks, generator=rng, dtype=torch.float64)


def assert_combined(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, wanted.abs().max().item() if wanted.numel() else 1.0)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)
