"""Pairs and hard negatives from embeddings, by exact search that never holds the matrix of similarities."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

import xfercore

__all__ = ["BitextPairs", "mine_bitext", "mine_hard_negatives"]


class BitextPairs(NamedTuple):
    """Mined pairs, best first.

    Attributes:
        scores: float ``[n]``.
        source: int64 ``[n]``, rows of the source embeddings.
        target: int64 ``[n]``, rows of the target embeddings.
    """

    scores: Tensor
    source: Tensor
    target: Tensor


@torch.no_grad()
def mine_bitext(
    source: Tensor,
    target: Tensor,
    *,
    k: int = 4,
    margin: Literal["ratio", "distance", "absolute"] = "ratio",
    threshold: float | None = None,
    workspace_bytes: int | None = None,
) -> BitextPairs:
    r"""Translation pairs by margin-based scoring (Artetxe and Schwenk, ACL 2019, equation 2).

    .. math:: \mathrm{score}(x, y) = f\Bigl(\cos(x, y),\ \tfrac12 \bigl(r_k(x) + r_k(y)\bigr)\Bigr)

    where :math:`r_k` is the mean cosine to the k nearest of the other side, and f is the ratio, the difference, or the
    cosine alone. Candidates are each sentence's k nearest in both directions; every sentence is used once, the best
    pairs first (their "max" retrieval). The ratio is one of positive numbers: where a neighbourhood's mean is not above
    0, a cosine above 0 scores infinity, and any other is no candidate. Nor is a score that is not a number.

    Args:
        source: ``[num_source, dim]``.
        target: ``[num_target, dim]``, same dtype.
        k: neighbourhood, cut to the number of sentences there are.
        margin: f; "ratio" is the paper's best.
        threshold: least score of a pair; None: all.
        workspace_bytes: as in :func:`xfercore.topk_similarity`.

    Returns:
        At most min(num_source, num_target) pairs. Equal scores: the lower source, then target index first.

    Raises:
        ValueError: for an unknown margin, a k below 1, or embeddings that do not fit each other.
    """
    if margin not in ("ratio", "distance", "absolute"):
        raise ValueError(f"mine_bitext: margin must be ratio, distance or absolute, got {margin!r}")
    if k < 1:
        raise ValueError(f"mine_bitext: k must be 1 or more, got {k}")
    if source.shape[0] == 0 or target.shape[0] == 0:
        none = torch.zeros(0, dtype=torch.int64, device=source.device)
        return BitextPairs(torch.zeros(0, device=source.device), none, none)
    x, y = _unit(source), _unit(target)
    near_y, of_x = xfercore.topk_similarity(x, y, min(k, y.shape[0]), workspace_bytes=workspace_bytes)
    near_x, of_y = xfercore.topk_similarity(y, x, min(k, x.shape[0]), workspace_bytes=workspace_bytes)
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1).expand_as(of_x)
    columns = torch.arange(y.shape[0], device=x.device).unsqueeze(1).expand_as(of_y)
    sources = torch.cat([rows.flatten(), of_y.flatten()])
    targets = torch.cat([of_x.flatten(), columns.flatten()])
    cosine = torch.cat([near_y.flatten(), near_x.flatten()])
    around = (near_y.mean(1)[sources] + near_x.mean(1)[targets]) / 2
    scores = {"ratio": cosine / around, "distance": cosine - around, "absolute": cosine}[margin]
    if margin == "ratio":
        limit = torch.where(cosine > 0, torch.inf, torch.nan)
        scores = torch.where(around > 0, scores, limit.to(scores.dtype))
    order = _sorted(scores, sources, targets)
    order = order[~scores[order].isnan()]
    chosen: list[int] = []
    used_source, used_target = set(), set()
    found = zip(order.tolist(), sources[order].tolist(), targets[order].tolist(), strict=True)
    for place, i, j in found:
        if i in used_source or j in used_target:
            continue
        used_source.add(i)
        used_target.add(j)
        chosen.append(place)
    kept = torch.tensor(chosen, dtype=torch.int64, device=x.device)
    if threshold is not None:
        kept = kept[scores[kept] >= threshold]
    return BitextPairs(scores[kept], sources[kept], targets[kept])


def _sorted(scores: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    order = torch.argsort(targets, stable=True)
    order = order[torch.argsort(sources[order], stable=True)]
    return order[torch.argsort(scores[order], descending=True, stable=True)]


def _unit(t: Tensor) -> Tensor:
    return unit(t.detach().to(torch.promote_types(t.dtype, torch.float32)), dim=-1)


@torch.no_grad()
def mine_hard_negatives(
    queries: Tensor,
    docs: Tensor,
    positives: Tensor,
    *,
    k: int = 5,
    doc_ids: Tensor | None = None,
    max_ratio: float | None = None,
    skip: int = 0,
    normalize: bool = True,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""The k documents most similar to each query that are not its own, for ``hard_neg`` of the ranking loss.

    .. math:: H_i = \operatorname{top-}k \{ j : \mathrm{id}_j \ne \mathrm{id}_{y_i},\
        s_{ij} \le \mathrm{max\_ratio} \cdot s_{i y_i} \}

    Args:
        queries: ``[num_queries, dim]``.
        docs: ``[num_docs, dim]``, same dtype.
        positives: int64 ``[num_queries]``, each query's own document.
        k: how many.
        doc_ids: int64 ``[num_docs]``: documents with the id of the positive are its duplicates, never negatives; below
            0: no id, as in the loss.
        max_ratio: leave out what is more similar than this times the positive: likely another right answer.
            None: keep all.
        skip: leave out so many of the most similar first, for the same reason.
        normalize: compare by cosine.
        workspace_bytes: as in :func:`xfercore.topk_similarity`.

    Returns:
        int64 ``[num_queries, k]``, the most similar first, -1 where there are no more: what ``hard_neg_ids`` takes for
        padding.

    Raises:
        ValueError: for a k below 1, a negative skip, or a positive that is no document.
    """
    if k < 1 or skip < 0:
        raise ValueError(
            f"mine_hard_negatives: expected k of 1 or more and skip of 0 or more, got {k} and {skip}"
        )
    if positives.shape != queries.shape[:1]:
        raise ValueError(
            f"mine_hard_negatives: positives must have shape [{queries.shape[0]}], got {list(positives.shape)}"
        )
    if positives.dtype != torch.int64:
        raise ValueError(f"mine_hard_negatives: positives must be int64, got {positives.dtype}")
    bad = ((positives < 0) | (positives >= docs.shape[0])).nonzero()
    if bad.numel():
        row = int(bad[0])
        raise ValueError(
            f"mine_hard_negatives: positives[{row}] = {int(positives[row])} is out of range, expected a row of the "
            f"{docs.shape[0]} docs"
        )
    out = torch.full((queries.shape[0], k), -1, dtype=torch.int64, device=queries.device)
    ids = torch.arange(docs.shape[0], device=docs.device) if doc_ids is None else doc_ids
    x, y = (_unit(queries), _unit(docs)) if normalize else (queries.detach(), docs.detach())
    waiting = torch.arange(queries.shape[0], device=queries.device)
    looked_at = min(docs.shape[0], k + skip + 1)
    while waiting.numel():  # again, and further down, for those whose neighbours were mostly left out
        sims, near = xfercore.topk_similarity(x[waiting], y, looked_at, workspace_bytes=workspace_bytes)
        own = positives[waiting]
        own_id = ids[own].unsqueeze(1)
        usable = (near != own.unsqueeze(1)) & ((ids[near] != own_id) | (own_id < 0))
        if max_ratio is not None:
            own_sim = (x[waiting].to(sims.dtype) * y[own].to(sims.dtype)).sum(1, keepdim=True)
            usable &= sims <= max_ratio * own_sim
        place = usable.cumsum(1) - 1 - skip
        taken = usable & (place >= 0) & (place < k)
        rows = waiting.unsqueeze(1).expand_as(near)[taken]
        out[rows, place[taken]] = near[taken]
        short = usable.sum(1) < k + skip
        if looked_at == docs.shape[0]:
            break
        waiting = waiting[short]
        looked_at = min(docs.shape[0], 4 * looked_at)
    return out
