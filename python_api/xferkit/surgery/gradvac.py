"""Methods that go through pairs of tasks and turn one gradient towards the other: GradVac, PCGrad, a fixed target."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from xfercore import gradvac_coef, pcgrad_coef
from xferkit.surgery.base import Surgery
from xferkit.surgery.grouping import Grouping
from xferkit.surgery.info import cosines
from xferkit.surgery.passes import BackwardName
from xferkit.surgery.shared import Shared
from xferkit.surgery.state import Axes
from xferkit.surgery.step import Solution, Step

__all__ = ["FixedTarget", "GradVac", "PCGrad", "PairwiseSurgery"]


class PairwiseSurgery(Surgery):
    """What GradVac, PCGrad and a fixed target share: pairs in an order drawn anew, and tasks that get surgery.

    The order of the pairs is a function of ``seed`` and a counter of steps alone: the same on every device, and
    without torch's random generators.

    Args:
        shared, tasks, grouping, task_weights, backward: as for :class:`Surgery`.
        apply_to: the tasks whose gradients are changed (the low-resource ones, say); the others are what they are set
            against. None: all.
        seed: of the order.

    Raises:
        ValueError, RuntimeError: as :class:`Surgery`.
    """

    def __init__(
        self,
        shared: Shared,
        tasks: Iterable[str],
        *,
        grouping: Grouping = "model",
        apply_to: Iterable[str] | None = None,
        task_weights: Mapping[str, float] | None = None,
        seed: int = 0,
        backward: BackwardName = "loop",
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise ValueError(f"{type(self).__name__}: seed must be a whole number of 64 bits, got {seed!r}")
        self.seed = seed
        super().__init__(shared, tasks, grouping=grouping, task_weights=task_weights, backward=backward)
        self.apply_to = self._tasks.subset("apply_to", apply_to)

    def _initial_state(self) -> dict[str, tuple[Tensor, Axes]]:
        seed_step = torch.tensor([self.seed, 0], dtype=torch.int64, device=self._shared.device)
        return {"seed_step": (seed_step, ("other",))}

    @property
    def seed_step(self) -> Tensor:
        """``int64[2]``: the seed, and how many steps were made."""
        return self.state.get_buffer("seed_step")

    def _solve(self, step: Step) -> Solution:
        solution = self._pairs(step, self._mask(step))
        self.seed_step[1] += step.finite
        return solution

    @abstractmethod
    def _pairs(self, step: Step, apply_to: Tensor | None) -> Solution:
        """The coefficients, for the tasks that get surgery (``bool[t]``; None: all)."""

    def _mask(self, step: Step) -> Tensor | None:
        if self.apply_to == self.tasks:
            return None
        chosen = [self.tasks[n] in self.apply_to for n in step.numbers]
        return self._keep(("apply_to", step.numbers), lambda: torch.tensor(chosen, device=step.gram.device))


class GradVac(PairwiseSurgery):
    r"""Gradient Vaccine: gradients are turned until their cosine is what it has been on average.

    For each group k and task i, over the other tasks j in random order, with :math:`\phi = \cos(g'_i, g_j)` and the
    moving average :math:`\hat\phi_{kij}` of this pair:

    .. math::
        g'_i \mathrel{+}= \frac{\lVert g'_i\rVert(\hat\phi\sqrt{1-\phi^2} - \phi\sqrt{1-\hat\phi^2})}
            {\lVert g_j\rVert\sqrt{1-\hat\phi^2}}\, g_j \quad\text{if } \phi < \hat\phi, \qquad
        \hat\phi \leftarrow (1-\beta)\hat\phi + \beta\phi

    and the combined gradient is :math:`\sum_i g'_i`. Wang et al., *Gradient Vaccine*, ICLR 2021, Algorithm 2. A task
    that is absent, and one whose gradient is zero, leaves its averages as they are.

    Args:
        shared, tasks, grouping, task_weights, backward: as for :class:`Surgery`. The paper groups by layer.
        apply_to, seed: as for :class:`PairwiseSurgery`. The paper applies it to low-resource languages.
        beta: in [0, 1], the weight of the newest cosine in the average.
        ema: ``"modified"``: the average takes the cosine of the gradient as modified so far (the paper's algorithm);
            ``"raw"``: of the tasks' own gradients, whatever the order of the pairs.

    Raises:
        ValueError, RuntimeError: as :class:`Surgery`.
    """

    def __init__(
        self,
        shared: Shared,
        tasks: Iterable[str],
        *,
        grouping: Grouping = "model",
        apply_to: Iterable[str] | None = None,
        task_weights: Mapping[str, float] | None = None,
        beta: float = 1e-2,
        ema: Literal["modified", "raw"] = "modified",
        seed: int = 0,
        backward: BackwardName = "loop",
    ) -> None:
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0.0 <= beta <= 1.0:
            raise ValueError(f"GradVac: beta must be in [0, 1], got {beta!r}")
        if ema not in ("modified", "raw"):
            raise ValueError(f"GradVac: ema must be 'modified' or 'raw', got {ema!r}")
        self.beta, self.ema_of = float(beta), ema
        super().__init__(
            shared,
            tasks,
            grouping=grouping,
            apply_to=apply_to,
            task_weights=task_weights,
            seed=seed,
            backward=backward,
        )

    def _initial_state(self) -> dict[str, tuple[Tensor, Axes]]:
        num = len(self.tasks)
        ema = torch.zeros(len(self.groups), num, num, dtype=torch.float64, device=self._shared.device)
        return {**super()._initial_state(), "ema": (ema, ("group", "task", "task"))}

    @property
    def ema(self) -> Tensor:
        """``float64[K, T, T]``: the moving averages, of g'_i with g_j."""
        return self.state.get_buffer("ema")

    def _pairs(self, step: Step, apply_to: Tensor | None) -> Solution:
        ema = step.take(self.ema, 1, 2)
        raw = self.ema_of == "raw"
        result = gradvac_coef(
            step.gram,
            None if raw else ema,
            beta=0.0 if raw else self.beta,
            target=ema if raw else None,
            seed_step=self.seed_step,
            apply_to=apply_to,
        )
        new = self._raw_average(step, ema, result.cosine) if raw else result.ema
        step.keep(self.ema, new, 1, 2)
        return Solution(result.weights, result.cosine, result.moved)

    def _raw_average(self, step: Step, ema: Tensor, visited: Tensor) -> Tensor:
        cosine = cosines(step.gram)
        return torch.where(visited.isnan(), ema, torch.lerp(ema, cosine, self.beta))


class PCGrad(PairwiseSurgery):
    r"""Projecting conflicting gradients: one that points against another loses its component along it.

    .. math:: g'_i \mathrel{-}= \frac{\langle g'_i, g_j\rangle}{\lVert g_j\rVert^2}\, g_j
        \quad\text{if } \langle g'_i, g_j\rangle < 0

    Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, Algorithm 1; :class:`FixedTarget` at 0.

    Args:
        shared, tasks, grouping, task_weights, backward: as for :class:`Surgery`.
        apply_to, seed: as for :class:`PairwiseSurgery`.

    Raises:
        ValueError, RuntimeError: as :class:`Surgery`.
    """

    def _pairs(self, step: Step, apply_to: Tensor | None) -> Solution:
        result = pcgrad_coef(step.gram, seed_step=self.seed_step, apply_to=apply_to)
        return Solution(result.weights, result.cosine, result.moved)


class FixedTarget(PairwiseSurgery):
    """GradVac with a target that stays: pairs below it are lifted to it, exactly.

    Wang et al., *Gradient Vaccine*, ICLR 2021, Eq. 6.3 of the thesis, with a constant for the moving average.

    Args:
        shared, tasks, grouping, task_weights, backward: as for :class:`Surgery`.
        target: the cosine, in (-1, 1); or one for each pair, ``[T, T]`` or ``[K, T, T]`` in the order of ``tasks``
            (the one that is changed first).
        apply_to, seed: as for :class:`PairwiseSurgery`.

    Raises:
        ValueError, RuntimeError: as :class:`Surgery`.
    """

    def __init__(
        self,
        shared: Shared,
        tasks: Iterable[str],
        *,
        target: float | Tensor,
        grouping: Grouping = "model",
        apply_to: Iterable[str] | None = None,
        task_weights: Mapping[str, float] | None = None,
        seed: int = 0,
        backward: BackwardName = "loop",
    ) -> None:
        super().__init__(
            shared,
            tasks,
            grouping=grouping,
            apply_to=apply_to,
            task_weights=task_weights,
            seed=seed,
            backward=backward,
        )
        self.target: float | Tensor
        if isinstance(target, Tensor):
            num, shapes = len(self.tasks), ([len(self.tasks)] * 2, [len(self.groups), *[len(self.tasks)] * 2])
            if list(target.shape) not in shapes or not bool((target.abs() < 1).all()):
                raise ValueError(
                    f"FixedTarget: target must be cosines in (-1, 1) of shape {shapes[0]} or {shapes[1]}, got shape "
                    f"{list(target.shape)}"
                )
            self.target = target.detach().double().expand(len(self.groups), num, num).clone()
        else:
            number = isinstance(target, (int, float)) and not isinstance(target, bool)
            if not number or not math.isfinite(target) or not -1 < target < 1:
                raise ValueError(f"FixedTarget: target must be a cosine in (-1, 1), got {target!r}")
            self.target = float(target)

    def _pairs(self, step: Step, apply_to: Tensor | None) -> Solution:
        target = self.target
        if isinstance(target, Tensor):
            self.target = target = target.to(step.gram.device)
            target = step.take(target, 1, 2)
        result = gradvac_coef(step.gram, beta=0.0, target=target, seed_step=self.seed_step, apply_to=apply_to)
        return Solution(result.weights, result.cosine, result.moved)
