"""grad_reverse's CUDA kernel, run thread by thread: out = -(scale * lam) * grad."""

from __future__ import annotations

import pytest
import torch
from simt_harness import DTYPES, Arena, GradReverseBackwardArgs, call
from torch import Tensor

SHAPES = [
    *((1, n) for n in (1, 2, 3, 5, 7, 11, 15, 23, 31)),
    (1, 4099),
    (7, 16),
    (300, 3),
    (4, 2000),
    (70, 8),
]


def run(
    grad: Tensor,
    lam: Tensor | None,
    *,
    scale: float = 1.0,
    per_row: bool = False,
    seed: int = 0,
    layout: int = 0,
) -> Tensor:
    arena = Arena(layout)
    args = GradReverseBackwardArgs(
        dtype=DTYPES[grad.dtype],
        num_rows=grad.shape[0],
        row_size=grad.shape[1],
        grad=arena.input("grad", grad),
        lam=arena.input("lam", lam),
        lam_per_row=per_row,
        scale=scale,
        out=arena.output("out", grad.shape, grad.dtype),
    )
    call("grad_reverse_backward", args, seed)
    return arena.outputs["out"].clone()


@pytest.mark.parametrize("layout", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scales_by_minus_lam(shape: tuple[int, int], dtype: torch.dtype, layout: int) -> None:
    rng = torch.Generator().manual_seed(shape[1])
    grad = torch.randn(shape, generator=rng).to(dtype)
    lam = torch.rand(shape[0], generator=rng)
    rounded = (-lam[:, None] * grad.float()).to(dtype)
    assert torch.equal(run(grad, lam, per_row=True, layout=layout), rounded)
    assert torch.equal(
        run(grad, lam[:1], scale=0.5, layout=layout), (-(0.5 * lam[0]) * grad.float()).to(dtype)
    )
    assert torch.equal(run(grad, None, scale=0.25, layout=layout), (-0.25 * grad.float()).to(dtype))


def test_zero_lam_gives_plus_zero() -> None:
    out = run(torch.randn(5, 7), torch.zeros(5), per_row=True)
    assert torch.equal(out, torch.zeros(5, 7)) and not out.signbit().any()


def test_nan_and_inf_propagate() -> None:
    grad = torch.tensor([[float("nan"), float("inf"), -1.0]])
    out = run(grad, None)
    assert out[0, 0].isnan() and out[0, 1] == -float("inf") and out[0, 2] == 1.0


def test_bits_do_not_depend_on_the_order_of_threads() -> None:
    grad = torch.randn(33, 20)
    runs = [
        run(grad, torch.rand(33, generator=torch.Generator().manual_seed(1)), per_row=True, seed=s)
        for s in range(3)
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_empty_input_launches_nothing() -> None:
    assert run(torch.empty(0, 4), None).shape == (0, 4)
