"""``inbatch_softmax_loss``: every query ranks the documents of the whole batch, without the matrix of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

from xfercore import reference
from xfercore.interop import accept_arrays
from xfercore.ops._autograd import refuse_functorch, second_order_grads
from xfercore.ops._checks import check_like, check_rank
from xfercore.ops._ranking_checks import (
    STATS,
    SYMMETRIC,
    autocasting,
    check_flags,
    check_group,
    check_options,
    column_ids,
    need_flags,
    needs_of,
    reference_arguments,
)
from xfercore.ops._ranking_group import loss_over_ranks, report_problem
from xfercore.reference.inbatch_softmax_loss import InBatchSoftmax

__all__ = ["inbatch_softmax_loss"]

_OP = "inbatch_softmax_loss"
#: Inputs with a derivative among the arguments of the two differentiable ops, by place.
_FORWARD_INPUTS, _BACKWARD_INPUTS = (0, 1, 2, 4), (1, 2, 3, 5)


@accept_arrays
def inbatch_softmax_loss(
    u: Tensor,
    v: Tensor,
    *,
    hard_neg: Tensor | None = None,
    targets: Tensor | None = None,
    scale: float | Tensor = 1.0,
    margin: float = 0.0,
    normalize: bool = False,
    query_ids: Tensor | None = None,
    doc_ids: Tensor | None = None,
    hard_neg_ids: Tensor | None = None,
    hard_neg_scope: str = "own",
    row_weight: Tensor | None = None,
    symmetric: bool = False,
    reduction: str = "mean",
    workspace_bytes: int | None = None,
    group: Any = None,
    return_stats: bool = False,
) -> Tensor | InBatchSoftmax:
    r"""Softmax ranking of dual encoders: each query against all documents of the batch as negatives.

    .. math:: z_{ij} = \mathrm{scale} \cdot (\langle u_i, v_j \rangle - \mathrm{margin}\,[j = y_i]), \qquad
        \ell_i = \log \sum_j e^{z_{ij}} - z_{i y_i}

    Equation 1 of Chidambaram et al., "Learning Cross-Lingual Sentence Representations via a Multi-task Dual-Encoder
    Model" (2019); the margin is that of Yang et al. (IJCAI 2019). The sum runs over the documents and over hard
    negatives, less those that are masked. Blocks of rows see their whole row: loss and gradients come from
    one pass of ``6 num_queries num_docs dim`` FLOPs, and memory grows with the batch, not with its square.

    Args:
        u: queries ``[num_queries, dim]``, float32, bfloat16, float16 or (CPU) float64.
        v: documents ``[num_docs, dim]``, same dtype.
        hard_neg: ``[num_queries, num_hard, dim]``, more negatives of each query, same dtype.
        targets: int64 ``[num_queries]``, each query's document; None: document i is that of query i, and documents
            beyond ``num_queries`` are negatives.
        scale: number or 0-dim tensor (inverse temperature), differentiable; applied in float32.
        margin: taken off the positive's similarity.
        normalize: divide u, v and hard_neg by their lengths first, so that the similarity is a cosine: in float32, and
            rounded back to their dtype.
        query_ids: int64 ``[num_queries]``, the id of each query's positive. Documents and hard negatives that carry
            it are no negatives of that query (duplicates, false negatives). None: the id of its document in doc_ids.
        doc_ids: int64 ``[num_docs]``; negative: matches nothing. None with query_ids: the documents of the targets
            carry their queries' ids, the others none.
        hard_neg_ids: int64 ``[num_queries, num_hard]``; negative: padding, which is left out.
        hard_neg_scope: ``"own"``: a hard negative competes in its own query's row; ``"all"``: in every row.
        row_weight: ``[num_queries]``, a constant weight of each row's loss.
        symmetric: add the softmax over queries of each target, and halve: ``(rows + columns) / 2``. Queries that share
            a target compete for it. Two more FLOPs in six. Hard negatives take no part in the columns.
        reduction: ``"mean"`` (over rows, weighted by row_weight; 0 where there are none), ``"sum"`` or ``"none"``
            (``[num_queries]``; its gradient computes the logits again).
        workspace_bytes: memory for a block of logits; None: 32 MiB on the CPU, 1 GiB on CUDA. Where it holds less than
            64 (CUDA: 1024) whole rows, tiles of columns are used, which costs two more FLOPs in six.
        group: process group of ``torch.distributed`` whose ranks' documents (and hard negatives of scope "all") are
            negatives too. Targets index the rank's own documents. Each rank gets the loss of its own queries,
            and its gradients are those of the sum of all ranks' losses, with no factor for the number of
            ranks: DDP, which averages gradients, then trains on the mean over ranks. Sizes may differ between ranks.
        return_stats: return an :class:`xfercore.reference.InBatchSoftmax` instead of the loss alone.

    Returns:
        The loss in float32 (float64 for float64), in nats; with ``return_stats`` a named tuple ``loss``, ``lse``,
        ``pos_logit``, ``rank``, ``argmax``, of which only the loss carries a gradient.

    Raises:
        ValueError: a shape, dtype, device, option or target that does not fit, named with its argument; with a group,
            on every rank when it happens on one. On CUDA a target out of range gives NaN and sets a flag
            (:func:`xfercore.device_status`).
        RuntimeError: under ``torch.func`` transforms, and where row_weight requires grad.

    Half types are multiplied as they are, into float32 logits. The positive's gradient is minus the probability of
    the others, never p - 1, which cancels on confident rows. Autocast casts u, v and hard_neg to its dtype.
    Differentiable twice in eager mode (by :mod:`xfercore.reference`, which takes the memory of the matrix).
    """
    refuse_functorch(_OP)
    if group is not None:
        check_group(_OP, group)
    ids = {"targets": targets, "query_ids": query_ids, "doc_ids": doc_ids, "hard_neg_ids": hard_neg_ids}
    try:
        check_flags(_OP, normalize=normalize, symmetric=symmetric, return_stats=return_stats)
        check_options(
            _OP, u, v, hard_neg, ids, scale, margin, hard_neg_scope, row_weight, reduction, workspace_bytes
        )
    except (ValueError, RuntimeError) as error:
        if group is None:
            raise
        report_problem(error, u.device if isinstance(u, Tensor) else torch.device("cpu"), group)
    compute = torch.promote_types(u.dtype, torch.float32)
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=compute, device=u.device)
    if normalize:
        same = u is v
        u = _unit(u)
        v = u if same else _unit(v)
        hard_neg = None if hard_neg is None else _unit(hard_neg)
    arguments: tuple[Any, ...] = (u, v, hard_neg, targets, scale.to(compute), float(margin))
    arguments += column_ids(u, v, hard_neg, targets, query_ids, doc_ids, hard_neg_ids, hard_neg_scope)
    coef = _coefficients(u, row_weight, reduction, compute)
    options: tuple[Any, ...] = (coef, symmetric, reduction != "none", return_stats, workspace_bytes or 0)
    if group is None:
        if hard_neg_scope == "all" and hard_neg is not None:
            arguments = _share(*arguments)
        results = _call(*arguments, *options)
    else:
        results = loss_over_ranks(_call, arguments, options, hard_neg_scope == "all", group)
    loss = (
        results[1] * coef if reduction == "none" and row_weight is not None else results[reduction == "none"]
    )
    if not return_stats:
        return loss
    return InBatchSoftmax(loss, results[2].detach(), results[3].detach(), results[4], results[5])


def _unit(t: Tensor) -> Tensor:
    return unit(t.to(torch.promote_types(t.dtype, torch.float32)), dim=-1).to(t.dtype)


def _coefficients(u: Tensor, row_weight: Tensor | None, reduction: str, compute: torch.dtype) -> Tensor:
    """``d loss / d loss_i``; with ``reduction="none"`` the weight of each row."""
    num_rows = u.shape[0]
    if row_weight is None:
        return u.new_full((num_rows,), 1.0 / max(num_rows, 1) if reduction == "mean" else 1.0, dtype=compute)
    weight = row_weight.to(compute)
    if reduction != "mean":
        return weight
    total = weight.sum()
    return weight / total.masked_fill(total == 0, 1.0)


def _share(
    u: Tensor,
    v: Tensor,
    hard_neg: Tensor,
    targets: Tensor | None,
    scale: Tensor,
    margin: float,
    row_ids: Tensor | None,
    doc_ids: Tensor | None,
    hard_ids: Tensor | None,
) -> tuple[Any, ...]:
    """Hard negatives of all rows as further documents."""
    docs = torch.cat([v, hard_neg.flatten(0, 1)])
    if doc_ids is not None and hard_ids is not None:
        doc_ids = torch.cat([doc_ids, hard_ids.flatten()])
    return u, docs, None, targets, scale, margin, row_ids, doc_ids, None


def _call(
    u: Tensor,
    v: Tensor,
    hard_neg: Tensor | None,
    targets: Tensor | None,
    scale: Tensor,
    margin: float,
    row_ids: Tensor | None,
    doc_ids: Tensor | None,
    hard_ids: Tensor | None,
    coef: Tensor,
    symmetric: bool,
    reduced: bool,
    stats: bool,
    workspace_bytes: int,
) -> tuple[Tensor, ...]:
    recording = reduced and torch.is_grad_enabled()
    flags = need_flags([recording and t is not None and t.requires_grad for t in (u, v, hard_neg, scale)])
    flags |= symmetric * SYMMETRIC | stats * STATS
    inputs = (
        u,
        v,
        hard_neg,
        targets,
        scale,
        margin,
        row_ids,
        doc_ids,
        hard_ids,
        coef,
        None,
        flags,
        workspace_bytes,
    )
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or autocasting(u):
        return torch.ops.xfercore.inbatch_softmax_loss(*inputs)
    return _Eager.apply(*inputs)


def _compute_dtype(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _check_fake(
    u: Tensor, v: Tensor, hard_neg: Tensor | None, targets: Tensor | None, ids: tuple[Any, ...]
) -> None:
    check_rank(_OP, "u", u, 2, "[num_queries, dim]")
    check_like(_OP, "v", v, u, "u", v.shape[0], u.shape[1])
    if hard_neg is not None:
        check_like(_OP, "hard_neg", hard_neg, u, "u", u.shape[0], hard_neg.shape[1], u.shape[1])
    row_ids, doc_ids, hard_ids = ids
    for name, value, size in (("targets", targets, u.shape[0]), ("query_ids", row_ids, u.shape[0]),
                              ("doc_ids", doc_ids, v.shape[0])):  # fmt: skip
        if value is not None:
            check_like(_OP, name, value, value, name, size)
    if hard_ids is not None and hard_neg is not None:
        check_like(_OP, "hard_neg_ids", hard_ids, hard_ids, "hard_neg_ids", *hard_neg.shape[:2])


def _fake_grads(
    u: Tensor, v: Tensor, hard_neg: Tensor | None, scale: Tensor, needs: tuple[bool, ...], dtype: torch.dtype
) -> list[Tensor]:
    shapes = [u.shape, v.shape, (0,) if hard_neg is None else hard_neg.shape]
    grads = [
        u.new_empty(shape if need else (0,), dtype=dtype)
        for need, shape in zip(needs[:3], shapes, strict=True)
    ]
    return [*grads, scale.new_empty(() if needs[3] else (0,))]


@torch.library.register_fake("xfercore::inbatch_softmax_loss")
def _fake(
    u: Tensor, v: Tensor, hard_neg: Tensor | None, targets: Tensor | None, scale: Tensor, margin: float,
    row_ids: Tensor | None, doc_ids: Tensor | None, hard_ids: Tensor | None, row_coef: Tensor,
    columns: Tensor | None, flags: int, workspace_bytes: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    _check_fake(u, v, hard_neg, targets, (row_ids, doc_ids, hard_ids))
    compute, rows = _compute_dtype(u), u.shape[0]
    counted = [u.new_empty((rows if flags & STATS else 0,), dtype=torch.int64) for _ in range(2)]
    floats = [u.new_empty((rows,), dtype=compute) for _ in range(3)]
    kept = torch.float32 if u.dtype == torch.float16 else u.dtype
    grads = _fake_grads(u, v, hard_neg, scale, needs_of(flags), kept)
    return u.new_empty((), dtype=compute), *floats, *counted, *grads


@torch.library.register_fake("xfercore::inbatch_softmax_loss_backward")
def _fake_backward(
    row_grad: Tensor, u: Tensor, v: Tensor, hard_neg: Tensor | None, targets: Tensor | None, scale: Tensor,
    margin: float, row_ids: Tensor | None, doc_ids: Tensor | None, hard_ids: Tensor | None,
    columns: Tensor | None, flags: int, workspace_bytes: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(_fake_grads(u, v, hard_neg, scale, needs_of(flags), u.dtype))


@torch.library.register_fake("xfercore::inbatch_softmax_columns")
def _fake_columns(
    u: Tensor, v: Tensor, targets: Tensor | None, scale: Tensor, margin: float, row_ids: Tensor | None,
    doc_ids: Tensor | None, row_coef: Tensor, workspace_bytes: int,
) -> Tensor:  # fmt: skip
    return scale.new_empty((5, v.shape[0]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)
    tensors = [value if isinstance(value, Tensor) else None for value in inputs]
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.kept = needs_of(inputs[11])
    ctx.save_for_backward(*tensors, *output[6:])


def _backward(ctx: Any, grad_loss: Tensor | None, grad_rows: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    values = [
        other if tensor is None else tensor
        for tensor, other in zip(saved[: ctx.num_inputs], ctx.others, strict=True)
    ]
    out: list[Any] = [None] * ctx.num_inputs
    needs = tuple(bool(ctx.needs_input_grad[place]) for place in _FORWARD_INPUTS)
    if grad_loss is None and grad_rows is None:
        return tuple(out)
    kept = getattr(ctx, "grads", saved[ctx.num_inputs :])  # None: they were handed over
    enough = kept is not None and all(have or not need for have, need in zip(ctx.kept, needs, strict=True))
    if grad_loss is not None and grad_rows is None and enough and not torch.is_grad_enabled():
        if hasattr(ctx, "grads") and grad_loss.device.type == "cpu" and grad_loss.item() == 1.0:
            # Mostly backward() is called on the loss itself: its gradient of 1 is seen on the CPU, nothing is copied,
            # and nothing kept that the receiver may write to.
            scaled, ctx.grads = kept, None
        else:
            scaled = tuple(grad * grad_loss for grad in kept)
        grads = [
            grad.to(values[place].dtype) if need else None
            for need, place, grad in zip(needs, _FORWARD_INPUTS, scaled, strict=True)
        ]
    else:
        row_grad = grad_rows
        if grad_loss is not None:
            own = values[9] * grad_loss
            row_grad = own if row_grad is None else row_grad + own
        grads = list(
            torch.ops.xfercore.inbatch_softmax_loss_backward(
                row_grad, *values[:9], values[10], values[11] & SYMMETRIC | need_flags(needs), values[12]
            )
        )
    for place, need, grad in zip(_FORWARD_INPUTS, needs, grads, strict=True):
        out[place] = grad if need else None
    return tuple(out)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.needs = needs_of(inputs[11])
    ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))


def _backward_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Any, ...]:
    values = [
        other if tensor is None else tensor
        for tensor, other in zip(ctx.saved_tensors, ctx.others, strict=True)
    ]
    row_grad, u, v, hard_neg, targets, scale, margin, row_ids, doc_ids, hard_ids, columns, flags = values[:12]
    if columns is not None:
        raise RuntimeError(f"{_OP}(): symmetric over a group cannot be differentiated twice")
    fixed = (targets, margin, row_ids, doc_ids, hard_ids, bool(flags & SYMMETRIC))

    def rows(u: Tensor, v: Tensor, hard_neg: Tensor | None, scale: Tensor) -> tuple[Tensor]:
        args, options = reference_arguments(u, v, hard_neg, *fixed)
        loss = reference.inbatch_softmax_loss(*args, scale=scale, reduction="none", **options)
        return (loss,)  # type: ignore[return-value]

    arriving = [grad if need else None for grad, need in zip(grad_grads, ctx.needs, strict=True)]
    inputs = [u, v, hard_neg, scale]
    for_inputs, for_grads = second_order_grads(rows, inputs, (row_grad,), arriving)
    out: list[Any] = [None] * ctx.num_inputs
    out[0] = for_grads[0]
    for place, grad in zip(_BACKWARD_INPUTS, for_inputs, strict=True):
        out[place] = grad
    return tuple(out)


class _Eager(torch.autograd.Function):
    """The derivative registered below, without the 80 µs that its registration costs every call of a small batch."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.xfercore.inbatch_softmax_loss(*inputs)
        _setup(ctx, inputs, output[:6])
        ctx.grads = output[6:]
        ctx.mark_non_differentiable(*output[2:6])
        return output[:6]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return _backward(ctx, *grads)


torch.library.register_autograd("xfercore::inbatch_softmax_loss", _backward, setup_context=_setup)
torch.library.register_autograd(
    "xfercore::inbatch_softmax_loss_backward", _backward_backward, setup_context=_setup_backward
)
