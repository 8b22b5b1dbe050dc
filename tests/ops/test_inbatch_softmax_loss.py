"""inbatch_softmax_loss: the edge cases of ranking in a batch. The checks that all ops share are in test_all_ops.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.functional import normalize as unit

import xfercore
from xfercore import reference
from xfercore.testing import assert_close, float_dtypes

DTYPES = float_dtypes(torch.device("cpu"))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def grads_of(function: Any, leaves: list[Tensor], **options: Any) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of fresh leaves u, v and, if any, hard_neg and scale."""
    fresh = [t.detach().clone().requires_grad_() for t in leaves]
    named = dict(zip(("hard_neg", "scale"), fresh[2:], strict=False))
    loss = function(fresh[0], fresh[1], **named, **options)
    return loss.detach(), list(torch.autograd.grad(loss.sum(), fresh))


def exact(leaves: list[Tensor], **options: Any) -> tuple[Tensor, list[Tensor]]:
    return grads_of(reference.inbatch_softmax_loss, [t.double() for t in leaves], **options)


def relative(actual: Tensor, wanted: Tensor) -> float:
    return float((actual.double() - wanted).norm() / wanted.norm())


def test_is_the_cross_entropy_of_the_explicit_matrix() -> None:
    u, v = draw(9, 5), draw(9, 5, seed=1)
    logits = 3.0 * (u @ v.T)
    expected = cross_entropy(logits, torch.arange(9))
    torch.testing.assert_close(xfercore.inbatch_softmax_loss(u, v, scale=3.0), expected)
    both = (expected + cross_entropy(logits.T, torch.arange(9))) / 2
    torch.testing.assert_close(xfercore.inbatch_softmax_loss(u, v, scale=3.0, symmetric=True), both)


def test_one_query_and_one_document() -> None:
    loss, grads = grads_of(xfercore.inbatch_softmax_loss, [draw(1, 4), draw(1, 4, seed=1)])
    assert loss == 0 and all((g == 0).all() for g in grads)


def test_no_query_has_no_loss() -> None:
    for reduction, wanted in (("mean", 0.0), ("sum", 0.0)):
        loss, grads = grads_of(xfercore.inbatch_softmax_loss, [draw(0, 4), draw(3, 4)], reduction=reduction)
        assert loss == wanted and (grads[1] == 0).all()
    assert xfercore.inbatch_softmax_loss(draw(0, 4), draw(3, 4), reduction="none").shape == (0,)


