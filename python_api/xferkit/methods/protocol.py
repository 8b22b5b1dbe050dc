"""What a trainer and a method agree on: batches of several languages, phases with an optimiser, stages.

A method joins a model, its objectives and the order of their updates. It describes that order as data, so
that one trainer can run any method: a *stage* is a number of steps; a step goes through the stage's
*phases* in order; a phase computes one loss on fresh batches, and then its optimisers step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.data.batches import DomainBatch

__all__ = ["DomainBatch", "Loop", "Method", "NextBatch", "Phase", "PhaseLoss", "Stage", "train_step"]


NextBatch = Callable[[str], DomainBatch]
"""Gives a fresh batch of the stream of that name."""


@dataclass(frozen=True)
class PhaseLoss:
    """A phase's loss and detached scalars to report.

    Attributes:
        total: a scalar to call backward on.
        metrics: scalars by name; the same names in every step.
        backward: leaves the gradients in place of ``total.backward()``, where more is done to them than that
            (gradient surgery). It is given the loss scaler or None, and leaves them scaled; it may return more
            scalars to report. A method whose losses have it is not ``replicable``: its gradients are those of
            the whole batch.
    """

    total: Tensor
    metrics: Mapping[str, Tensor]
    backward: Callable[[Any], Mapping[str, Tensor] | None] | None = None

    def differentiate(self, scaler: Any = None) -> Mapping[str, Tensor]:
        """Leave the gradients, scaled by ``scaler`` where there is one; all that is to be reported."""
        if self.backward is not None:
            return {**self.metrics, **(self.backward(scaler) or {})}
        (self.total if scaler is None else scaler.scale(self.total)).backward()
        return self.metrics


@dataclass(frozen=True)
class Phase:
    """One kind of update.

    Attributes:
        name: names the phase in reports and errors.
        loss: draws the batches it needs and computes the loss.
        optimizers: names of the optimisers whose gradients are cleared before and that step after. One name
            for alternating updates; several where gradient reversal trains both sides at once.
        repeats: how many times the update is made in each step (the k discriminator steps).
    """

    name: str
    loss: Callable[[NextBatch], PhaseLoss]
    optimizers: tuple[str, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Loop:
    """An inner loop: phases that are gone through several times within a step.

    Attributes:
        phases: phases and loops, in order.
        repeats: how many times.
    """

    phases: Sequence[Phase | Loop]
    repeats: int = 1


@dataclass(frozen=True)
class Stage:
    """A number of steps over the same phases; learning-rate schedules span a stage.

    Attributes:
        name: names the stage in reports.
        phases: the updates of one step, in order, and loops over them.
        steps: number of steps.
        on_end: called once after the last step.
    """

    name: str
    phases: Sequence[Phase | Loop]
    steps: int
    on_end: Callable[[], None] | None = None


class Method(Protocol):
    """Anything a trainer can train.

    What must survive a restart is in ``module`` or in the optimisers; a method keeps no other state. Where a
    loss averages over the texts of a batch, or leaves its gradients by itself, so that it cannot be computed
    shard by shard, the method says so with an attribute ``replicable = False``.

    Attributes:
        module: holds every parameter and buffer; switched between training and evaluation.
        optimizers: optimisers by name, as the phases name them.
    """

    @property
    def module(self) -> nn.Module:
        """All modules of the method as one."""
        ...

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """The optimisers by name."""
        ...

    def stages(self, steps: int) -> Sequence[Stage]:
        """The stages of a training of ``steps`` steps of the method proper."""
        ...


def train_step(method: Method, phases: Sequence[Phase | Loop], next_batch: NextBatch) -> dict[str, Tensor]:
    """One step without a trainer: every phase in order, its optimisers cleared before and stepped after each repeat.

    Args:
        method: owns the optimisers the phases name.
        phases: the phases of the running stage.
        next_batch: gives fresh batches by stream name.

    Returns:
        The reported scalars of the last repeat of each phase, under ``phase/metric``, without a sync.
    """
    metrics: dict[str, Tensor] = {}
    for phase in phases:
        if isinstance(phase, Loop):
            for _ in range(phase.repeats):
                metrics |= train_step(method, phase.phases, next_batch)
            continue
        optimizers = [method.optimizers[name] for name in phase.optimizers]
        for _ in range(phase.repeats):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            found = phase.loss(next_batch).differentiate()
            for optimizer in optimizers:
                optimizer.step()
            metrics |= {f"{phase.name}/{key}": value for key, value in found.items()}
    return metrics
