"""Learning rates as a pure function of the step within a stage, so that they need no state of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from torch.optim import Optimizer

__all__ = ["LearningRates", "ScheduleKind", "make_schedule"]

ScheduleKind = Literal["constant", "cosine", "linear"]


def make_schedule(kind: ScheduleKind, steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """The factor on the base learning rate at step t = 0..steps-1.

    ``"constant"`` is 1; ``"cosine"`` is ``(1 + cos(pi t / steps)) / 2`` and ``"linear"`` is
    ``1 - t / steps``, both from 1 towards 0. With w warm-up steps the factor is ``(t + 1) / w`` for t < w, and
    the schedule then spans the other steps.

    Raises:
        ValueError: for an unknown kind.
    """
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda done: 1.0,
        "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
        "linear": lambda done: 1.0 - done,
    }
    if kind not in shapes:
        raise ValueError(f"schedule must be one of {', '.join(map(repr, shapes))}, got {kind!r}")
    shape, span = shapes[kind], max(steps - warmup_steps, 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return shape(min(step - warmup_steps, span) / span)

    return factor


class LearningRates:
    """Sets the rates of all optimisers; the rate a method gave its optimiser is the base.

    Args:
        optimizers: by name, with the rates that a factor of 1 stands for.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._optimizers = optimizers
        self._base = {
            name: [float(group["lr"]) for group in optimizer.param_groups]
            for name, optimizer in optimizers.items()
        }

    def set(self, factor: float, names: tuple[str, ...]) -> dict[str, float]:
        """Multiply the base rates of the named optimisers by ``factor``; the rates of their first groups."""
        for name in names:
            groups = self._optimizers[name].param_groups
            for group, base in zip(groups, self._base[name], strict=True):
                group["lr"] = base * factor
        return {name: self._base[name][0] * factor for name in names}
