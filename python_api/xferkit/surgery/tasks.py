"""Names of tasks, and their losses as a person gives them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from xferkit.surgery.passes import reaches
from xferkit.surgery.shared import SharedParameters

__all__ = ["Loss", "Losses", "TaskNames", "check_loss"]

Loss = Tensor | Callable[[], Tensor]
Losses = Mapping[str, Loss]
"""A scalar for each task that is there, or a function without arguments that computes it."""


class TaskNames:
    """The tasks there may be, in the order in which they were declared.

    Args:
        owner: whose errors these are.
        names: at least one, all different.

    Raises:
        ValueError: no name, one given twice, or one that is no text.
    """

    def __init__(self, owner: str, names: Iterable[str]) -> None:
        self.owner = owner
        self.names = self._different("tasks", names)
        self._numbers = {name: n for n, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def number(self, name: str) -> int:
        """The place of that task.

        Raises:
            ValueError: there is no such task; the sentence has the nearest one.
        """
        if name not in self._numbers:
            near = difflib.get_close_matches(str(name), self.names, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise ValueError(
                f"{self.owner}: unknown task {name!r}, expected one of {', '.join(self.names)}{hint}"
            )
        return self._numbers[name]

    def subset(self, argument: str, names: Iterable[str] | None) -> tuple[str, ...]:
        """Some of the tasks, in order; all for None.

        Raises:
            ValueError: a name that is unknown or given twice.
        """
        if names is None:
            return self.names
        chosen = {self.number(name) for name in self._different(argument, names)}
        return tuple(name for n, name in enumerate(self.names) if n in chosen)

    def weights(self, given: Mapping[str, float] | None) -> list[float]:
        """A weight for each task, 1 where none is given.

        Raises:
            ValueError: an unknown task, or a weight that is no positive number.
        """
        weights = [1.0] * len(self)
        for name, weight in (given or {}).items():
            number = self.number(name)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ValueError(
                    f"{self.owner}: the weight of task {name!r} must be a positive number, got {weight!r}"
                )
            weights[number] = float(weight)
        return weights

    def in_order(self, losses: Losses) -> list[tuple[str, Loss]]:
        """The losses in the order of the tasks.

        Raises:
            ValueError: an unknown task, none at all, or no mapping.
        """
        if not isinstance(losses, Mapping) or not losses:
            got = "an empty one" if isinstance(losses, Mapping) else f"a {type(losses).__name__}"
            raise ValueError(f"{self.owner}: expected a mapping from tasks to losses, got {got}")
        return [(name, losses[name]) for name in sorted(losses, key=self.number)]

    def _different(self, argument: str, given: Iterable[str]) -> tuple[str, ...]:
        if isinstance(given, str):
            raise ValueError(f"{self.owner}: {argument} must be a list of names, got the text {given!r}")
        names = tuple(given)
        if not names:
            raise ValueError(f"{self.owner}: {argument} must name at least one task, got none")
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"{self.owner}: {argument} must be names (texts), got {name!r}")
            if names.count(name) > 1:
                raise ValueError(f"{self.owner}: {argument} names {name!r} twice; expected each task once")
        return names


def check_loss(owner: str, name: str, loss: Any, shared: SharedParameters) -> Tensor:
    """The loss itself.

    Raises:
        ValueError: it is no scalar, does not require grad, or reaches no shared parameter.
    """
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"{owner}: the loss of {name!r} must be a scalar tensor, or a function that computes one, got a "
            f"{type(loss).__name__}"
        )
    if loss.numel() != 1:
        raise ValueError(f"{owner}: the loss of {name!r} must be a scalar, got shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError(
            f"{owner}: the loss of {name!r} does not require grad; expected one computed from the shared parameters "
            "with gradients enabled"
        )
    if not reaches(loss, shared.__contains__):
        raise ValueError(
            f"{owner}: the loss of {name!r} reaches no shared parameter; expected one computed from them"
        )
    return loss
