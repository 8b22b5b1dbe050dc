"""One training loop for every method: it follows the method's stages and phases and knows none by name."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from xferkit.methods.protocol import DomainBatch, Method, Stage, train_step
from xferkit.trainers.history import History, Record
from xferkit.trainers.progress import Progress, ProgressKind, make_progress
from xferkit.trainers.schedules import ScheduleKind, make_schedule

__all__ = ["BatchStream", "Trainer"]


class BatchStream(Protocol):
    """An endless source of batches."""

    def next(self) -> DomainBatch:
        """The next batch."""
        ...


class Trainer:
    """Runs the stages of a method.

    The loop draws no random numbers: with the same seed, streams and method, parameters come out the same
    to the bit, whatever is logged or shown.

    Args:
        schedule: learning-rate schedule of every optimiser, anew in each stage.
        log_every: steps whose metrics are averaged into one record; the only point where values leave the
            device.
        progress: ``"auto"``, ``"rich"``, ``"plain"`` or ``"silent"``.
        title: name of the training in its progress.

    Raises:
        ValueError: when ``log_every`` is below 1 or the schedule is unknown.
    """

    def __init__(
        self,
        *,
        schedule: ScheduleKind = "constant",
        log_every: int = 50,
        progress: ProgressKind = "auto",
        title: str = "training",
    ) -> None:
        if log_every < 1:
            raise ValueError(f"Trainer: log_every must be at least 1, got {log_every}")
        make_schedule(schedule, 1)
        self.schedule, self.log_every, self.progress, self.title = schedule, log_every, progress, title

    def fit(self, method: Method, streams: Mapping[str, BatchStream], steps: int) -> History:
        """Train for ``steps`` steps of the method proper (a method may add stages of its own).

        Args:
            method: what is trained; left in evaluation mode.
            streams: batch streams by the names its phases draw from.
            steps: at least 1.

        Raises:
            ValueError: when steps is below 1 or a phase draws from a stream that was not given.
            FloatingPointError: when a reported metric is not finite.
        """
        if steps < 1:
            raise ValueError(f"Trainer.fit: steps must be at least 1, got {steps}")
        stages = method.stages(steps)
        history = History()
        start = time.perf_counter()

        def next_batch(name: str) -> DomainBatch:
            if name not in streams:
                raise ValueError(f"Trainer.fit: no stream {name!r} among {sorted(streams)}")
            return streams[name].next()

        total = sum(stage.steps for stage in stages)
        with make_progress(self.progress, total, title=self.title) as progress:
            for stage in stages:
                method.module.train()
                schedulers = self._schedulers(method, stage)
                window: list[dict[str, Tensor]] = []
                for step in range(1, stage.steps + 1):
                    window.append(train_step(method, stage.phases, next_batch))
                    rates = {name: float(s.get_last_lr()[0]) for name, s in schedulers.items()}
                    for scheduler in schedulers.values():
                        scheduler.step()
                    history.steps += 1
                    progress.advance()
                    if step % self.log_every == 0 or step == stage.steps:
                        seconds = time.perf_counter() - start
                        record = Record(history.steps, stage.name, seconds, _means(window), rates)
                        self._log(record, history, progress)
                        window = []
                if stage.on_end is not None:
                    stage.on_end()
        method.module.eval()
        history.seconds = time.perf_counter() - start
        return history

    def _schedulers(self, method: Method, stage: Stage) -> dict[str, LambdaLR]:
        names = dict.fromkeys(name for phase in stage.phases for name in phase.optimizers)
        factor = make_schedule(self.schedule, stage.steps)
        return {name: LambdaLR(method.optimizers[name], factor) for name in names}

    @staticmethod
    def _log(record: Record, history: History, progress: Progress) -> None:
        history.records.append(record)
        progress.report(record.stage, record.metrics)
        for name, value in record.metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"Trainer.fit: {name} became {value} in stage {record.stage!r} by step {record.step}"
                )


def _means(window: list[dict[str, Tensor]]) -> dict[str, float]:
    names = list(window[0])
    if not names:
        return {}
    table = torch.stack([torch.stack([metrics[name].float() for name in names]) for metrics in window])
    return dict(zip(names, table.mean(0).tolist(), strict=True))
