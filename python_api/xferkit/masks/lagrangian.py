"""The price of kept parameters while masks are trained: a fixed weight, or one that is learned to reach a sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

__all__ = ["FixedPrice", "LagrangianPrice", "Price"]


class Price(Protocol):
    """What one step of training adds to the loss: a function of the expected sparsity s, through its slope."""

    def slope(self, sparsity: float, step: int, loss_grad: float, sparsity_grad: float) -> float:
        """d price / d s at this step, before :meth:`ascend`.

        Args:
            sparsity: expected, now.
            step: number from 0.
            loss_grad, sparsity_grad: sums of the absolute derivatives by log alpha of the loss and of s.
        """
        ...

    def ascend(self, sparsity: float, step: int) -> None:
        """Learn from how far the target was missed."""
        ...

    def multipliers(self) -> tuple[float, float]:
        """Those of the linear and of the square term."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All of it, to the last bit."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        ...


class FixedPrice:
    """``weight * (1 - s)``: the L0 penalty as a fraction of all that is masked.

    Args:
        weight: price of keeping everything.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def slope(self, sparsity: float, step: int, loss_grad: float, sparsity_grad: float) -> float:
        """``-weight``."""
        return -self.weight

    def ascend(self, sparsity: float, step: int) -> None:
        """Nothing is learned."""

    def multipliers(self) -> tuple[float, float]:
        """The weight, and no square term."""
        return self.weight, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the weight is a setting."""
        return {"price": torch.zeros(0, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class LagrangianPrice:
    r"""A price that drives the expected sparsity s to a target t.

    .. math:: \max_{\lambda_1, \lambda_2} \min_\alpha \; \ell(\alpha) + c \lambda_1 (t - s) + c \lambda_2 (t - s)^2

    with both multipliers learned by gradient ascent, and a target that rises linearly from 0 over the first
    steps: Wang, Wohlwend and Lei, "Structured Pruning of Large Language Models" (EMNLP 2020).

    They have c = 1, and multipliers that fit one loss and one number of gates are far off for another. Here
    :math:`c = \sum \lVert \nabla \ell \rVert_1 / \sum \lVert \nabla s \rVert_1` over the steps so far, so that
    settings hold whatever the loss is multiplied by.

    Args:
        target: sparsity to reach, in [0, 1).
        warmup: steps over which the target rises.
        lr: step size of the ascent.
        start: the second multiplier at the start; large ones keep s on its way to the target.
    """

    def __init__(self, target: float, *, warmup: int, lr: float, start: float) -> None:
        self.target, self.warmup, self.lr = target, warmup, lr
        self.first, self.second = 0.0, start
        self.loss_grad, self.sparsity_grad = 0.0, 0.0

    def missed(self, sparsity: float, step: int) -> float:
        """Target of that step minus sparsity."""
        share = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.target * share - sparsity

    def slope(self, sparsity: float, step: int, loss_grad: float, sparsity_grad: float) -> float:
        """``-c (first + 2 second (t - s))``, with these gradients in c."""
        self.loss_grad += loss_grad
        self.sparsity_grad += sparsity_grad
        unit = self.loss_grad / self.sparsity_grad if self.loss_grad and self.sparsity_grad else 1.0
        return -unit * (self.first + 2 * self.second * self.missed(sparsity, step))

    def ascend(self, sparsity: float, step: int) -> None:
        """Raise both along their slopes, ``t - s`` and its square."""
        missed = self.missed(sparsity, step)
        self.first += self.lr * missed
        self.second += self.lr * missed**2

    def multipliers(self) -> tuple[float, float]:
        """Both, without c."""
        return self.first, self.second

    def state_dict(self) -> dict[str, Any]:
        """Multipliers and sums of gradients."""
        values = [self.first, self.second, self.loss_grad, self.sparsity_grad]
        return {"price": torch.tensor(values, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.first, self.second, self.loss_grad, self.sparsity_grad = state["price"].tolist()
