"""gated_mix's CUDA kernels, run thread by thread, against the reference in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from simt_harness import (
    DTYPES,
    MAX_POINTERS,
    Arena,
    GatedMixBackwardArgs,
    GatedMixExperts,
    GatedMixForwardArgs,
    SimtError,
    call,
)
from torch import Tensor

from xfercore import reference

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SHAPES = [(1, 1, 1), (37, 5, 24), (9, 1, 7), (70, 3, 1), (5, 40, 300), (13, 8, 256), (3, 70, 64)]
IGNORE = -1


@dataclass
class Problem:
    logits: Tensor
    experts: Tensor  # [N, K, D]
    targets: Tensor
    grad_mixed: Tensor
    grad_nll: Tensor


def make_problem(shape: tuple[int, int, int], dtype: torch.dtype) -> Problem:
    tokens, experts, dim = shape
    rng = torch.Generator().manual_seed(tokens * 1000 + experts)
    targets = torch.randint(-1, experts, (tokens,), generator=rng)
    return Problem(
        (2 * torch.randn(tokens, experts, generator=rng)).to(dtype),
        torch.randn(tokens, experts, dim, generator=rng).to(dtype),
        targets,
        torch.randn(tokens, dim, generator=rng).to(dtype),
        torch.randn(tokens, generator=rng),
    )


def experts_argument(
    arena: Arena, name: str, values: Tensor, stacked: bool, out: bool = False
) -> GatedMixExperts:
    experts, dim = values.shape[1:]
    argument = GatedMixExperts(stacked=stacked, expert_stride=dim)
    if stacked:
        argument.pointers[0] = (
            arena.output(name, values.shape, values.dtype) if out else arena.input(name, values)
        )
        argument.row_stride[0] = experts * dim
        return argument
    for k in range(experts):
        part = values[:, k].contiguous()
        label = f"{name}[{k}]"
        argument.pointers[k] = (
            arena.output(label, part.shape, part.dtype) if out else arena.input(label, part)
        )
        argument.row_stride[k] = dim
    return argument


def forward(
    problem: Problem, *, stacked: bool, targets: bool = True, seed: int = 0, layout: int = 0
) -> dict[str, Tensor]:
    tokens, experts, dim = problem.experts.shape
    dtype = problem.experts.dtype
    arena = Arena(layout)
    args = GatedMixForwardArgs(
        dtype=DTYPES[dtype],
        num_tokens=tokens,
        num_experts=experts,
        dim=dim,
        logits=arena.input("logits", problem.logits),
        experts=experts_argument(arena, "experts", problem.experts, stacked),
        targets=arena.input("targets", problem.targets if targets else None),
        ignore_index=IGNORE,
        mixed=arena.output("mixed", (tokens, dim), dtype),
        gate_nll=arena.output("gate_nll", (tokens,), torch.float32),
        status=arena.output("status", (1,), torch.int32),
    )
    arena.outputs["status"].zero_()
    call("gated_mix_forward", args, seed)
    return {name: value.clone() for name, value in arena.outputs.items()}


def backward(
    problem: Problem,
    *,
    stacked: bool,
    grad_nll: bool = True,
    need_experts: bool = True,
    seed: int = 0,
    layout: int = 0,
) -> dict[str, Tensor]:
    tokens, experts, dim = problem.experts.shape
    dtype = problem.experts.dtype
    arena = Arena(layout)
    args = GatedMixBackwardArgs(
        dtype=DTYPES[dtype],
        num_tokens=tokens,
        num_experts=experts,
        dim=dim,
        grad_mixed=arena.input("grad_mixed", problem.grad_mixed),
        grad_nll=arena.input("grad_nll", problem.grad_nll if grad_nll else None),
        logits=arena.input("logits", problem.logits),
        experts=experts_argument(arena, "experts", problem.experts, stacked),
        targets=arena.input("targets", problem.targets),
        ignore_index=IGNORE,
        grad_logits=arena.output("grad_logits", (tokens, experts), dtype),
        need_grad_experts=need_experts,
    )
    if need_experts:
        args.grad_experts = experts_argument(arena, "grad_experts", problem.experts, stacked, out=True)
    call("gated_mix_backward", args, seed)
    out = {name: value.clone() for name, value in arena.outputs.items()}
    if need_experts and not stacked:
        out["grad_experts"] = torch.stack([out.pop(f"grad_experts[{k}]") for k in range(experts)], dim=1)
    return out


def expected(problem: Problem, grad_nll: bool = True) -> dict[str, Tensor]:
    logits = problem.logits.double().requires_grad_()
    experts = problem.experts.double().requires_grad_()
    mixed, nll = reference.gated_mix(logits, experts, targets=problem.targets, ignore_index=IGNORE)
    loss = (mixed * problem.grad_mixed.double()).sum()
    if grad_nll:
        loss = loss + (nll * problem.grad_nll.double()).sum()
    loss.backward()
    return {
        "mixed": mixed.detach(),
        "gate_nll": nll.detach(),
        "grad_logits": logits.grad,
        "grad_experts": experts.grad,
    }


def assert_close(actual: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, wanted.abs().max().item() if wanted.numel() else 1.0)
    torch.testing.assert_close(actual.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("stacked", [False, True], ids=["list", "stacked"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward_match_the_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, stacked: bool
) -> None:
    if not stacked and shape[1] > MAX_POINTERS:
        stacked = True
    problem = make_problem(shape, dtype)
    wanted = expected(problem)
    for layout in (0, 1):
        out = forward(problem, stacked=stacked, layout=layout)
        out |= backward(problem, stacked=stacked, layout=layout)
        assert out.pop("status").item() == 0
        for name, value in out.items():
            assert_close(value, wanted[name], torch.float32 if name == "gate_nll" else dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_order_of_threads(dtype: torch.dtype) -> None:
    problem = make_problem((21, 6, 40), dtype)
    runs = [
        forward(problem, stacked=True, seed=seed) | backward(problem, stacked=True, seed=seed)
        for seed in range(3)
    ]
    for name, value in runs[0].items():
        assert all(torch.equal(value, other[name]) for other in runs[1:]), name


def test_without_targets_the_nll_is_zero() -> None:
    problem = make_problem((6, 4, 8), torch.float32)
    assert torch.equal(forward(problem, stacked=True, targets=False)["gate_nll"], torch.zeros(6))


def test_without_gradient_of_the_nll_targets_do_not_count() -> None:
    problem = make_problem((6, 4, 8), torch.float32)
    out = backward(problem, stacked=True, grad_nll=False, need_experts=False)
    assert set(out) == {"grad_logits"}
    assert_close(out["grad_logits"], expected(problem, grad_nll=False)["grad_logits"], torch.float32)


@pytest.mark.parametrize("wrong", [4, -2, 2**40])
def test_target_out_of_range_gives_nan_and_sets_the_flag(wrong: int) -> None:
    problem = make_problem((6, 4, 8), torch.float32)
    problem.targets[2] = wrong
    out = forward(problem, stacked=True) | backward(problem, stacked=True)
    bad = torch.arange(6) == 2
    assert out["status"].item() == 1
    assert torch.equal(out["gate_nll"].isnan(), bad)
    assert torch.equal(out["grad_logits"].isnan().all(1), bad)
    assert torch.equal(out["grad_logits"].isnan().any(1), bad)
    assert not out["mixed"].isnan().any() and not out["grad_experts"].isnan().any()


def test_nan_and_inf_propagate_within_their_row() -> None:
    problem = make_problem((5, 3, 8), torch.float32)
    problem.logits[1, 0] = float("nan")
    problem.experts[3, 1, 2] = float("inf")
    out = forward(problem, stacked=True)
    assert out["mixed"][1].isnan().all() and out["mixed"][3, 2].isinf()
    assert out["mixed"][[0, 2, 4]].isfinite().all()


def test_empty_input_launches_nothing() -> None:
    problem = make_problem((0, 3, 8), torch.float32)
    assert forward(problem, stacked=True)["mixed"].shape == (0, 8)


def test_more_experts_than_shared_memory_holds_is_an_error() -> None:
    with pytest.raises(SimtError, match=r"num_experts must be at most 40960 .* got 40961"):
        backward(make_problem((1, 40961, 1), torch.float32), stacked=True)
