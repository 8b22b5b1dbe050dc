"""One update of a phase: batches cut into this process's parts, backward passes, checks, optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xferkit.data.batches import DomainBatch
from xferkit.data.streams import BatchStream, Draw
from xferkit.methods.protocol import Loop, NextBatch, Phase
from xferkit.trainers.config import TrainerConfig
from xferkit.trainers.replicas import Replica, full_tensor

__all__ = ["NonFiniteError", "Updater"]


class NonFiniteError(FloatingPointError):
    """A loss or gradient became NaN or infinite; nothing was stepped."""


class _UpdateBatches:
    """The batches of one update. Every part of it asks for the same streams in the same order."""

    def __init__(self, streams: Mapping[str, BatchStream], replica: Replica, parts: int) -> None:
        self._streams, self._replica, self._parts = streams, replica, parts
        self._draws: dict[str, list[Draw]] = {}

    def part(self, index: int) -> NextBatch:
        replica, asked = self._replica, dict.fromkeys(self._streams, 0)
        shard, num_shards = replica.rank * self._parts + index, replica.world * self._parts

        def next_batch(name: str) -> DomainBatch:
            if name not in self._streams:
                raise ValueError(f"Trainer.fit: no stream {name!r} among {sorted(self._streams)}")
            draws, place = self._draws.setdefault(name, []), asked[name]
            asked[name] += 1
            if place == len(draws):
                draws.append(self._streams[name].draw())
            batch = draws[place].shard(shard, num_shards, replica.world)
            return batch.to(replica.device)

        return next_batch


class Updater:
    """Makes the updates of a step.

    Args:
        replica: computes losses.
        streams: batch streams by name.
        config: accumulation and clipping.
    """

    def __init__(self, replica: Replica, streams: Mapping[str, BatchStream], config: TrainerConfig) -> None:
        self.replica, self.streams, self.config = replica, streams, config
        self.scaler: Any = replica.accelerator.scaler

    def step(self, phases: Sequence[Phase | Loop], where: str) -> dict[str, Tensor]:
        """All phases in order, loops inside out.

        Args:
            phases: those of the running stage.
            where: place in the training, for errors.

        Returns:
            The reported scalars of the last update of each phase, under ``phase/metric``, without a sync.
        """
        metrics: dict[str, Tensor] = {}
        for item in phases:
            for _ in range(item.repeats):
                if isinstance(item, Loop):
                    metrics |= self.step(item.phases, where)
                else:
                    update = self._update(item, where)
                    metrics |= {f"{item.name}/{key}": value for key, value in update.items()}
        return metrics

    def _update(self, phase: Phase, where: str) -> dict[str, Tensor]:
        replica, parts = self.replica, self.config.accumulation
        optimizers = [replica.method.optimizers[name] for name in phase.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        batches = _UpdateBatches(self.streams, replica, parts)
        metrics: dict[str, Tensor] = {}
        loss_value: Tensor | None = None
        for index in range(parts):
            with replica.collecting(last=index == parts - 1):
                loss = replica.loss(phase.loss, batches.part(index))
                if loss.backward is not None and parts * replica.world > 1:
                    raise ValueError(
                        f"Trainer.fit: phase {phase.name!r} leaves its gradients by itself, which cannot be done in "
                        "parts; expected one process and accumulation 1 (its method lacks replicable = False)"
                    )
                found = loss.differentiate(self.scaler)
            total = loss.total.detach()
            loss_value = total if loss_value is None else loss_value + total
            for name, value in found.items():
                metrics[name] = metrics[name] + value if name in metrics else value
        if self.scaler is not None:
            for optimizer in optimizers:
                self.scaler.unscale_(optimizer)
        self._check_and_clip(phase, optimizers, loss_value, where)
        for optimizer in optimizers:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()
        return replica.mean_over_processes(metrics)

    def _check_and_clip(
        self, phase: Phase, optimizers: Sequence[torch.optim.Optimizer], loss: Tensor | None, where: str
    ) -> None:
        gradients = [
            p.grad
            for o in optimizers
            for group in o.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not gradients:
            if loss is not None and not math.isfinite(float(loss)):
                raise NonFiniteError(
                    f"Trainer.fit: the loss of phase {phase.name!r} is {float(loss)} {where}"
                )
            return
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        # With a loss scaler infinite gradients are its signal to scale less, and it skips the step itself.
        if self.scaler is None and not math.isfinite(float(norm)):
            raise NonFiniteError(
                f"Trainer.fit: the gradient of phase {phase.name!r} has norm {float(norm)} and its loss is "
                f"{float(loss) if loss is not None else math.nan} {where}; no parameter was changed"
            )
        if self.config.clip_norm is not None:
            scale = torch.clamp(self.config.clip_norm / (norm + 1e-6), max=1.0)
            for gradient in gradients:
                gradient.mul_(scale.to(gradient.dtype))
