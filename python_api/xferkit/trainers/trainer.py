"""One training loop for every method: it follows the method's stages and phases and knows none by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xferkit.data.streams import BatchStream
from xferkit.methods.protocol import Loop, Method, Phase, Stage
from xferkit.trainers.averaging import EMA, copy_weights, put_weights
from xferkit.trainers.config import TrainerConfig
from xferkit.trainers.history import Evaluation, History, MetricsFile, Record
from xferkit.trainers.interrupts import Interrupted, StopRequest, watch_signals
from xferkit.trainers.progress import Progress, make_progress
from xferkit.trainers.replicas import Replica, make_accelerator
from xferkit.trainers.schedules import LearningRates, make_schedule
from xferkit.trainers.selection import BestWeights
from xferkit.trainers.state import collect_state, module_signature, restore_state
from xferkit.trainers.updates import Updater

if TYPE_CHECKING:
    from xferkit.checkpoints import CheckpointStore

__all__ = ["Trainer"]

Evaluate = Callable[[], Mapping[str, float]]


class Trainer:
    """Trains any :class:`~xferkit.methods.Method`, on one process or several, and goes on where it was stopped.

    With the same seed, streams and method, parameters come out the same to the bit on the same machine,
    whatever is logged, shown, evaluated or saved, and however often the training was killed and resumed.

    Args:
        config: the settings.
        **overrides: single settings in place of those of ``config``.

    Raises:
        ValueError: a setting out of its range; TypeError: one that does not exist.
    """

    def __init__(self, config: TrainerConfig | None = None, **overrides: Any) -> None:
        self.config = replace(config or TrainerConfig(), **overrides)

    def fit(
        self,
        method: Method,
        streams: Mapping[str, BatchStream],
        steps: int,
        *,
        evaluate: Evaluate | None = None,
        folder: Path | str | None = None,
        identity: Mapping[str, str] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> History:
        """Train for ``steps`` steps of the method proper (a method may add stages of its own).

        With a folder, checkpoints and metrics are written there, and a call with the same folder goes on from
        the newest valid checkpoint: after a kill, a crash or a power cut. SIGTERM and Ctrl-C then save and end.

        Args:
            method: what is trained; left in evaluation mode with the weights that were selected. Under
                ``"fsdp"`` its parameters stay cut over the processes (``replicas.full_tensor`` joins one).
            streams: batch streams by the names its phases draw from.
            steps: at least 1.
            evaluate: returns scores by name, higher being better for ``source_dev/score`` or
                ``target_dev/score``, whichever selects; called in evaluation mode, in the last stage alone.
            folder: where checkpoints and metrics go; one training at a time.
            identity: what the training is of (data, configuration), by name; a checkpoint of something else is
                refused.
            warn: called with a sentence when a damaged checkpoint was passed over.

        Raises:
            ValueError: steps below 1, a stream that is missing, a strategy that is not in effect, a checkpoint
                of another model, data set or configuration.
            NonFiniteError: a loss or gradient is NaN or infinite; no parameter was changed by it.
            Interrupted: SIGTERM or Ctrl-C, after the state was saved.
        """
        if steps < 1:
            raise ValueError(f"Trainer.fit: steps must be at least 1, got {steps}")
        place = None if folder is None else Path(folder)
        accelerator = make_accelerator(self.config, None if place is None else str(place))
        replica = Replica(method, self.config, accelerator)
        with contextlib.ExitStack() as stack:
            store = None
            if place is not None:
                from xferkit.checkpoints import CheckpointStore

                if replica.rank == 0:
                    store = CheckpointStore(
                        place / "checkpoints",
                        keep=self.config.keep_checkpoints,
                        warn=warn or (lambda text: None),
                    )
                    stack.enter_context(store.locked())
                replica.barrier()
                store = store or CheckpointStore(place / "checkpoints", keep=self.config.keep_checkpoints)
            run = _Run(self.config, replica, dict(streams), method.stages(steps), evaluate, place, store)
            run.identity |= dict(identity or {})
            stop = stack.enter_context(watch_signals(place is not None))
            run.resume()
            silent = replica.rank > 0
            progress = make_progress(
                "silent" if silent else self.config.progress,
                sum(stage.steps for stage in run.stages),
                title=self.config.title,
                done=run.history.steps,
            )
            run.train(stack.enter_context(progress), stop)
        method.module.eval()
        return run.history


class _Run:
    """The state of one call of :meth:`Trainer.fit`."""

    def __init__(
        self,
        config: TrainerConfig,
        replica: Replica,
        streams: dict[str, BatchStream],
        stages: Any,
        evaluate: Evaluate | None,
        folder: Path | None,
        store: CheckpointStore | None,
    ) -> None:
        self.config, self.replica, self.streams, self.store = config, replica, streams, store
        self.stages: list[Stage] = list(stages)
        self.evaluate = evaluate
        self.best = BestWeights("last" if evaluate is None else config.select, config.patience)
        self.average = EMA(replica.module, config.ema_decay) if config.ema_decay is not None else None
        self.updater = Updater(replica, streams, config)
        self.rates = LearningRates(replica.method.optimizers)
        self.metrics_file = MetricsFile(folder, writes=replica.rank == 0)
        self.history = History()
        self.stage, self.stage_step, self.finished = 0, 0, False
        self.seconds_before, self.start = 0.0, time.perf_counter()
        self.saved_at = -1
        self.identity: dict[str, str] = {
            "model": module_signature(replica.module),
            "stages": ", ".join(f"{stage.name}: {stage.steps} steps" for stage in self.stages),
        }
        if config.trackers:
            replica.accelerator.init_trackers(config.title)

    # The loop

    def train(self, progress: Progress, stop: StopRequest) -> None:
        module = self.replica.module
        while not self.finished:
            stage = self.stages[self.stage]
            names = _optimizer_names(stage)
            factor = make_schedule(self.config.schedule, stage.steps, self.config.warmup_steps)
            module.train()
            window: list[dict[str, Tensor]] = []
            while self.stage_step < stage.steps and not self.history.stopped_early:
                rates = self.rates.set(factor(self.stage_step), names)
                where = f"in stage {stage.name!r} at step {self.history.steps + 1}"
                window.append(self.updater.step(stage.phases, where))
                if self.average is not None:
                    self.average.update()
                self.stage_step += 1
                self.history.steps += 1
                progress.advance()
                if self.stage_step % self.config.log_every == 0 or self.stage_step == stage.steps:
                    self._log(stage, window, rates, progress)
                    window = []
                self._evaluate_when_due(stage, progress)
                number = self.replica.any_process(stop.number)
                due = self.config.checkpoint_every
                save = number or (due and self.history.steps % due == 0 and self.stage_step < stage.steps)
                if window and (save or self.history.stopped_early):
                    # A checkpoint ends a window, so that a resumed run reports what it would have reported.
                    self._log(stage, window, rates, progress)
                    window = []
                if save:
                    self._save()
                if number:
                    raise Interrupted(number, self.history.steps)
            self._end_stage(stage)

    def _end_stage(self, stage: Stage) -> None:
        last = self.stage == len(self.stages) - 1
        if last:
            if self.best.weights is not None:
                put_weights(self.replica.module, self.best.weights)
                self.history.selected_step = self.best.step
            elif self.average is not None:
                put_weights(self.replica.module, self.average.average)
        if stage.on_end is not None:
            with self.replica.whole_parameters():
                stage.on_end()
        self.stage, self.stage_step = self.stage + 1, 0
        self.finished = last
        self.history.seconds = self._seconds()
        if last or self.config.checkpoint_every:
            self._save()
        if last:
            self.metrics_file.write_csv(self.history)
            if self.config.trackers:
                self.replica.accelerator.end_training()

    # What is seen

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.start

    def _log(
        self, stage: Stage, window: list[dict[str, Tensor]], rates: dict[str, float], progress: Progress
    ) -> None:
        record = Record(self.history.steps, stage.name, self._seconds(), _means(window), rates)
        self.history.records.append(record)
        self.metrics_file.add(record)
        progress.report(stage.name, record.metrics)
        if self.config.trackers:
            self.replica.accelerator.log(record.metrics, step=record.step)

    def _evaluate_when_due(self, stage: Stage, progress: Progress) -> None:
        if self.evaluate is None or self.stage != len(self.stages) - 1:
            return
        due = self.config.eval_every
        if self.stage_step != stage.steps and (not due or self.stage_step % due):
            return
        module = self.replica.module
        devices = [self.replica.device] if self.replica.device.type == "cuda" else []
        averaged = contextlib.nullcontext() if self.average is None else self.average.in_place()
        module.eval()
        # Looking at a model changes nothing: not its weights, not the random numbers that follow.
        with torch.random.fork_rng(devices=devices), averaged:
            with self.replica.whole_parameters():
                scores = {name: float(value) for name, value in self.evaluate().items()}
            evaluation = Evaluation(self.history.steps, stage.name, self._seconds(), scores)
            self.history.evaluations.append(evaluation)
            self.metrics_file.add(evaluation)
            if self.best.is_better(scores, self.history.steps):
                self.best.weights = copy_weights(module)
        module.train()
        self.history.stopped_early = self.best.exhausted
        progress.report(stage.name, scores)
        if self.config.trackers:
            self.replica.accelerator.log(scores, step=evaluation.step)

    # What survives

    def _save(self) -> None:
        if self.store is None or self.saved_at == self._place():
            return
        state = collect_state(self.replica, self.streams, self.best, self.average)
        if self.replica.rank == 0:
            state["position"] = {
                "stage": self.stage,
                "stage_step": self.stage_step,
                "steps": self.history.steps,
                "finished": self.finished,
                "stopped_early": self.history.stopped_early,
                "selected_step": self.history.selected_step,
            }
            state["seconds"] = self._seconds()
            state["metrics_bytes"] = self.metrics_file.position()
            # The end of a stage shares its step with the last step itself and comes later.
            self.store.save(self._place(), state, self.identity)
            self.metrics_file.write_csv(self.history)
        self.saved_at = self._place()
        self.replica.barrier()

    def _place(self) -> int:
        """A number that grows with every place a checkpoint can stand at: steps and ends of stages."""
        return self.history.steps + self.stage

    def resume(self) -> None:
        """Go on from the newest valid checkpoint, if there is one."""
        if self.store is None:
            return
        found = None
        if self.replica.rank == 0:
            found = self.store.load_newest(self.identity)
        step = self.replica.any_process(0 if found is None else found.step)
        if step == 0:
            if self.replica.rank == 0:
                self.metrics_file.rewind(0, self.history)
            return
        if found is None:
            found = self.store.load(step, self.identity)
        state: Mapping[str, Any] = found.state
        position = state["position"]
        self.stage, self.stage_step = int(position["stage"]), int(position["stage_step"])
        self.finished = bool(position["finished"])
        self.history.steps = int(position["steps"])
        self.history.stopped_early = bool(position["stopped_early"])
        self.history.selected_step = position["selected_step"]
        self.seconds_before = self.history.seconds = float(state["seconds"])
        self.saved_at = step
        if self.replica.rank == 0:
            self.metrics_file.rewind(int(state["metrics_bytes"]), self.history)
        self.replica.barrier()
        if self.replica.rank > 0:
            self.metrics_file.rewind(int(state["metrics_bytes"]), self.history)
        restore_state(state, self.replica, self.streams, self.best, self.average)
        if self.finished:  # it may have died between its last checkpoint and the table
            self.metrics_file.write_csv(self.history)


def _optimizer_names(stage: Stage) -> tuple[str, ...]:
    def phases(items: Any) -> Iterator[Phase]:
        for item in items:
            if isinstance(item, Loop):
                yield from phases(item.phases)
            else:
                yield item

    return tuple(dict.fromkeys(name for phase in phases(stage.phases) for name in phase.optimizers))


def _means(window: list[dict[str, Tensor]]) -> dict[str, float]:
    names = list(window[0])
    if not names:
        return {}
    table = torch.stack([torch.stack([metrics[name].float() for name in names]) for metrics in window])
    return dict(zip(names, table.mean(0).tolist(), strict=True))
