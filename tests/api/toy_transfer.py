"""Training functions whose transfer is known, for the tests of ``xferkit.transfer``; none of them trains anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xferkit.transfer import Run

__all__ = ["EFFECTS", "Known", "Recorder", "by_steps", "by_total", "ignores_sources", "per_example"]

#: What each source adds to ``en``, in accuracy.
EFFECTS = {"de": 0.04, "fr": -0.06, "xx": 0.0}


def ignores_sources(tasks: tuple[str, ...], seed: int) -> dict[str, float]:
    """Each task's score depends on its own name and the seed, never on its company."""
    return {task: float(np.random.default_rng([seed, *map(ord, task)]).random()) for task in tasks}


def by_steps(tasks: tuple[str, ...], seed: int, run: Run) -> dict[str, float]:
    """Ignores the sources, but learns from its own steps: 1 - 1 / steps, and something of the seed's own."""
    return {task: 1.0 - 1.0 / steps + 1e-3 * seed for task, steps in run.steps(100).items()}


def by_total(tasks: tuple[str, ...], seed: int, matching: str) -> dict[str, float]:
    """As :func:`by_steps`, told the matching alone."""
    share = 1 if matching == "per_task_steps" else len(tasks)
    return {task: 1.0 - share / 100.0 + 1e-3 * seed for task in tasks}


def per_example(tasks: tuple[str, ...], seed: int) -> dict[str, np.ndarray]:
    """200 examples right or wrong; ``fr`` beside it makes 20 more of them wrong for ``en``."""
    found = {}
    for task in tasks:
        right = np.random.default_rng([seed, *map(ord, task)]).random(200) < 0.8
        if task == "en" and "fr" in tasks:
            right[:20] = False
        found[task] = right
    return found


@dataclass(frozen=True)
class Known:
    """``en`` gains :data:`EFFECTS` from its sources, with noise over seeds and task sets; other tasks gain nothing.

    Attributes:
        noise: deviation of the noise of a run.
        log: a file that gets a line a call, whichever process makes it; None: none.
    """

    noise: float = 0.005
    log: str | None = None

    def __call__(self, tasks: tuple[str, ...], seed: int) -> dict[str, float]:
        if self.log is not None:
            with Path(self.log).open("a", encoding="utf-8") as file:
                file.write(f"{'+'.join(tasks)} {seed}\n")
        generator = np.random.default_rng([seed, *map(ord, "".join(tasks))])
        noise = self.noise * generator.standard_normal(len(tasks))
        gains = [sum(EFFECTS[t] for t in tasks if t != "en") if task == "en" else 0.0 for task in tasks]
        return {task: 0.7 + gain + float(e) for task, gain, e in zip(tasks, gains, noise, strict=True)}


class Recorder:
    """Calls another function, keeps the calls, and fails at one of them."""

    def __init__(
        self,
        function: Callable[[tuple[str, ...], int], dict[str, float]] | None = None,
        fail_at: int | None = None,
    ) -> None:
        self.function, self.fail_at = function or Known(), fail_at
        self.calls: list[tuple[tuple[str, ...], int]] = []

    def train(self, tasks: tuple[str, ...], seed: int) -> dict[str, float]:
        if len(self.calls) + 1 == self.fail_at:
            raise MemoryError("the machine went down")
        self.calls.append((tasks, seed))
        return self.function(tasks, seed)
