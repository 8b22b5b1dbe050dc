"""In-batch softmax ranking as a module, with a scale that can be learned."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

import xfercore
from xfercore.reference import InBatchSoftmax

__all__ = ["InBatchSoftmaxLoss"]


class InBatchSoftmaxLoss(nn.Module):
    r"""Every query ranks the documents of the whole batch: :func:`xfercore.inbatch_softmax_loss` for any training loop.

    .. math:: \ell_i = \log \sum_j e^{s (\langle u_i, v_j \rangle - m [j = y_i])} - s (\langle u_i, v_{y_i} \rangle - m)

    Equation 1 of Chidambaram et al. (2019), with a scale s (inverse temperature) and a margin m.

    Args:
        scale: factor of the similarities; where it is learned, its first value.
        learn_scale: make the scale a parameter, kept as its logarithm (CLIP, Radford et al. 2021).
        max_scale: largest value that a learned scale takes effect with. A training step that finds it above sets it
            back (as CLIP does): clamped alone it would have no gradient there, and would never come down again.
        margin: taken off the positive's similarity.
        normalize: compare by cosine; otherwise by the plain inner product.
        symmetric: rank queries for documents as well, and take the mean of both.
        hard_neg_scope: ``"own"`` or ``"all"``, the rows that a hard negative competes in.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        workspace_bytes: memory for blocks of logits; None: the op's default.
        group: process group whose ranks share their documents. Each rank's loss is that of its own queries; gradients
            are those of the sum over ranks.

    Raises:
        ValueError: for a scale that is not above 0, or above ``max_scale`` where it is learned.
    """

    def __init__(
        self,
        scale: float = 20.0,
        *,
        learn_scale: bool = False,
        max_scale: float = 100.0,
        margin: float = 0.0,
        normalize: bool = True,
        symmetric: bool = False,
        hard_neg_scope: str = "own",
        reduction: str = "mean",
        workspace_bytes: int | None = None,
        group: Any = None,
    ) -> None:
        super().__init__()
        if not (0.0 < scale < math.inf):
            raise ValueError(f"InBatchSoftmaxLoss: scale must be above 0, got {scale}")
        if learn_scale and scale > max_scale:
            raise ValueError(
                f"InBatchSoftmaxLoss: scale must be at most max_scale = {max_scale}, got {scale}"
            )
        self.fixed_scale, self.max_scale = float(scale), float(max_scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learn_scale else None
        self.margin, self.normalize, self.symmetric = margin, normalize, symmetric
        self.hard_neg_scope, self.reduction = hard_neg_scope, reduction
        self.workspace_bytes, self.group = workspace_bytes, group

    @property
    def scale(self) -> float | Tensor:
        """The scale in effect; a 0-dim tensor where it is learned."""
        if self.log_scale is None:
            return self.fixed_scale
        # In float32 at least, for bfloat16 rounds it by 0.4 %. The clamp stays outside the graph: it has no gradient
        # above the ceiling, and would keep the parameter for the backward pass, though a later forward may set it back.
        log_scale = self.log_scale.to(torch.promote_types(self.log_scale.dtype, torch.float32))
        return (log_scale - (log_scale.detach() - math.log(self.max_scale)).clamp(min=0.0)).exp()

    def forward(
        self,
        u: Tensor,
        v: Tensor,
        hard_neg: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        query_ids: Tensor | None = None,
        doc_ids: Tensor | None = None,
        hard_neg_ids: Tensor | None = None,
        row_weight: Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | InBatchSoftmax:
        """The loss in float32, or with ``return_stats`` the named tuple of the op.

        Args:
            u: queries ``[num_queries, dim]``.
            v: documents ``[num_docs, dim]``; document i is that of query i, unless ``targets`` says otherwise.
            hard_neg: ``[num_queries, num_hard, dim]`` or None.
            targets: int64 ``[num_queries]``.
            query_ids: int64 ``[num_queries]``, ids of the positives; documents that carry them are no negatives.
            doc_ids: int64 ``[num_docs]``.
            hard_neg_ids: int64 ``[num_queries, num_hard]``; negative: padding.
            row_weight: ``[num_queries]``, a constant weight of each row.
            return_stats: add log-sum-exp, the positive's logit, its rank and the best column.
        """
        if self.log_scale is not None and self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.max_scale))
        return xfercore.inbatch_softmax_loss(
            u,
            v,
            hard_neg=hard_neg,
            targets=targets,
            scale=self.scale,
            margin=self.margin,
            normalize=self.normalize,
            query_ids=query_ids,
            doc_ids=doc_ids,
            hard_neg_ids=hard_neg_ids,
            hard_neg_scope=self.hard_neg_scope,
            row_weight=row_weight,
            symmetric=self.symmetric,
            reduction=self.reduction,
            workspace_bytes=self.workspace_bytes,
            group=self.group,
            return_stats=return_stats,
        )

    def extra_repr(self) -> str:
        """The settings that are not the default's."""
        scale = self.scale if isinstance(self.scale, float) else float(self.scale.detach())
        learned = "" if self.log_scale is None else ", learned"
        return f"scale={scale:.4g}{learned}, margin={self.margin}, symmetric={self.symmetric}"

    def __deepcopy__(self, memo: dict[int, Any]) -> InBatchSoftmaxLoss:
        memo[id(self.group)] = (
            self.group
        )  # a process group cannot be copied: the copy speaks to the same ranks
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new
