"""How a training runs, whatever is trained: every choice with its default, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from xferkit.trainers.progress import ProgressKind
from xferkit.trainers.schedules import ScheduleKind

__all__ = ["Precision", "Selection", "Strategy", "TrainerConfig"]

Precision = Literal["fp32", "bf16", "fp16"]
Strategy = Literal["auto", "single", "ddp", "fsdp"]
Selection = Literal["source_dev", "target_dev", "last"]


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of a :class:`~xferkit.trainers.Trainer`.

    Attributes:
        schedule: learning-rate schedule of every optimiser, anew in each stage.
        warmup_steps: steps at the start of each stage over which the rate rises linearly from 0.
        log_every: steps whose metrics are averaged into one record; the only point where they leave the device.
        eval_every: steps between evaluations in the last stage, and one at its end; 0: at its end alone.
        checkpoint_every: steps between checkpoints, and one at the end; 0: at the end alone. Counts only where
            a folder is given.
        keep_checkpoints: newest checkpoints that are kept, at least 2.
        patience: evaluations without a better score after which the last stage ends; 0: never.
        select: ``"source_dev"``: the weights of the best score on the sources' development data stay;
            ``"target_dev"``: the target's, which then is no longer a language without labels; ``"last"``.
        clip_norm: gradients of an update are scaled down to this total norm; None: as they are.
        accumulation: parts an update's batches are cut into, one after the other, to save memory. The loss is
            that of the whole batch to rounding.
        precision: ``"bf16"`` and ``"fp16"`` (with a loss scaler, GPU alone) run forward passes under autocast.
        strategy: ``"ddp"`` (a copy on each process) or ``"fsdp"`` (parameters cut over the processes), under
            ``torchrun`` or ``accelerate launch``; ``"auto"``: ``"ddp"`` where several processes run.
        device: ``"auto"``: the GPU where there is one.
        compile: compile the method's modules with ``torch.compile``.
        ema_decay: keep an exponential moving average of the parameters with this decay, evaluate and keep it in
            place of the parameters; None: no average.
        progress: ``"auto"``, ``"rich"``, ``"plain"`` or ``"silent"``.
        title: name of the training in its progress.
        trackers: names of experiment trackers of accelerate (``tensorboard``, ``wandb``, ...); their packages
            must be installed.
    """

    schedule: ScheduleKind = "constant"
    warmup_steps: int = 0
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    patience: int = 0
    select: Selection = "source_dev"
    clip_norm: float | None = None
    accumulation: int = 1
    precision: Precision = "fp32"
    strategy: Strategy = "auto"
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    ema_decay: float | None = None
    progress: ProgressKind = "auto"
    title: str = "training"
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = {"log_every": 1, "accumulation": 1, "keep_checkpoints": 2}
        least |= dict.fromkeys(("warmup_steps", "eval_every", "checkpoint_every", "patience"), 0)
        for name, low in least.items():
            value = getattr(self, name)
            if value < low:
                raise ValueError(f"TrainerConfig: {name} must be at least {low}, got {value}")
        for name, kind in (
            ("schedule", ScheduleKind),
            ("select", Selection),
            ("precision", Precision),
            ("strategy", Strategy),
            ("progress", ProgressKind),
        ):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise ValueError(
                    f"TrainerConfig: {name} must be one of {', '.join(get_args(kind))}, got {value!r}"
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"TrainerConfig: clip_norm must be positive or None, got {self.clip_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"TrainerConfig: ema_decay must be in (0, 1) or None, got {self.ema_decay}")

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(field.name for field in fields(cls))
