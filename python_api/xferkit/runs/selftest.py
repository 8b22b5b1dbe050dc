"""A small call of every op, and of its gradients, against its plain-PyTorch definition: seconds, not minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import xfercore
from xfercore import reference
from xfercore.testing import Sample, assert_close, gradients

__all__ = ["SAMPLES", "TestResult", "self_test"]

Draw = Callable[..., Tensor]


def _mixture(draw: Draw) -> Sample:
    tokens, dim, experts, hidden, out = 67, 33, 5, 19, 13
    weights = (draw(experts, dim), draw(experts), draw(experts, hidden, dim), draw(experts, hidden))
    return Sample("moe", (draw(tokens, dim), *weights, draw(experts, out, hidden), draw(experts, out)))


def _gate(draw: Draw) -> Sample:
    targets = (torch.arange(67) % 5).to(draw(1).device)
    return Sample("gate", (draw(67, 5), draw(67, 5, 13)), {"targets": targets})


def _gram(draw: Draw) -> Tensor:
    grads = draw(3, 5, 67).detach().double()
    return grads @ grads.mT


def _task_gradients(draw: Draw, *others: Tensor) -> Sample:
    return Sample("gradients", (draw(5, 257).detach(), [0, 100, 100, 257], *others))


def _visits(draw: Draw) -> dict[str, Tensor]:
    return {"seed_step": torch.tensor([1, 2], device=draw(1).device)}


def _gradnorm(draw: Draw) -> Sample:
    losses, first, weights = (draw(5).detach().double().abs() + 0.1 for _ in range(3))
    return Sample("losses", (_gram(draw), losses, first, weights))


def _ranking(draw: Draw) -> Sample:
    options = {"hard_neg": draw(13, 2, 19), "scale": 0.5, "margin": 0.25, "symmetric": True}
    return Sample("ranking", (draw(13, 19), draw(17, 19)), options)


#: One call of each op, by its name.
SAMPLES: dict[str, Callable[[Draw], Sample]] = {
    "agem_coef": lambda draw: Sample("memory", (_gram(draw),)),
    "combine_gradients": lambda draw: _task_gradients(draw, draw(3, 5).detach().double()),
    "gated_mix": _gate,
    "gradnorm_stats": _gradnorm,
    "gradvac_coef": lambda draw: Sample("zeros", (_gram(draw), torch.zeros_like(_gram(draw))), _visits(draw)),
    "hard_concrete": lambda draw: Sample(
        "heads",
        (draw(5), draw(5, 67)),
        {"group_dims": (1,), "seed_offset": torch.tensor([1, 2], device=draw(1).device)},
    ),
    "hard_concrete_eval": lambda draw: Sample("gates", (draw(67), draw(67))),
    "inbatch_softmax_loss": _ranking,
    # One step: after it two slopes are equal up to rounding, and the way to the optimum is not defined.
    "mgda_coef": lambda draw: Sample("groups", (_gram(draw),), {"max_iterations": 1}),
    "pcgrad_coef": lambda draw: Sample("groups", (_gram(draw),), _visits(draw)),
    "task_gram": _task_gradients,
    "topk_similarity": lambda draw: Sample(
        "nearest", (draw(13, 19).detach(), draw(67, 19).detach(), 5), {"csls": 3}
    ),
    "grad_reverse": lambda draw: Sample("reverse", (draw(67, 13), 0.3)),
    "linear_grad_reverse": lambda draw: Sample("reverse", (draw(67, 13), draw(5, 13), draw(5), 0.3)),
    "moe_mlp_mix": _mixture,
}


@dataclass(frozen=True)
class TestResult:
    """Outcome of one op on one device.

    Attributes:
        op: its name.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: wall time of the call, its gradients and the comparison.
        problem: what was wrong, in one sentence; None: it agrees with its definition.
    """

    op: str
    device: str
    seconds: float
    problem: str | None


def self_test(op: str, device: str) -> TestResult:
    """Run `op` and its gradients in float32 on `device` and compare with its definition in float64."""
    start = time.perf_counter()
    problem = None
    try:
        _compare(op, torch.device(device))
    except AssertionError as error:
        problem = f"{op} on {device} does not agree with its definition: {_first_line(error)}"
    except Exception as error:
        problem = f"{op} on {device} cannot be called: {type(error).__name__}: {_first_line(error)}"
    return TestResult(op, device, time.perf_counter() - start, problem)


def _compare(op: str, device: torch.device) -> None:
    if op not in SAMPLES:
        raise NotImplementedError("no call of it is known to the self-test")
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator).bfloat16()
        return values.to(device, torch.float32).requires_grad_()

    sample = SAMPLES[op](draw)
    exact = sample.map(lambda t: t.double() if t.is_floating_point() else t)
    if sample.variables():
        outputs, _, grads = gradients(getattr(xfercore, op), sample)
        outputs_, _, grads_ = gradients(getattr(reference, op), exact)
    else:  # an op on gradients, which has none itself
        outputs, grads = sample.call(getattr(xfercore, op)), []
        outputs_, grads_ = sample.call(getattr(reference, op)), []
    for what, actual, expected in (("output", outputs, outputs_), ("gradient", grads, grads_)):
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_close(one, other, f"{what} {i}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else "no message"
