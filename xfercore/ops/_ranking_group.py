"""In-batch ranking over several processes: documents are gathered, gradients go back to the ranks they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xfercore.ops._ranking_checks import STATS, SYMMETRIC, autocasting, need_flags

__all__ = ["loss_over_ranks", "report_problem"]

_OP = "inbatch_softmax_loss"


def loss_over_ranks(
    call: Callable[..., tuple[Tensor, ...]],
    arguments: tuple[Any, ...],
    options: tuple[Any, ...],
    share_hard_negatives: bool,
    group: Any,
) -> tuple[Tensor, ...]:
    """``call`` of one rank's queries on all ranks' documents; see :func:`xfercore.inbatch_softmax_loss`."""
    u, v, hard_neg, targets, scale, margin, row_ids, doc_ids, hard_ids = arguments
    coef, symmetric, reduced, stats, workspace_bytes = options
    if autocasting(u):  # here, for both passes of the symmetric loss, and so that half as much is gathered
        u, v, hard_neg = (_lower(t) for t in (u, v, hard_neg))
    share = share_hard_negatives and hard_neg is not None
    differentiable = [t for t in (u, v, hard_neg, scale) if t is not None]
    sizes = _agree(u, v, hard_neg if share else None, targets, doc_ids, differentiable, symmetric, group)
    docs = [size[1] for size in sizes]
    mine = sum(docs[: dist.get_rank(group)])
    targets = mine + (torch.arange(u.shape[0], device=u.device) if targets is None else targets)
    columns = [_gather(v, docs, group)]
    column_ids = None if doc_ids is None else [_gather(doc_ids, docs, group)]
    if share:
        counts = [size[2] for size in sizes]
        columns.append(_gather(hard_neg.flatten(0, 1), counts, group))
        if column_ids is not None:
            column_ids.append(_gather(hard_ids.flatten(), counts, group))
        hard_neg = hard_ids = None
    v = torch.cat(columns) if share else columns[0]
    doc_ids = None if column_ids is None else torch.cat(column_ids)
    arguments = (u, v, hard_neg, targets, scale, margin, row_ids, doc_ids, hard_ids)
    if not symmetric:
        return call(*arguments, *options)
    return _Symmetric.apply(group, stats, reduced, workspace_bytes, coef, *arguments)


def _lower(t: Tensor | None) -> Tensor | None:
    if t is None or t.dtype == torch.float64:
        return t
    return t.to(torch.get_autocast_dtype(t.device.type))


def _agree(
    u: Tensor,
    v: Tensor,
    shared: Tensor | None,
    targets: Tensor | None,
    doc_ids: Tensor | None,
    differentiable: Sequence[Tensor],
    symmetric: bool,
    group: Any,
) -> list[list[int]]:
    """Every rank's sizes; raises on all ranks where one of them must stop, or they do not fit each other."""
    shared_rows = 0 if shared is None else shared.shape[0] * shared.shape[1]
    facts = [u.shape[0], v.shape[0], shared_rows, u.shape[1], list(_DTYPES).index(u.dtype)]
    facts += [int(shared is not None), int(doc_ids is not None), int(symmetric)]
    facts += [int(torch.is_grad_enabled() and t is not None and t.requires_grad) for t in (v, shared)]
    # Both directions take a reduction in backward, whatever it is that requires grad.
    facts += [int(symmetric and torch.is_grad_enabled() and any(t.requires_grad for t in differentiable))]
    table = _exchange(facts, _local_problem(u, v, targets), u.device, group)
    for rank, row in enumerate(table):
        for name, place in _MUST_AGREE.items():
            if row[place] != table[0][place]:
                raise ValueError(
                    f"{_OP}(): ranks of the group must agree on {name}, got {_said(name, table[0][place])} on rank 0 "
                    f"and {_said(name, row[place])} on rank {rank}"
                )
    return table


def report_problem(problem: Exception, device: torch.device, group: Any) -> None:
    """Tells the other ranks, which would wait for this one, why it stops, and raises there and here."""
    _exchange([0] * _NUM_FACTS, str(problem).removeprefix(f"{_OP}(): "), device, group)


def _exchange(facts: list[int], problem: str | None, device: torch.device, group: Any) -> list[list[int]]:
    mine = torch.tensor([*facts, int(problem is not None)], device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    table = [row.tolist() for row in everyone]
    if any(row[-1] for row in table):
        sentences: list[Any] = [None] * len(table)
        dist.all_gather_object(sentences, problem, group=group)
        rank = next(i for i, sentence in enumerate(sentences) if sentence is not None)
        raise ValueError(f"{_OP}(): rank {rank} of the group: {sentences[rank]}")
    return table


_NUM_FACTS = 11
_DTYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}
_MUST_AGREE = {
    "dim": 3,
    "the dtype of u": 4,
    'whether hard_neg of scope "all" is given': 5,
    "whether ids are given": 6,
    "symmetric": 7,
    "whether v requires grad": 8,
    "whether hard_neg requires grad": 9,
    "whether anything requires grad (symmetric)": 10,
}


