"""One process or many: where a method's modules live, how their gradients meet, and whether that is really so."""

from __future__ import annotations

import atexit
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xferkit.data.seeding import derive_seed
from xferkit.methods.protocol import Method, NextBatch, PhaseLoss
from xferkit.trainers.config import TrainerConfig

__all__ = ["Replica", "full_tensor", "local_tensor", "make_accelerator"]


def full_tensor(value: Tensor) -> Tensor:
    """The whole of a tensor that may be cut over processes; then every process must call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def local_tensor(value: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    return value.to_local() if hasattr(value, "to_local") else value


class _PhaseRunner(nn.Module):
    """Puts a phase's loss inside a module's forward pass: what DDP and FSDP2 hang their hooks on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, loss: Callable[[NextBatch], PhaseLoss], next_batch: NextBatch
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        result = loss(next_batch)
        return result.total, dict(result.metrics), result.backward


def make_accelerator(config: TrainerConfig, folder: str | None = None) -> Any:
    """accelerate's ``Accelerator`` for ``config``: device, processes, autocast, loss scaler, trackers.

    Raises:
        ValueError: precision, strategy or a tracker that would not be in effect.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import DistributedDataParallelKwargs

    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if config.precision == "fp16" and cpu:
        raise ValueError(
            "Trainer: precision 'fp16' needs a GPU (its loss scaler is not for the CPU); expected 'fp32' or 'bf16'"
        )
    installed = [str(kind.value) for kind in get_available_trackers()]
    if missing := sorted(set(config.trackers) - set(installed)):
        raise ValueError(
            f"Trainer: tracker {missing[0]!r} is not in effect, expected one whose package is installed "
            f"({', '.join(installed) or 'none is'})"
        )
    # accelerate keeps one state for the process and refuses another precision than the first training's.
    AcceleratorState._reset_state(False)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        log_with=list(config.trackers) or None,
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if PartialState().device.type != ("cpu" if cpu else "cuda"):
        raise ValueError(
            f"Trainer: device 'cpu' is not in effect, this process already trains on {PartialState().device}"
        )
    if accelerator.num_processes > 1:
        _leave_group_at_exit()
    return accelerator


@cache
def _leave_group_at_exit() -> None:
    # A gloo thread that lets go of a Python tensor while the interpreter is going down aborts the process
    # ("terminate called without an active exception"), after a training that was complete. Leaving the group
    # joins those threads, unless FSDP2's meshes still hold it: they get a moment to let go of what they
    # finished. Not at the end of a training: a process may train several times (seeds).
    def leave() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
            time.sleep(0.1)

    atexit.register(leave)


class Replica:
    """A method's modules on this process's device under the strategy asked for.

    Args:
        method: what is trained; under ``"fsdp"`` its optimisers get the cut parameters in place.
        config: asks for strategy and precision.
        accelerator: from :func:`make_accelerator`.

    Raises:
        ValueError: when what was asked for is not in effect: several processes where one runs, one where
            several run, parameters that were not cut.
    """

    def __init__(self, method: Method, config: TrainerConfig, accelerator: Any) -> None:
        self.method, self.module, self.accelerator = method, method.module, accelerator
        self.world, self.rank = int(accelerator.num_processes), int(accelerator.process_index)
        self.device: torch.device = accelerator.device
        self.strategy = config.strategy
        if config.strategy == "auto":
            self.strategy = "ddp" if self.world > 1 else "single"
        if self.strategy == "single" and self.world > 1:
            raise ValueError(
                f"Trainer: strategy 'single' was asked for and {self.world} processes run; expected 'ddp' or 'fsdp'"
            )
        if self.strategy != "single" and self.world == 1:
            raise ValueError(
                f"Trainer: strategy {self.strategy!r} was asked for and one process runs; start it with "
                "torchrun --nproc-per-node N or accelerate launch"
            )
        if (self.world > 1 or config.accumulation > 1) and not getattr(method, "replicable", True):
            raise ValueError(
                "Trainer: a loss of this method averages over the texts of a batch, or its gradients are combined "
                "over the whole of it, so the batch cannot be cut; expected one process and accumulation 1"
            )
        self.module.to(self.device)
        if config.compile:
            _compile(self.module)
        if self.world > 1:
            for value in (*self.module.parameters(), *self.module.buffers()):
                dist.broadcast(value.data, 0)
            if self.rank:  # each process draws dropout masks of its own, rank 0 as if it were alone
                torch.manual_seed(derive_seed(torch.initial_seed(), "rank", str(self.rank)))
        self.runner: nn.Module = _PhaseRunner(self.module)
        if self.strategy == "fsdp":
            self._shard()
        elif self.strategy == "ddp":
            self.runner = accelerator.prepare_model(self.runner)
            if not isinstance(self.runner, nn.parallel.DistributedDataParallel):
                raise ValueError(
                    f"Trainer: strategy 'ddp' is not in effect, accelerate made a {type(self.runner).__name__}"
                )

    def _shard(self) -> None:
        # Not through accelerate: on CPU processes its FSDP plugin silently gives DDP.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        names = {id(p): name for name, p in self.module.named_parameters()}
        # One unit: submodules read each other's parameters outside their own forward passes (lookup tables of
        # the character CNN), which a unit of their own would still hold cut at that moment.
        fully_shard(self.runner, mesh=init_device_mesh(self.device.type, (self.world,)))
        sharded = dict(self.module.named_parameters())
        whole = [name for name, p in sharded.items() if not isinstance(p, DTensor)]
        if whole:
            raise ValueError(f"Trainer: strategy 'fsdp' is not in effect, parameter {whole[0]!r} was not cut")
        for optimizer in self.method.optimizers.values():
            for group in optimizer.param_groups:
                group["params"] = [sharded[names[id(p)]] for p in group["params"]]

    def loss(self, loss: Callable[[NextBatch], PhaseLoss], next_batch: NextBatch) -> PhaseLoss:
        """A phase's loss, computed inside the wrapped forward pass and under autocast."""
        with self.accelerator.autocast():
            total, metrics, backward = self.runner(loss, next_batch)
        return PhaseLoss(total, metrics, backward)

    @contextlib.contextmanager
    def collecting(self, last: bool) -> Iterator[None]:
        """Backward passes inside leave gradients apart until the last part of an update."""
        if last or self.strategy != "ddp":
            yield
            return
        with self.runner.no_sync():  # type: ignore[operator]
            yield

    @contextlib.contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """The method's modules can be called directly inside (evaluation, hooks at the end of a stage)."""
        if self.strategy != "fsdp":
            yield
            return
        self.runner.unshard()  # type: ignore[operator]
        try:
            yield
        finally:
            self.runner.reshard()  # type: ignore[operator]

    def mean_over_processes(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean of each scalar over the processes; they must all have the same names."""
        if self.world == 1 or not values:
            return dict(values)
        stacked = torch.stack([v.detach().float() for v in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).unbind(), strict=True))

    def any_process(self, number: int) -> int:
        """The largest of the processes' numbers, so that all of them act alike."""
        if self.world == 1:
            return number
        agreed = torch.tensor(number, device=self.device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return int(agreed)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


def _compile(module: nn.Module) -> None:
    # Containers are never called themselves, so what stands in them is compiled.
    if isinstance(module, nn.ModuleDict | nn.ModuleList):
        for child in module.children():
            _compile(child)
    else:
        module.compile(dynamic=True)
