"""Learning-rate schedules as factors over a stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

__all__ = ["ScheduleKind", "make_schedule"]

ScheduleKind = Literal["constant", "cosine"]


def make_schedule(kind: ScheduleKind, steps: int) -> Callable[[int], float]:
    """The factor on the base learning rate at step t = 0..steps-1.

    ``"constant"`` is 1; ``"cosine"`` is ``(1 + cos(pi t / steps)) / 2``, from 1 towards 0.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "constant":
        return lambda step: 1.0
    if kind == "cosine":
        return lambda step: 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / max(steps, 1)))
    raise ValueError(f"schedule must be 'constant' or 'cosine', got {kind!r}")
