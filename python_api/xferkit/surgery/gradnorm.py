"""GradNorm: weights of the tasks that are learned until their gradients have like norms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from xfercore import gradnorm_stats
from xferkit.surgery.base import Surgery
from xferkit.surgery.grouping import Grouping
from xferkit.surgery.passes import BackwardName
from xferkit.surgery.shared import Shared
from xferkit.surgery.state import Axes
from xferkit.surgery.step import Solution, Step

__all__ = ["GradNorm"]


class GradNorm(Surgery):
    r"""Weights that bring the tasks' gradients to like norms, larger ones where a task learns slowly.

    .. math::
        L(w) = \sum_i \Bigl| w_i\lVert g_i\rVert - \overline{w\lVert g\rVert}\; r_i^{\,\alpha} \Bigr|, \qquad
        r_i = \frac{L_i / L_i^0}{\overline{L / L^0}}, \qquad w \leftarrow w - \eta\, \nabla_w L(w)

    then weights are kept above ``floor`` and scaled to sum to the number of tasks. The combined gradient is
    :math:`\sum_i w_i g_i` with the weights from before this step's update. Chen et al., *GradNorm*, ICML 2018,
    Algorithm 1. The initial loss of a task is that of the first step that has it; a step without a task leaves its
    weight. The weights are for the shared parameters; heads get their plain gradients.

    Args:
        shared, tasks, grouping, backward: as for :class:`Surgery`.
        task_weights: the weights to begin with, in proportion; 1 where not given.
        alpha: how strongly slow tasks are favoured.
        learning_rate: :math:`\eta`.
        norm_of: the gradients' norms are taken over the ``"last"`` group in the order of the parameters, over
            ``"all"``, or over the group of that name. The paper takes the last shared layer: ``grouping="layer"``.
        floor: the least weight.

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
        alpha: float = 1.5,
        learning_rate: float = 0.025,
        norm_of: str = "last",
        floor: float = 1e-3,
        backward: BackwardName = "loop",
    ) -> None:
        for name, value in (("alpha", alpha), ("learning_rate", learning_rate), ("floor", floor)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"GradNorm: {name} must be a number of at least 0, got {value!r}")
        if not 0 < floor < 1:
            raise ValueError(f"GradNorm: floor must be in (0, 1), got {floor!r}")
        self.alpha, self.learning_rate, self.floor = float(alpha), float(learning_rate), float(floor)
        super().__init__(shared, tasks, grouping=grouping, task_weights=task_weights, backward=backward)
        known = {"last": self.groups[-1:], "all": self.groups, **{name: (name,) for name in self.groups}}
        if norm_of not in known:
            raise ValueError(
                f"GradNorm: norm_of must be 'last', 'all' or one of the groups {', '.join(self.groups[:8])}, got "
                f"{norm_of!r}"
            )
        self.norm_of = known[norm_of]

    def _initial_state(self) -> dict[str, tuple[Tensor, Axes]]:
        start = torch.tensor(self.task_weights, dtype=torch.float64, device=self._shared.device)
        self.task_weights = [1.0] * len(self.tasks)  # the losses themselves are not weighed
        return {
            "weights": (start * (len(self.tasks) / start.sum()), ("task",)),
            "initial_losses": (torch.full_like(start, math.nan), ("task",)),
        }

    @property
    def weights(self) -> Tensor:
        """``float64[T]``: the tasks' weights, summing to T."""
        return self.state.get_buffer("weights")

    @property
    def initial_losses(self) -> Tensor:
        """``float64[T]``: the tasks' first losses; NaN before them."""
        return self.state.get_buffer("initial_losses")

    def _solve(self, step: Step) -> Solution:
        weights = step.take(self.weights, 0).clone()  # the state's own is written to below
        first = step.take(self.initial_losses, 0)
        first = torch.where(first.isnan(), step.losses, first)
        places = [k for k, name in enumerate(self.groups) if name in self.norm_of]
        gram = step.gram[places[0] : places[-1] + 1].sum(0, keepdim=True)
        found = gradnorm_stats(gram, step.losses, first, weights, alpha=self.alpha)
        moved = (weights - self.learning_rate * found.grad_weights[0]).clamp(min=self.floor)
        moved = moved * (weights.sum() / moved.sum())
        usable = moved.isfinite().all()  # an initial loss of 0 has no rate
        step.keep(self.weights, torch.where(usable, moved, weights), 0)
        step.keep(self.initial_losses, first, 0)
        return Solution(weights.expand(len(self.groups), len(weights)))
