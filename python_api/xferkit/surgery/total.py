"""The plain sum of the losses behind the same interface: what surgery is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xferkit.surgery.base import Surgery
from xferkit.surgery.info import SurgeryInfo
from xferkit.surgery.passes import without_autocast
from xferkit.surgery.step import Solution, Step
from xferkit.surgery.tasks import Loss

__all__ = ["Sum"]


class Sum(Surgery):
    r"""One backward pass of the weighted sum of the losses, :math:`\sum_i w_i L_i`.

    Nothing is taken apart: there is no arena, ``info`` has no Gram matrix, and on replicas (DDP) it is exact. Losses
    that are functions are differentiated one by one.

    Args:
        shared, tasks, task_weights: as for :class:`Surgery`.
        grouping: only names the groups of ``info``.
        backward: means nothing here.

    Raises:
        ValueError, RuntimeError: as :class:`Surgery`.
    """

    exact_on_replicas = True

    @torch.no_grad()
    def combine(self) -> SurgeryInfo:
        """The gradients stand where they belong already; what was given.

        Raises:
            RuntimeError: nothing was collected.
        """
        numbers, losses = self._collected()
        weights = self._keep(numbers, lambda: losses.new_tensor([self.task_weights[n] for n in numbers]))
        return self._finish(numbers, losses, Solution(weights.expand(len(self.groups), -1)), None)

    def _solve(self, step: Step) -> Solution:
        raise NotImplementedError("Sum takes no gradients apart")

    def _differentiate(self, given: Sequence[tuple[str, Loss]], retain_graph: bool | None) -> None:
        total: Tensor | None = None
        for name, loss in given:
            if isinstance(loss, Tensor):
                weighted = self._weighted(name, loss)
                total = weighted if total is None else total + weighted
                self._count(name, loss)
        if total is not None:
            self._pass(total, retain_graph)
        for name, item in given:
            if not isinstance(item, Tensor):
                loss = self._computed(name, item)
                self._pass(self._weighted(name, loss), retain_graph)
                self._count(name, loss)

    def _pass(self, loss: Tensor, retain_graph: bool | None) -> None:
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        with without_autocast(self._shared.device):
            scaled.backward(retain_graph=retain_graph)
