"""``hard_concrete``: masked parameters and their L0 penalty, a gate an element, and a thousand gates of groups.

Bytes at the floor: each input once and each output once. In backward log alpha, theta and the gradient are read, and
two gradients written: with forward 32 B an element in float32. The noise is neither read nor written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import xfercore
from benchmarks.harness import Bench, Candidate, Case, Options, Work, bind, make_variants
from xfercore import reference

__all__ = ["cases"]

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1
_GROUPS, _GROUP_SIZE = 1000, 1024


def _as_published(log_alpha: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """As the public layers write it: noise from torch's generator, one elementwise op after another."""
    u = torch.empty_like(log_alpha).uniform_(1e-6, 1 - 1e-6)
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + log_alpha) / _BETA)
    z = torch.clamp(s * (_ZETA - _GAMMA) + _GAMMA, 0, 1)
    penalty = torch.sigmoid(log_alpha - _BETA * math.log(-_GAMMA / _ZETA))
    if theta.dim() > log_alpha.dim():
        return theta * z.unsqueeze(-1), penalty.sum() * theta.shape[-1]
    return theta * z, penalty.sum()


def _loop(log_alpha: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """A mask module for each group, as they are attached one by one."""
    found = [_as_published(la, row) for la, row in zip(log_alpha.unbind(), theta.unbind(), strict=True)]
    return torch.stack([out for out, _ in found]), torch.stack([p for _, p in found]).sum() * theta.shape[-1]


def _setup(case: Case) -> Bench:
    device, dtype = case.options.device, case.options.dtype
    grad = case.passes == "forward_backward"
    compute = torch.promote_types(dtype, torch.float32)
    grouped = "G" in case.shape
    shape = (int(case.shape["G"]), _GROUP_SIZE) if grouped else (int(case.shape["N"]),)
    log_alpha = torch.randn(shape[0], device=device, dtype=compute, requires_grad=grad)
    theta = torch.randn(shape, device=device, dtype=dtype, requires_grad=grad)
    seed_offset = torch.tensor([1, 2], device=device)
    options: dict[str, Any] = {"seed_offset": seed_offset, "group_dims": (1,) if grouped else None}
    cotangents = [
        torch.randn(shape, device=device, dtype=dtype),
        torch.ones((), device=device, dtype=compute),
    ]
    leaves = [log_alpha, theta]

    def ours(log_alpha: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return xfercore.hard_concrete(log_alpha, theta, **options)

    def plain(log_alpha: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return reference.hard_concrete(log_alpha, theta, **options)

    functions: dict[str, tuple[Callable[..., Any], bool]] = {"published": (_as_published, False)}
    if int(case.shape.get("N", 0)) <= 10_000_000:  # its counters in int64 take gigabytes beyond
        functions["reference"] = (plain, True)
    if grouped:
        functions["mask_loop"] = (_loop, False)
    baselines = {name: Candidate(f, leaves, leaves, same) for name, (f, same) in functions.items()}
    if grouped and case.options.compile:  # a graph of a thousand masks takes minutes to compile
        loop = {"mask_loop": baselines.pop("mask_loop")}
        variants = make_variants(case, Candidate(ours, leaves, leaves), baselines, cotangents)
        variants += make_variants(_eager(case), Candidate(ours, leaves, leaves), loop, cotangents)[1:]
    else:
        variants = make_variants(case, Candidate(ours, leaves, leaves), baselines, cotangents)
    if int(case.shape.get("N", 0)) > 10_000_000:
        return Bench(variants)
    double = [t.detach().double().requires_grad_(grad) for t in leaves]
    return Bench(variants, oracle=bind(Candidate(plain, double, double), case.passes, cotangents))


def _eager(case: Case) -> Case:
    from dataclasses import replace

    return replace(case, options=replace(case.options, compile=False))


def cases(options: Options) -> list[Case]:
    """Rows: 1M, 10M and 110M gates, one an element, and a thousand gates of 1,024 elements each."""
    sizes = [4096] if options.quick else [1_000_000, 10_000_000, 110_000_000]
    groups = 16 if options.quick else _GROUPS
    item = options.dtype.itemsize
    compute = 8 if options.dtype == torch.float64 else 4
    rows: list[Case] = []
    for passes in ("forward", "forward_backward"):
        for n in sizes:
            forward = n * (compute + 2 * item)
            backward = n * (compute + 2 * item) + n * (compute + item)
            total = forward + (backward if passes == "forward_backward" else 0)
            rows.append(_case(options, passes, {"N": n}, float(total)))
        elements = groups * _GROUP_SIZE
        total = elements * (2 * item + (3 * item if passes == "forward_backward" else 0))
        rows.append(_case(options, passes, {"G": groups}, float(total)))
    return rows


def _case(options: Options, passes: str, shape: dict[str, int], total: float) -> Case:
    work = Work(bytes=total)
    return Case("hard_concrete", passes, dict(shape), options, _setup, work, seconds=240.0)
