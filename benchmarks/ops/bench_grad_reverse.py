"""``grad_reverse`` and ``linear_grad_reverse`` against a Function as libraries write it and the references.

Alone the reversal moves the gradient once in and once out and nothing in forward; folded into the
discriminator's first linear layer it costs nothing beyond that layer's three matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import xfercore
from benchmarks.harness import Bench, Candidate, Case, Options, Work, bind, make_variants
from xfercore import reference

__all__ = ["cases", "linear_cases"]


class _CopyingReversal(torch.autograd.Function):
    """What common adaptation libraries do: a copy in forward, two passes in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lam: float | Tensor) -> Tensor:
        ctx.lam = lam
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].neg() * ctx.lam, None


def _function(x: Tensor, lam: float | Tensor) -> Tensor:
    return _CopyingReversal.apply(x, lam)


def _linear_function(x: Tensor, weight: Tensor, bias: Tensor, lam: float | Tensor) -> Tensor:
    return linear(_function(x, lam), weight, bias)


def _lam(case: Case) -> float | Tensor:
    # A tensor is what a schedule gives: no synchronisation and no recompilation from step to step.
    return torch.tensor(0.3, device=case.options.device) if case.shape["lam"] == "tensor_lam" else 0.3


def _setup(case: Case) -> Bench:
    n, d = int(case.shape["N"]), int(case.shape["D"])
    device, dtype = case.options.device, case.options.dtype
    x = torch.randn(n, d, device=device, dtype=dtype, requires_grad=True)
    cotangents = [torch.randn(n, d, device=device, dtype=dtype)]
    lam = _lam(case)
    functions = {"reference": reference.grad_reverse, "autograd_function": _function}
    double = x.detach().double().requires_grad_()
    return Bench(
        make_variants(
            case,
            Candidate(xfercore.grad_reverse, (x, lam), [x]),
            {name: Candidate(function, (x, lam), [x]) for name, function in functions.items()},
            cotangents,
        ),
        oracle=bind(Candidate(reference.grad_reverse, (double, lam), [double]), case.passes, cotangents),
    )


def _setup_linear(case: Case) -> Bench:
    n, d, out = (int(case.shape[key]) for key in ("N", "d", "D"))
    device, dtype = case.options.device, case.options.dtype
    x = torch.randn(n, d, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(out, d, device=device, dtype=dtype) / d**0.5).requires_grad_()
    bias = torch.randn(out, device=device, dtype=dtype, requires_grad=True)
    cotangents = [torch.randn(n, out, device=device, dtype=dtype)]
    leaves, lam = [x, weight, bias], _lam(case)
    functions = {"reference": reference.linear_grad_reverse, "autograd_function": _linear_function}
    double = [t.detach().double().requires_grad_() for t in leaves]
    exact = Candidate(reference.linear_grad_reverse, (*double, lam), double)
    return Bench(
        make_variants(
            case,
            Candidate(xfercore.linear_grad_reverse, (*leaves, lam), leaves),
            {name: Candidate(function, (*leaves, lam), leaves) for name, function in functions.items()},
            cotangents,
        ),
        oracle=bind(exact, case.passes, cotangents),
    )


def cases(options: Options) -> list[Case]:
    """Rows of ``grad_reverse``: a tensor larger than caches, and a training batch where calls dominate."""
    large = (512, 64) if options.quick else (32768, 1024)
    rows = [(large, "float_lam"), (large, "tensor_lam"), ((208, 64), "float_lam"), ((208, 64), "tensor_lam")]
    return [
        Case(
            op="grad_reverse",
            passes="forward_backward",
            shape={"N": n, "D": d, "lam": lam},
            options=options,
            setup=_setup,
            work=Work(bytes=2.0 * n * d * options.dtype.itemsize),
        )
        for (n, d), lam in rows
    ]


def _linear_work(n: int, d: int, out: int, itemsize: int) -> Work:
    weights = d * out + out
    forward = n * d + weights + n * out
    backward = n * out + n * d + d * out + n * d + weights
    return Work(flops=6.0 * n * d * out, bytes=float((forward + backward) * itemsize), matmul=(n, d, out))


def linear_cases(options: Options) -> list[Case]:
    """Rows of ``linear_grad_reverse``: a large batch and a small one."""
    shapes = [(512, 64, 64), (208, 64, 128)] if options.quick else [(32768, 128, 128), (208, 64, 128)]
    return [
        Case(
            op="linear_grad_reverse",
            passes="forward_backward",
            shape={"N": n, "d": d, "D": out, "lam": "tensor_lam"},
            options=options,
            setup=_setup_linear,
            work=_linear_work(n, d, out, options.dtype.itemsize),
        )
        for n, d, out in shapes
    ]