@pytest.mark.parametrize("scope", ["own", "all"])
def test_every_hard_negative_is_padding(scope: str) -> None:
    u, v, hard = draw(5, 6), draw(8, 6, seed=1), draw(5, 3, 6, seed=2)
    ids = torch.full((5, 3), -1)
    loss, grads = grads_of(
        xfercore.inbatch_softmax_loss, [u, v, hard], hard_neg_ids=ids, hard_neg_scope=scope
    )
    alone, alone_grads = grads_of(xfercore.inbatch_softmax_loss, [u, v])
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(grads[0], alone_grads[0])
    assert (grads[2] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_negative_is_masked(dtype: torch.dtype) -> None:
    leaves = [draw(4, 6, dtype=dtype), draw(4, 6, seed=1, dtype=dtype), draw(4, 2, 6, seed=2, dtype=dtype)]
    ids = {"doc_ids": torch.full((4,), 7), "hard_neg_ids": torch.full((4, 2), 7)}
    for symmetric in (False, True):
        loss, grads = grads_of(xfercore.inbatch_softmax_loss, leaves, symmetric=symmetric, **ids)
        assert loss == 0 and all((g == 0).all() for g in grads)


@pytest.mark.parametrize("size", [2, 17, 100, 1001])
def test_collapsed_embeddings_score_nothing(size: int) -> None:
    u = draw(1, 64).expand(size, 64)
    out = xfercore.inbatch_softmax_loss(u, u, return_stats=True)
    assert out.loss.item() == pytest.approx(math.log(size), rel=1e-6)
    assert (out.rank == size).all()
    assert (out.argmax[1:] == 0).all() and out.argmax[0] == 1


def test_confident_rows_keep_their_gradient() -> None:
    """p is so near 1 that p - 1 has few digits left in fp32; minus the sum of the others has all of them."""
    u = unit(draw(64, 32), dim=-1)
    v = unit(u + 0.05 * draw(64, 32, seed=1), dim=-1)
    _, wanted = exact([u, v], scale=25.0)
    _, actual = grads_of(xfercore.inbatch_softmax_loss, [u, v], scale=25.0)
    _, plain = grads_of(lambda a, b: cross_entropy(25.0 * (a @ b.T), torch.arange(64)), [u, v])
    assert all(relative(a, w) < 1e-5 for a, w in zip(actual, wanted, strict=True))
    assert relative(plain[0], wanted[0]) > 5 * relative(actual[0], wanted[0])


def test_probability_zero() -> None:
    u, v = torch.eye(4), torch.eye(4).roll(1, 0)
    loss, grads = grads_of(xfercore.inbatch_softmax_loss, [u, v], scale=100.0)
    wanted, exact_grads = exact([u, v], scale=100.0)
    assert_close(loss, wanted, "loss")
    for actual, expected in zip(grads, exact_grads, strict=True):
        assert_close(actual, expected, "gradient")


@pytest.mark.parametrize("symmetric", [False, True])
def test_logits_of_ten_thousand(symmetric: bool) -> None:
    u, v = draw(6, 8), draw(6, 8, seed=1)
    loss, grads = grads_of(xfercore.inbatch_softmax_loss, [u, v], scale=1e4, symmetric=symmetric)
    assert loss.isfinite() and all(g.isfinite().all() for g in grads)
    assert_close(loss, exact([u, v], scale=1e4, symmetric=symmetric)[0], "loss")


def test_queries_that_are_the_documents() -> None:
    u = draw(7, 5).requires_grad_()
    (grad,) = torch.autograd.grad(xfercore.inbatch_softmax_loss(u, u, normalize=True, scale=9.0), u)
    w = u.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(reference.inbatch_softmax_loss(w, w, normalize=True, scale=9.0), w)
    assert_close(grad, wanted, "gradient")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalize_in_every_dtype(dtype: torch.dtype) -> None:
    leaves = [draw(9, 16, dtype=dtype), draw(9, 16, seed=1, dtype=dtype), draw(9, 2, 16, seed=2, dtype=dtype)]
    loss, grads = grads_of(xfercore.inbatch_softmax_loss, leaves, normalize=True, scale=5.0)
    wanted, exact_grads = exact(leaves, normalize=True, scale=5.0)
    tolerance = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert relative(loss.reshape(1), wanted.reshape(1)) < tolerance
    assert all(relative(a, w) < tolerance for a, w in zip(grads, exact_grads, strict=True))


def test_no_gradient_is_made_that_nobody_wants() -> None:
    u, v = draw(6, 4), draw(6, 4, seed=1).requires_grad_()
    calls: list[tuple[Tensor, ...]] = []
    real = torch.ops.xfercore.inbatch_softmax_loss
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is real.default:
                calls.append(out[6:])
            return out

    with Watch():
        xfercore.inbatch_softmax_loss(u, v, scale=torch.tensor(1.0))
        with torch.no_grad():
            xfercore.inbatch_softmax_loss(u, v)
    assert [t.numel() for t in calls[0]] == [0, 24, 0, 0]
    assert [t.numel() for t in calls[1]] == [0, 0, 0, 0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 64, 70])
def test_any_workspace_gives_the_same(rows: int, symmetric: bool) -> None:
    """Down to one row, and to tiles of 64 columns."""
    leaves = [draw(130, 24), draw(300, 24, seed=1), draw(130, 2, 24, seed=2), torch.tensor(0.3)]
    wanted, exact_grads = exact(leaves, symmetric=symmetric)
    for columns in (300, 64, 1):
        budget = rows * columns * 4
        loss, grads = grads_of(
            xfercore.inbatch_softmax_loss, leaves, symmetric=symmetric, workspace_bytes=budget
        )
        assert_close(loss, wanted, "loss")
        for actual, expected in zip(grads, exact_grads, strict=True):
            assert_close(actual, expected, f"{rows} x {columns}", tolerance=1e-5)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-12), (torch.float32, 4e-6), (torch.bfloat16, 4e-3), (torch.float16, 1e-3)],
    ids=str,
)
def test_error_of_the_gradient(dtype: torch.dtype, bound: float) -> None:
    """In the 2-norm, against fp64 of the same inputs; for half types half of it is the rounding of the result."""
    u = unit(draw(300, 128), dim=-1)
    v = unit(u + 0.1 * draw(300, 128, seed=1), dim=-1)
    leaves = [u.to(dtype), v.to(dtype)]
    loss, grads = grads_of(xfercore.inbatch_softmax_loss, leaves, scale=20.0)
    wanted, exact_grads = exact(leaves, scale=20.0)
    assert abs(loss.item() / wanted.item() - 1) < 1e-5
    assert all(relative(a, w) < bound for a, w in zip(grads, exact_grads, strict=True))


