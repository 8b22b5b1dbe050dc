"""hard_concrete's gates of groups: what shares a gate, and what the penalty counts."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import expit

import xfercore

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
SEED = torch.tensor([2**61 + 12345, 2**33 + 7])


def test_tensors_of_one_group_share_their_gates() -> None:
    """A head is rows of three projections, their biases, and columns of a fourth."""
    heads, size, dim = 4, 3, 12
    log_alpha = torch.zeros(heads)
    gate = dict(seed_offset=SEED, count="groups")
    z, _ = xfercore.hard_concrete(log_alpha, seed_offset=SEED)
    rows, bias, columns = (torch.randn(s) for s in ((heads, size, dim), (heads, size), (dim, heads, size)))
    found = [
        xfercore.hard_concrete(log_alpha, rows, group_dims=(1, 2), **gate)[0],  # type: ignore[arg-type]
        xfercore.hard_concrete(log_alpha, bias, group_dims=(1,), **gate)[0],  # type: ignore[arg-type]
        xfercore.hard_concrete(log_alpha, columns, group_dims=(0, 2), **gate)[0],  # type: ignore[arg-type]
    ]
    for actual, expected in zip(
        found, (rows * z[:, None, None], bias * z[:, None], columns * z[:, None]), strict=True
    ):
        assert torch.equal(actual, expected)


def test_penalty_counts_elements_or_groups() -> None:
    log_alpha = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    kept = float(torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA)).sum())
    theta = torch.zeros(5, 3, 7, dtype=torch.float64)
    options = {"seed_offset": SEED, "group_dims": (0, 2)}
    assert float(xfercore.hard_concrete(log_alpha, theta, **options)[1]) == pytest.approx(35 * kept)  # type: ignore[arg-type]
    assert float(
        xfercore.hard_concrete(log_alpha, theta, count="groups", **options)[1]  # type: ignore[arg-type]
    ) == pytest.approx(kept)


def test_penalty_of_many_gates_is_exact() -> None:
    """A running float32 sum would be off by thousands here."""
    log_alpha = torch.full((3_000_001,), 1.0)
    _, penalty = xfercore.hard_concrete(log_alpha, seed_offset=SEED)
    assert float(penalty) == pytest.approx(3_000_001 * expit(1 - BETA * math.log(-GAMMA / ZETA)), rel=2e-7)
