"""Philox4x32-10: known answers, and the same bits in the reference and in the kernels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import xfercore
from xfercore.reference.philox import dropout_mask, philox4x32

# Random123's own known-answer file (kat_vectors, philox 4x32 with 10 rounds): counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[Tensor]:
    return [torch.tensor([int(word, 16)]) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    got = " ".join(f"{int(word):08x}" for word in philox4x32(_words(counter), _words(key)))
    assert got == expected


def kernel_masks(tokens: int, experts: int, units: int, stream: int, p: float, seed_offset: Tensor) -> Tensor:
    """What the kernel drops, ``bool[tokens * experts, units]``: networks that let one layer's masks through.

    The input layer's masks show at x = 1 behind an identity first layer whose hidden dropout is undone by asking
    each unit twice, the hidden layer's behind biases of 1.
    """
    eye = torch.eye(units, dtype=torch.float64).repeat(experts, 1, 1)
    ones = torch.ones(experts, units, dtype=torch.float64)
    rows = []
    for expert in range(experts):
        gate_bias = torch.full((experts,), -math.inf, dtype=torch.float64)
        gate_bias[expert] = 0.0  # this expert alone is heard
        if stream == 0:
            # Each input spreads to 40 hidden units of its own: with hidden dropout of p, one of them lives.
            copies = 40
            w1 = eye.repeat_interleave(copies, dim=1)
            b1 = torch.zeros(experts, units * copies, dtype=torch.float64)
            w2 = w1.transpose(1, 2).contiguous()
        else:
            w1, b1, w2 = torch.zeros_like(eye), ones, eye
        out, _ = xfercore.moe_mlp_mix(
            torch.ones(tokens, units, dtype=torch.float64),
            torch.zeros(experts, units, dtype=torch.float64),
            gate_bias,
            w1,
            b1,
            w2,
            torch.zeros(experts, units, dtype=torch.float64),
            act1="none",
            act2="none",
            dropout_p=p,
            seed_offset=seed_offset,
        )
        rows.append(out > 0)
    return torch.stack(rows, dim=1).view(tokens * experts, units)


@pytest.mark.parametrize(
    "seed_offset", [(0, 0), (1, 2), (-1, -1), (2**62 + 77, 2**40 + 3), (-(2**63), 2**63 - 1)]
)
@pytest.mark.parametrize("stream", [0, 1], ids=["input", "hidden"])
@pytest.mark.parametrize("units", [1, 4, 7])
def test_kernel_and_reference_drop_the_same_units(
    seed_offset: tuple[int, int], stream: int, units: int
) -> None:
    state = torch.tensor(seed_offset)
    tokens, experts = 23, 3
    got = kernel_masks(tokens, experts, units, stream, 0.5, state)
    assert torch.equal(got, dropout_mask(state, tokens * experts, units, stream, 0.5))


def test_masks_are_independent_of_each_other() -> None:
    """Frequencies and correlations over experts, layers, tokens, units, seeds and offsets, within 5 sigma."""
    tokens, experts, units, p = 200, 4, 25, 0.5
    masks = []
    for seed, offset in [(1, 0), (1, 1), (2, 0)]:
        state = torch.tensor([seed, offset])
        for stream in (0, 1):
            mask = dropout_mask(state, tokens * experts, units, stream, p).view(tokens, experts, units)
            masks += list(mask.unbind(1))
    values = torch.stack(masks).flatten(1).double() * 2 - 1  # [24 masks, tokens * units]
    count = values.shape[1]
    means = values.mean(1)
    assert (means.abs() < 5 / math.sqrt(count)).all()
    correlations = (values @ values.t()) / count - torch.eye(len(values))
    assert (correlations.abs() < 5 / math.sqrt(count)).all()
    first = masks[0].double() * 2 - 1
    for axis in (0, 1):
        neighbours = (
            first.narrow(axis, 1, first.shape[axis] - 1) * first.narrow(axis, 0, first.shape[axis] - 1)
        ).mean()
        assert abs(float(neighbours)) < 5 / math.sqrt(first.numel())


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_frequency_of_dropping(p: float) -> None:
    dropped = 1.0 - dropout_mask(torch.tensor([5, 6]), 4000, 50, 0, p).double().mean()
    assert abs(float(dropped) - p) < 5 * math.sqrt(p * (1 - p) / 200_000)


def test_gradient_uses_the_masks_of_the_forward_pass() -> None:
    """A unit dropped on the way up gets exactly no gradient on the way down, and a kept one 1 / (1 - p) times it."""
    units, state = 64, torch.tensor([3, 4])
    x = torch.ones(1, units, dtype=torch.float64, requires_grad=True)
    eye, zero = torch.eye(units, dtype=torch.float64)[None], torch.zeros(1, units, dtype=torch.float64)
    for recompute in ("always", "never"):
        out, _ = xfercore.moe_mlp_mix(
            x,
            zero,
            torch.zeros(1, dtype=torch.float64),
            eye,
            zero,
            eye,
            zero,
            act1="none",
            act2="none",
            dropout_p=0.5,
            seed_offset=state,
            recompute=recompute,
        )
        (grad,) = torch.autograd.grad(out.sum(), x)
        both = dropout_mask(state, 1, units, 0, 0.5) & dropout_mask(state, 1, units, 1, 0.5)
        assert torch.equal(grad, both.double() * 4) and torch.equal(out, both.double() * 4)