def test_half_logits_are_what_autocast_would_have_given() -> None:
    """The contrast: logits rounded to bfloat16 are wrong by more than all that this op rounds."""
    u = unit(draw(300, 128), dim=-1)
    v = unit(u + 0.1 * draw(300, 128, seed=1), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, ours_grads = grads_of(xfercore.inbatch_softmax_loss, [u, v], scale=50.0)
        _, plain = grads_of(lambda a, b: cross_entropy(50.0 * (a @ b.T), torch.arange(300)), [u, v])
    assert ours.dtype == torch.float32
    _, wanted = exact([u.bfloat16(), v.bfloat16()], scale=50.0)
    assert relative(plain[0], wanted[0]) > 5 * relative(ours_grads[0], wanted[0])


def test_fp16_gradients_survive_a_loss_scaler() -> None:
    leaves = [draw(200, 16, dtype=torch.float16), draw(200, 16, seed=1, dtype=torch.float16)]
    scaled = lambda u, v: 2.0**12 * xfercore.inbatch_softmax_loss(u, v, scale=0.01)  # noqa: E731
    _, grads = grads_of(scaled, leaves)
    _, wanted = exact(leaves, scale=0.01)
    assert all(relative(g.double() / 2.0**12, w) < 1e-3 for g, w in zip(grads, wanted, strict=True))


def test_queries_that_share_a_target() -> None:
    leaves = [draw(6, 4), draw(3, 4, seed=1), draw(6, 1, 4, seed=2), torch.tensor(2.0)]
    options = {"targets": torch.tensor([0, 0, 2, 2, 2, 1]), "symmetric": True, "margin": 0.1}
    loss, grads = grads_of(xfercore.inbatch_softmax_loss, leaves, **options)
    wanted, exact_grads = exact(leaves, **options)
    assert_close(loss, wanted, "loss")
    for actual, expected in zip(grads, exact_grads, strict=True):
        assert_close(actual, expected, "gradient")


def test_duplicates_are_no_negatives() -> None:
    u, v = draw(4, 5), draw(3, 5, seed=1)
    doubled = torch.cat([v, v[:1]])
    ids = torch.tensor([0, 1, 2, 0])
    rows = xfercore.inbatch_softmax_loss(u[:3], doubled, doc_ids=ids, reduction="none")
    seen = xfercore.inbatch_softmax_loss(u[:3], doubled, reduction="none")
    torch.testing.assert_close(rows[0], xfercore.inbatch_softmax_loss(u[:3], v, reduction="none")[0])
    torch.testing.assert_close(rows[1:], seen[1:])  # to the others it is a negative as any
    assert seen[0] > rows[0]
    by_query = xfercore.inbatch_softmax_loss(u[:3], doubled, query_ids=ids[:3], doc_ids=ids, reduction="none")
    torch.testing.assert_close(by_query, rows)
    unknown = xfercore.inbatch_softmax_loss(u[:3], doubled, doc_ids=torch.full((4,), -1), reduction="none")
    torch.testing.assert_close(unknown, seen)


def test_ids_of_queries_alone() -> None:
    """Queries of one id do not take each other's documents for negatives."""
    u, v, ids = draw(4, 5), draw(6, 5, seed=1), torch.tensor([3, 3, -1, 5])
    docs = torch.tensor([3, 3, -1, 5, -1, -1])
    loss = xfercore.inbatch_softmax_loss(u, v, query_ids=ids)
    torch.testing.assert_close(loss, xfercore.inbatch_softmax_loss(u, v, query_ids=ids, doc_ids=docs))


def test_margin_is_taken_off_the_positive_alone() -> None:
    u, v = draw(5, 4), draw(5, 4, seed=1)
    logits = 2.0 * (u @ v.T - 0.3 * torch.eye(5))
    out = xfercore.inbatch_softmax_loss(u, v, scale=2.0, margin=0.3, return_stats=True)
    torch.testing.assert_close(out.loss, cross_entropy(logits, torch.arange(5)))
    torch.testing.assert_close(out.pos_logit, logits.diagonal())
    torch.testing.assert_close(out.lse, logits.logsumexp(1))


def test_reductions_and_weights() -> None:
    u, v, weight = draw(5, 4), draw(5, 4, seed=1), torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0])
    rows = xfercore.inbatch_softmax_loss(u, v, reduction="none")
    weighed = xfercore.inbatch_softmax_loss(u, v, reduction="none", row_weight=weight)
    torch.testing.assert_close(weighed, rows * weight)
    torch.testing.assert_close(xfercore.inbatch_softmax_loss(u, v, reduction="sum"), rows.sum())
    mean = xfercore.inbatch_softmax_loss(u, v, row_weight=weight)
    torch.testing.assert_close(mean, (rows * weight).sum() / weight.sum())
    assert xfercore.inbatch_softmax_loss(u, v, row_weight=torch.zeros(5)) == 0


