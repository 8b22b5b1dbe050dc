"""Which weights are kept: those of the best evaluation on the data that selection may look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xferkit.trainers.config import Selection

__all__ = ["BestWeights"]


class BestWeights:
    """Best score so far, the weights it had, and how many evaluations have passed since.

    Args:
        select: which score counts; ``"last"`` keeps no copy.
        patience: evaluations without a better score after which :attr:`exhausted` is True; 0: never.
    """

    def __init__(self, select: Selection, patience: int) -> None:
        self.select, self.patience = select, patience
        self.score, self.step, self.since = -math.inf, 0, 0
        self.weights: dict[str, Tensor] | None = None

    @property
    def key(self) -> str:
        """Name of the score that selects."""
        return f"{self.select}/score"

    @property
    def exhausted(self) -> bool:
        """Whether training should stop early."""
        return 0 < self.patience <= self.since

    def is_better(self, scores: Mapping[str, float], step: int) -> bool:
        """Note an evaluation; True when its weights are the best so far. NaN is never better.

        Raises:
            ValueError: when the evaluation lacks the score that selects.
        """
        if self.select == "last":
            return False
        if self.key not in scores:
            raise ValueError(
                f"Trainer: select={self.select!r} needs {self.key!r} from evaluate, got {sorted(scores)}"
            )
        score = float(scores[self.key])
        if score > self.score and math.isfinite(score):
            self.score, self.step, self.since = score, step, 0
            return True
        self.since += 1
        return False

    def state(self) -> dict[str, Any]:
        """Everything but the weights, for a checkpoint."""
        return {"score": self.score, "step": self.step, "since": self.since}

    def restore(self, state: Mapping[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Take over a checkpoint's state."""
        self.score, self.step, self.since = float(state["score"]), int(state["step"]), int(state["since"])
        self.weights = weights
