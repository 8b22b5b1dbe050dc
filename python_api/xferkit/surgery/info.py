"""What a step of surgery saw and did, as tensors that nobody waited for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SurgeryInfo", "cosines"]


@dataclass(frozen=True)
class SurgeryInfo:
    """One step of surgery on t tasks and K groups of parameters.

    Attributes:
        tasks: the t tasks that had a loss, in the order in which they were declared.
        groups: the K groups' names.
        weights: ``float64[K, t]``: the combined gradient of group k is ``sum_j weights[k, j] g_j``.
        losses: ``float64[t]``, as they were given, over all parts of the step.
        gram: ``float64[K, t, t]``, inner products of the tasks' gradients, weighted by ``task_weights`` where there are
            any, without the loss scale; None where none were taken apart (:class:`Sum`).
        cosine: ``float64[K, t, t]``: of the gradient of task i, as modified so far, with that of j, when the pair was
            visited; NaN where it was not. None for methods that visit no pairs.
        moved: bool, same shape: whether the visit moved the gradient of i.
    """

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    weights: Tensor
    losses: Tensor
    gram: Tensor | None = None
    cosine: Tensor | None = None
    moved: Tensor | None = None

    @property
    def similarity(self) -> Tensor:
        """``float64[K, t, t]``: pairwise cosines of the tasks' gradients; NaN where one is zero."""
        return cosines(self._gram())

    @property
    def model_similarity(self) -> Tensor:
        """``float64[t, t]``: the same over all groups together, since Gram matrices of groups add up."""
        return cosines(self._gram().sum(0))

    @property
    def active(self) -> Tensor:
        """``float64[K]``: the share of visited pairs that were moved; NaN in groups without a visit."""
        if self.cosine is None or self.moved is None:
            raise ValueError(
                "SurgeryInfo.active: this method visits no pairs; expected GradVac, PCGrad or FixedTarget"
            )
        visited = (~self.cosine.isnan()).sum((1, 2))
        return self.moved.sum((1, 2)).double() / visited

    def _gram(self) -> Tensor:
        if self.gram is None:
            raise ValueError("SurgeryInfo: Sum takes no task's gradient apart, so there are no cosines")
        return self.gram


def cosines(gram: Tensor) -> Tensor:
    """``[..., t, t]``: the cosines that belong to inner products; NaN where a vector is zero."""
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return torch.clamp(gram / (norms.unsqueeze(-1) * norms.unsqueeze(-2)), -1.0, 1.0)