@pytest.mark.parametrize("workspace", [None, 1])
def test_ranks_against_a_sort(workspace: int | None) -> None:
    u, v, hard = draw(40, 6), draw(90, 6, seed=1), draw(40, 3, 6, seed=2)
    targets = torch.arange(40) * 2
    out = xfercore.inbatch_softmax_loss(
        u, v, hard_neg=hard, targets=targets, workspace_bytes=workspace, return_stats=True
    )
    sims = torch.cat([u @ v.T, torch.einsum("bd,bhd->bh", u, hard)], 1)
    own = sims.gather(1, targets.unsqueeze(1))
    assert torch.equal(out.rank, (sims >= own).sum(1))
    assert torch.equal(out.argmax, sims.argmax(1))


def test_a_positive_that_is_nan_ranks_last() -> None:
    u, v = draw(3, 4), draw(5, 4, seed=1)
    u[1] = math.nan
    out = xfercore.inbatch_softmax_loss(u, v, return_stats=True, reduction="none")
    assert out.rank[1] == 5
    assert out.loss.isnan().tolist() == [False, True, False]


def test_statistics_carry_no_gradient() -> None:
    u, v = draw(3, 4).requires_grad_(), draw(3, 4, seed=1)
    out = xfercore.inbatch_softmax_loss(u, v, return_stats=True)
    assert out.loss.requires_grad and not (out.lse.requires_grad or out.pos_logit.requires_grad)


def test_a_target_out_of_range_is_named() -> None:
    for wrong in (-1, 5):
        targets = torch.tensor([0, wrong, 2])
        with pytest.raises(ValueError, match=rf"targets\[1\] = {wrong} is out of range.*num_docs = 5"):
            xfercore.inbatch_softmax_loss(draw(3, 4), draw(5, 4), targets=targets, doc_ids=torch.arange(5))


def test_the_graph_can_be_used_twice_and_recomputed() -> None:
    from torch.utils.checkpoint import checkpoint

    u, v = draw(8, 4).requires_grad_(), draw(8, 4, seed=1).requires_grad_()
    loss = xfercore.inbatch_softmax_loss(u, v)
    first = torch.autograd.grad(loss, (u, v), retain_graph=True)
    second = torch.autograd.grad(loss, (u, v), torch.tensor(2.0))
    again = torch.autograd.grad(checkpoint(xfercore.inbatch_softmax_loss, u, v, use_reentrant=False), (u, v))
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(2 * a, b) and torch.equal(a, c)


def test_gradients_of_a_leaf_add_up() -> None:
    """What backward() hands over is no alias of what it keeps."""
    u, v = draw(8, 4).requires_grad_(), draw(8, 4, seed=1)
    loss = xfercore.inbatch_softmax_loss(u, v)
    loss.backward(retain_graph=True)
    once = u.grad.clone()
    loss.backward()
    torch.testing.assert_close(u.grad, 2 * once)
    loss = xfercore.inbatch_softmax_loss(u, v)
    for place in range(3):  # the receiver may write to what it was given
        u.grad = None
        loss.backward(retain_graph=place < 2)
        torch.testing.assert_close(u.grad, once)
        u.grad.data.zero_()
    (direct,) = torch.autograd.grad(xfercore.inbatch_softmax_loss(u, v), u)
    assert not direct.requires_grad


def test_double_backward_and_the_scale_alone() -> None:
    u, v, scale = draw(5, 3).double(), draw(5, 3, seed=1).double(), torch.tensor(2.0, dtype=torch.float64)
    scale.requires_grad_()
    loss = lambda s: xfercore.inbatch_softmax_loss(u, v, scale=s, symmetric=True)  # noqa: E731
    assert torch.autograd.gradcheck(loss, scale) and torch.autograd.gradgradcheck(loss, scale)
