"""``gated_mix``: softmax gate, gate NLL and the mix of experts, stacked or in a list.

Bytes at the floor: each input once and each output once, in forward and in backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import xfercore
from benchmarks.harness import Bench, Candidate, Case, Options, Work, bind, make_variants
from xfercore import reference

__all__ = ["cases"]

_PASSES = ("forward", "forward_backward")


def _einsum(logits: Tensor, experts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As people write it, without the reference's cast to fp32."""
    mixed = torch.einsum("nk,nkd->nd", torch.softmax(logits, dim=-1), experts)
    return mixed, cross_entropy(logits, targets, ignore_index=-1, reduction="none")


def _broadcast(logits: Tensor, experts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    mixed = (torch.softmax(logits, dim=-1).unsqueeze(-1) * experts).sum(1)
    return mixed, cross_entropy(logits, targets, ignore_index=-1, reduction="none")


def _stack_einsum(logits: Tensor, experts: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    return _einsum(logits, torch.stack(list(experts), dim=1), targets)


def _sum_loop(logits: Tensor, experts: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    alpha = torch.softmax(logits, dim=-1)
    mixed = alpha[:, :1] * experts[0]
    for k in range(1, len(experts)):
        mixed = mixed + alpha[:, k : k + 1] * experts[k]
    return mixed, cross_entropy(logits, targets, ignore_index=-1, reduction="none")


def _setup(case: Case) -> Bench:
    n, k, d = (int(case.shape[key]) for key in ("N", "K", "D"))
    device, dtype = case.options.device, case.options.dtype
    as_list = case.shape["input"] == "list"
    grad = case.passes == "forward_backward"

    logits = torch.randn(n, k, device=device, dtype=dtype, requires_grad=grad)
    shapes = [(n, d)] * k if as_list else [(n, k, d)]
    tensors = [torch.randn(s, device=device, dtype=dtype, requires_grad=grad) for s in shapes]
    experts = tensors if as_list else tensors[0]
    targets = torch.randint(-1, k, (n,), device=device)
    cotangents = [torch.randn(n, d, device=device, dtype=dtype), torch.rand(n, device=device)]
    leaves = [logits, *tensors]

    def ours(logits: Tensor, experts: Tensor | list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        return xfercore.gated_mix(logits, experts, targets=targets)

    def plain(logits: Tensor, experts: Tensor | list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        return reference.gated_mix(logits, experts, targets=targets)

    functions: dict[str, Callable[..., Any]] = {"reference": plain}
    functions |= {"stack_einsum": _stack_einsum, "sum_loop": _sum_loop} if as_list else {}
    functions |= {} if as_list else {"einsum": _einsum, "broadcast": _broadcast}
    baselines = {key: Candidate(f, (logits, experts, targets), leaves) for key, f in functions.items()}

    double = [t.detach().double().requires_grad_(grad) for t in leaves]
    exact = Candidate(plain, (double[0], double[1:] if as_list else double[1], targets), double)
    return Bench(
        make_variants(case, Candidate(ours, (logits, experts, targets), leaves), baselines, cotangents),
        oracle=bind(exact, case.passes, cotangents),
    )


def _work(n: int, k: int, d: int, passes: str, itemsize: int) -> Work:
    forward = n * (k + k * d + d) * itemsize + n * (8 + 4)  # int64 targets, fp32 NLL
    backward = n * (k + k * d + d) * itemsize + n * (8 + 4) + n * (k + k * d) * itemsize
    return Work(bytes=float(forward + (backward if passes == "forward_backward" else 0)))


def cases(options: Options) -> list[Case]:
    """Rows: stacked and list input, forward and forward with backward, gate targets given."""
    n = 512 if options.quick else 65536 if options.device == "cuda" else 32768
    k, d = 8, 128
    return [
        Case(
            op="gated_mix",
            passes=passes,
            shape={"N": n, "K": k, "D": d, "input": layout},
            options=options,
            setup=_setup,
            work=_work(n, k, d, passes, options.dtype.itemsize),
        )
        for layout in ("stacked", "list")
        for passes in _PASSES
    ]