def _said(name: str, value: int) -> str:
    if name == "dim":
        return str(value)
    return list(_DTYPES.values())[value] if "dtype" in name else ("no", "yes")[value]


def _local_problem(u: Tensor, v: Tensor, targets: Tensor | None) -> str | None:
    if u.shape[0] == 0:
        return "u must have at least one query on every rank, got none"
    if targets is None:
        return None
    bad = ((targets < 0) | (targets >= v.shape[0])).nonzero()
    if bad.numel() == 0:
        return None
    row = int(bad[0])
    return (
        f"targets[{row}] = {int(targets[row])} is out of range: expected 0 <= target < num_docs = {v.shape[0]} "
        "of the rank's own documents"
    )


def _gather(t: Tensor, counts: Sequence[int], group: Any) -> Tensor:
    return _GatherRows.apply(t, counts, group)


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, one rank's after another's; the gradient of each rank's rows is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, counts: Sequence[int], group: Any) -> Tensor:
        ctx.counts, ctx.group, ctx.dtype = counts, group, t.dtype
        most = max(counts)
        padded = t.new_zeros((most, *t.shape[1:]))
        padded[: t.shape[0]] = t.detach()
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded, group=group)
        return torch.cat([rows[:count] for rows, count in zip(everyone, counts, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rank = dist.get_rank(ctx.group)
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        if dist.get_backend(ctx.group) == "gloo":  # has no reduce_scatter of tensors in every release
            total = wide.contiguous().clone()
            dist.all_reduce(total, group=ctx.group)
            return total.split(list(ctx.counts))[rank].to(ctx.dtype), None, None
        most = max(ctx.counts)
        padded = wide.new_zeros((len(ctx.counts), most, *grad.shape[1:]))
        for i, rows in enumerate(wide.split(list(ctx.counts))):
            padded[i, : rows.shape[0]] = rows
        mine = torch.empty_like(padded[0])
        dist.reduce_scatter_tensor(mine, padded.flatten(0, 1), group=ctx.group)
        return mine[: ctx.counts[rank]].to(ctx.dtype), None, None


class _Symmetric(torch.autograd.Function):
    """Both directions: the columns' statistics are those of all ranks' queries.

    The gradient computes the logits again, because a column's part of it depends on what arrives on other ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, group: Any, stats: bool, reduced: bool, workspace_bytes: int, coef: Tensor, *arguments: Any
    ) -> tuple[Tensor, ...]:
        u, v, hard_neg, targets, scale, margin, row_ids, doc_ids, hard_ids = arguments
        columns = torch.ops.xfercore.inbatch_softmax_columns(
            u, v, targets, scale, margin, row_ids, doc_ids, coef, workspace_bytes
        )
        own = columns[0].clone()
        dist.all_reduce(columns[0], op=dist.ReduceOp.MAX, group=group)
        columns[1:3] *= torch.where(own == -torch.inf, torch.zeros_like(own), (own - columns[0]).exp())
        rest = columns[1:].contiguous()
        dist.all_reduce(rest, group=group)
        columns[1:] = rest
        results = torch.ops.xfercore.inbatch_softmax_loss(
            u, v, hard_neg, targets, scale, margin, row_ids, doc_ids, hard_ids, coef, columns,
            SYMMETRIC | stats * STATS, workspace_bytes,
        )  # fmt: skip
        ctx.group, ctx.margin, ctx.workspace_bytes = group, margin, workspace_bytes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(u, v, hard_neg, targets, scale, row_ids, doc_ids, hard_ids, coef, columns)
        ctx.mark_non_differentiable(*results[2:6])
        return tuple(results[:6])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_rows: Tensor | None, *unused: Any
    ) -> tuple[Any, ...]:
        u, v, hard_neg, targets, scale, row_ids, doc_ids, hard_ids, coef, columns = ctx.saved_tensors
        row_grad = torch.zeros_like(coef)
        if grad_loss is not None:
            row_grad = row_grad + coef * grad_loss
        if grad_rows is not None:
            row_grad = row_grad + grad_rows
        arriving = torch.zeros_like(columns[4]).index_add(0, targets, row_grad / 2)
        dist.all_reduce(arriving, group=ctx.group)
        columns = torch.cat([columns[:4], arriving.unsqueeze(0)])
        places = (5, 6, 7, 9)
        needs = [bool(ctx.needs_input_grad[place]) for place in places]
        grads = torch.ops.xfercore.inbatch_softmax_loss_backward(
            row_grad, u, v, hard_neg, targets, scale, ctx.margin, row_ids, doc_ids, hard_ids, columns,
            SYMMETRIC | need_flags(needs), ctx.workspace_bytes,
        )  # fmt: skip
        out: list[Any] = [None] * 14
        for place, need, grad in zip(places, needs, grads, strict=True):
            out[place] = grad if need else None
        return tuple(out)
