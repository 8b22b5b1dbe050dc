"""Multiple-gradient descent: the shortest convex combination of the tasks' gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch

from xfercore import mgda_coef
from xferkit.surgery.base import Surgery
from xferkit.surgery.grouping import Grouping
from xferkit.surgery.passes import BackwardName
from xferkit.surgery.shared import Shared
from xferkit.surgery.step import Solution, Step

__all__ = ["MGDA", "Normalization"]

Normalization = Literal["none", "l2", "loss", "loss+"]


class MGDA(Surgery):
    r"""The combination that no convex combination of the gradients is shorter than.

    .. math:: \min_\alpha \Bigl\lVert \sum_j \alpha_j \frac{g_j}{s_j} \Bigr\rVert^2, \qquad
        \alpha_j \ge 0, \quad \sum_j \alpha_j = 1

    and the combined gradient is :math:`\sum_j \alpha_j g_j`, in each group by itself. Sener & Koltun, *Multi-Task
    Learning as Multi-Objective Optimization*, NeurIPS 2018, Eq. 3, and the normalisations of its authors' code.

    Args:
        shared, tasks, grouping, task_weights, backward: as for :class:`Surgery`.
        normalization: s: ``"none"``: 1; ``"l2"``: the gradient's norm in the group; ``"loss"``: the loss; ``"loss+"``:
            their product. The last two need positive losses: with another the combined gradient is NaN.

    Raises:
        ValueError, RuntimeError: as :class:`Surgery`.
    """

    def __init__(
        self,
        shared: Shared,
        tasks: Iterable[str],
        *,
        grouping: Grouping = "model",
        task_weights: Mapping[str, float] | None = None,
        normalization: Normalization = "none",
        backward: BackwardName = "loop",
    ) -> None:
        if normalization not in get_args(Normalization):
            raise ValueError(
                f"MGDA: normalization must be 'none', 'l2', 'loss' or 'loss+', got {normalization!r}"
            )
        self.normalization = normalization
        super().__init__(shared, tasks, grouping=grouping, task_weights=task_weights, backward=backward)

    def _solve(self, step: Step) -> Solution:
        scale = None
        if self.normalization != "none":
            norms = step.gram.diagonal(dim1=1, dim2=2).sqrt()
            scale = norms if self.normalization != "loss" else torch.ones_like(norms)
            if self.normalization != "l2":
                scale = scale * torch.where(step.losses > 0, step.losses, math.nan)
        return Solution(mgda_coef(step.gram, scale=scale).weights)
