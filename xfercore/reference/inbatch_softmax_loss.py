"""``inbatch_softmax_loss`` in plain PyTorch: every logit of the batch at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

__all__ = ["InBatchSoftmax", "inbatch_softmax_loss"]


class InBatchSoftmax(NamedTuple):
    """What ``inbatch_softmax_loss(..., return_stats=True)`` returns; only ``loss`` carries a gradient.

    Attributes:
        loss: as without statistics.
        lse: float ``[num_queries]``, log of the row's sum of exponentials, in nats.
        pos_logit: float ``[num_queries]``, the positive's logit, margin taken off.
        rank: int64 ``[num_queries]``, 1 + the number of columns that compete and are at least as similar as the
            positive. Ties count against it, or embeddings that all collapse into one would score 100 %.
        argmax: int64 ``[num_queries]``, the most similar column: documents come first (with a group: those of all
            ranks, in the order of ranks), then hard negatives. On a tie the positive loses, then the lower index wins.
    """

    loss: Tensor
    lse: Tensor
    pos_logit: Tensor
    rank: Tensor
    argmax: Tensor


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
    """See :func:`xfercore.inbatch_softmax_loss`; ``workspace_bytes`` means nothing here, and there is no ``group``."""
    if group is not None:
        raise NotImplementedError(
            "the definition is that of one process; with a group, v is that of all ranks"
        )
    num_queries, num_docs = u.shape[0], v.shape[0]
    compute = torch.promote_types(u.dtype, torch.float32)
    u, v = u.to(compute), v.to(compute)
    hard = u.new_zeros(num_queries, 0, u.shape[1]) if hard_neg is None else hard_neg.to(compute)
    if normalize:
        u, v, hard = unit(u, dim=-1), unit(v, dim=-1), unit(hard, dim=-1)
    if targets is None:
        targets = torch.arange(num_queries, device=u.device)
    everyone = hard_neg_scope == "all"
    hard_sim = u @ hard.flatten(0, 1).T if everyone else torch.einsum("bd,bhd->bh", u, hard)
    sim = torch.cat([u @ v.T, hard_sim], dim=1)
    positive = torch.zeros_like(sim, dtype=torch.bool).scatter(1, targets.unsqueeze(1), True)
    masked = _masked(sim, targets, num_docs, query_ids, doc_ids, hard_neg_ids, everyone) & ~positive

    logits = (scale * (sim - margin * positive.to(sim.dtype))).masked_fill(masked, -torch.inf)
    lse = torch.logsumexp(logits, dim=1)
    pos_logit = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    rows = lse - pos_logit
    if symmetric:
        rows = (rows + torch.logsumexp(logits[:, :num_docs], dim=0)[targets] - pos_logit) / 2
    loss = _reduced(rows, row_weight, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        pos_sim = sim.gather(1, targets.unsqueeze(1))
        rivals = ~masked & ~positive
        rank = 1 + (rivals & ~(sim < pos_sim)).sum(1)
        best = sim.masked_fill(~rivals, -torch.inf)
        argmax = torch.where(
            (rivals & ~(best < pos_sim)).any(1), best.argmax(1) if best.shape[1] else targets, targets
        )
    return InBatchSoftmax(loss, lse.detach(), pos_logit.detach(), rank, argmax)


def _masked(
    sim: Tensor,
    targets: Tensor,
    num_docs: int,
    query_ids: Tensor | None,
    doc_ids: Tensor | None,
    hard_neg_ids: Tensor | None,
    everyone: bool,
) -> Tensor:
    """Columns that carry the id of the row's positive, and hard negatives that are padding."""
    masked = torch.zeros_like(sim, dtype=torch.bool)
    if doc_ids is None and query_ids is not None:
        doc_ids = targets.new_full((num_docs,), -1).scatter(0, targets, query_ids)
    if hard_neg_ids is not None:
        columns = hard_neg_ids.reshape(1, -1) if everyone else hard_neg_ids
        masked[:, num_docs:] |= columns < 0
    if doc_ids is None:
        return masked
    row_ids = (doc_ids[targets] if query_ids is None else query_ids).unsqueeze(1)
    masked[:, :num_docs] |= (doc_ids == row_ids) & (row_ids >= 0)
    if hard_neg_ids is not None:
        masked[:, num_docs:] |= (columns == row_ids) & (row_ids >= 0)
    return masked


def _reduced(rows: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if weight is not None:
        rows = rows * weight
    if reduction == "none":
        return rows
    total = rows.sum()
    if reduction == "sum":
        return total
    count = rows.new_tensor(float(rows.shape[0])) if weight is None else weight.sum()
    return torch.where(count == 0, torch.zeros_like(total), total / count.masked_fill(count == 0, 1.0))
