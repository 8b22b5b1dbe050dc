"""inbatch_softmax_loss with options drawn at random against its definition, and rows surer than float64 resolves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.functional import normalize as unit

import xfercore
from xfercore import reference

Options = dict[str, Any]


def _draw_call(rng: random.Random) -> tuple[list[Tensor | None], Options]:
    """u, v, hard_neg and scale in float64 (half of the time whole numbers, for ties), and options of every kind."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    rows, dim = rng.choice([1, 2, 3, 9, 17, 40]), rng.choice([1, 2, 3, 8])
    options: Options = {"reduction": rng.choice(["mean", "sum", "none"]), "symmetric": rng.random() < 0.4}

    def embeddings(*shape: int) -> Tensor:
        if whole:
            return torch.randint(-2, 3, shape, generator=generator).double()
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def ids(*shape: int) -> Tensor:
        return torch.randint(-2, rng.choice([2, 6]), shape, generator=generator)

    whole = rng.random() < 0.5
    docs = rows + rng.choice([0, 1, 64])
    if rng.random() < 0.5:
        docs = rng.choice([1, 3, 30, 130])
        options["targets"] = torch.randint(0, docs, (rows,), generator=generator)
    hard = None
    if rng.random() < 0.6:
        hard = embeddings(rows, rng.choice([0, 1, 3, 7]), dim)
        options["hard_neg_scope"] = rng.choice(["own", "all"])
        if rng.random() < 0.6:
            options["hard_neg_ids"] = ids(*hard.shape[:2])
    for name, size in (("query_ids", rows), ("doc_ids", docs)):
        if rng.random() < 0.4:
            options[name] = ids(size)
    if rng.random() < 0.3:
        options["margin"] = rng.choice([0.25, -0.5, 2])
    if rng.random() < 0.3:
        options["row_weight"] = torch.randint(0, 4, (rows,), generator=generator).float()
    if rng.random() < 0.2 and not whole and dim > 1:
        options["normalize"] = True
    scale = torch.tensor(rng.choice([1.0, 0.3, -1.0, 5.0]), dtype=torch.float64)
    leaves = [embeddings(rows, dim), embeddings(docs, dim), hard, scale]
    return [None if t is None else t.requires_grad_(rng.random() < 0.8) for t in leaves], options


def _results(
    function: Callable[..., Any], leaves: list[Tensor | None], options: Options, **more: Any
) -> list[Tensor]:
    """Loss and statistics, then the gradients of the leaves that require one."""
    u, v, hard, scale = leaves
    out = function(u, v, hard_neg=hard, scale=scale, return_stats=True, **options, **more)
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    cotangent = torch.randn(out.loss.shape, generator=torch.Generator().manual_seed(1)).to(out.loss)
    grads = torch.autograd.grad(out.loss, wanted, cotangent, allow_unused=True) if wanted else []
    zeros = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads, strict=True)]
    return [t.detach() for t in (*out, *zeros)]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(rng=st.randoms(use_true_random=False))
def test_any_options_give_what_the_definition_gives(rng: random.Random) -> None:
    leaves, options = _draw_call(rng)
    workspace = rng.choice([None, 1, 300, 4_000, 60_000])
    actual = _results(xfercore.inbatch_softmax_loss, leaves, options, workspace_bytes=workspace)
    expected = _results(reference.inbatch_softmax_loss, leaves, options)
    size = max(1.0, *(float(t.abs().max()) for t in expected if t.is_floating_point() and t.numel()))
    for got, wanted in zip(actual, expected, strict=True):
        if wanted.is_floating_point():
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12 * size)
        else:
            assert torch.equal(got, wanted)


def _sure(u: Tensor, v: Tensor, scale: float, symmetric: bool) -> Tensor:
    """log(1 + sum over j != i of exp(z_ij - z_ii)): where p is 1 in float64, the definition's lse - z_ii is noise."""
    logits = scale * u @ v.T
    itself = torch.eye(len(u), dtype=torch.bool)
    positive = logits.diagonal().unsqueeze(1)

    def rows(z: Tensor) -> Tensor:
        return torch.log1p((z - positive).masked_fill(itself, -torch.inf).logsumexp(1).exp())

    return ((rows(logits) + rows(logits.T)) / 2 if symmetric else rows(logits)).mean()


@pytest.mark.parametrize("workspace", [None, 1])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("scale", "noise"), [(20.0, 0.05), (50.0, 0.05), (100.0, 0.1)])
def test_sure_rows_have_the_digits_of_fp32(
    scale: float, noise: float, symmetric: bool, workspace: int | None
) -> None:
    """Down to losses of 1e-11; what is left is the rounding of logits of that size. p - 1 keeps no digit there."""
    generator = torch.Generator().manual_seed(0)
    u = unit(torch.randn(256, 64, generator=generator), dim=-1)
    v = unit(u + noise * torch.randn(256, 64, generator=generator), dim=-1)

    def found(function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in (u, v)]
        loss = function(*leaves)
        return loss.detach().double(), *(g.double() for g in torch.autograd.grad(loss, leaves))

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return xfercore.inbatch_softmax_loss(
            a, b, scale=scale, symmetric=symmetric, workspace_bytes=workspace
        )

    def worst(actual: tuple[Tensor, ...]) -> float:
        return max(float((a - w).norm() / w.norm()) for a, w in zip(actual, wanted, strict=True))

    wanted = found(lambda a, b: _sure(a, b, scale, symmetric), torch.float64)
    assert worst(found(ours, torch.float32)) <= 2e-7 * max(scale, 20.0)
    if not symmetric:
        plain = found(lambda a, b: cross_entropy(scale * a @ b.T, torch.arange(256)), torch.float32)
        assert worst(plain) > 1e-3
