"""Everything a training needs to go on bit for bit, as one tree of tensors and plain values."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.trainers.averaging import EMA
from xferkit.trainers.replicas import Replica, full_tensor, local_tensor
from xferkit.trainers.selection import BestWeights

__all__ = ["collect_state", "module_signature", "restore_state"]


def module_signature(module: nn.Module) -> str:
    """A short hash over names, shapes and dtypes of parameters and buffers: is it the same model?"""
    rows = [f"{name} {tuple(v.shape)} {v.dtype}" for name, v in module.state_dict().items()]
    total = sum(v.numel() for v in module.parameters())
    return f"{total} parameters, {hashlib.sha256(chr(10).join(rows).encode()).hexdigest()[:16]}"


def collect_state(
    replica: Replica, streams: Mapping[str, Any], best: BestWeights, average: EMA | None
) -> dict[str, Any]:
    """The whole state, on every process (cut tensors are put together, so all must call this).

    Random numbers: torch's generators of every process, and Python's and NumPy's global ones.
    """
    scaler = replica.accelerator.scaler
    return {
        "module": _full(replica.module.state_dict()),
        "optimizers": {
            name: _full(optimizer.state_dict()["state"])
            for name, optimizer in replica.method.optimizers.items()
        },
        "average": None if average is None else _full(average.average),
        "best": best.state(),
        "best_weights": None if best.weights is None else _full(best.weights),
        "scaler": None if scaler is None else scaler.state_dict(),
        "streams": {name: stream.state_dict() for name, stream in streams.items()},
        "random": _random_state(replica),
    }


def restore_state(
    state: Mapping[str, Any],
    replica: Replica,
    streams: Mapping[str, Any],
    best: BestWeights,
    average: EMA | None,
) -> None:
    """Put a collected state back; the random generators last, so that nothing else draws from them.

    Raises:
        ValueError: when the state lacks what this training has, or holds what it has not.
    """
    _names("streams", state["streams"], streams)
    _names("optimizers", state["optimizers"], replica.method.optimizers)
    if (state["average"] is None) != (average is None):
        raise ValueError(
            "checkpoint: has another ema_decay, expected it with an average where this run has one"
        )
    _assign(replica.module.state_dict(), state["module"])
    for name, optimizer in replica.method.optimizers.items():
        _load_optimizer(optimizer, state["optimizers"][name])
    if average is not None:
        _assign(average.average, state["average"])
    weights = None
    if state["best_weights"] is not None:
        weights = {name: value.detach().clone() for name, value in replica.module.state_dict().items()}
        _assign(weights, state["best_weights"])
    best.restore(state["best"], weights)
    if replica.accelerator.scaler is not None:
        replica.accelerator.scaler.load_state_dict(state["scaler"])
    for name, stream in streams.items():
        stream.load_state_dict(state["streams"][name])
    _restore_random(state["random"], replica)


def _names(what: str, saved: Mapping[str, Any], have: Mapping[str, Any]) -> None:
    if set(saved) != set(have):
        raise ValueError(f"checkpoint: has {what} {sorted(saved)}, expected {sorted(have)}")


def _full(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _full(value) for key, value in tree.items()}
    if isinstance(tree, Tensor):
        return full_tensor(tree.detach()).cpu()
    return tree


def _cut_like(value: Tensor, like: Tensor) -> Tensor:
    """``value`` cut over the processes as ``like`` is."""
    if not hasattr(like, "to_local"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


@torch.no_grad()
def _assign(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    _names("weights", values, targets)
    for name, target in targets.items():
        value = values[name]
        if value.shape != target.shape:
            raise ValueError(
                f"checkpoint: {name} has shape {list(value.shape)}, expected {list(target.shape)}"
            )
        local_tensor(target).copy_(local_tensor(_cut_like(value, target)))


def _load_optimizer(optimizer: Optimizer, saved: Mapping[int, Mapping[str, Any]]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        int(index): {
            key: _cut_like(value, parameters[int(index)])
            if isinstance(value, Tensor) and value.shape == parameters[int(index)].shape and value.dim()
            else value
            for key, value in entries.items()
        }
        for index, entries in saved.items()
    }
    # The groups' settings come from the method's configuration, the rates from the step.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_state(replica: Replica) -> dict[str, Any]:
    kind, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    generators = {"torch": torch.get_rng_state()}
    if replica.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(replica.device)
    return {
        "generators": [_of_process(generators, rank, replica) for rank in range(replica.world)],
        "python": [kind, torch.tensor(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
    }


def _of_process(generators: Mapping[str, Tensor], rank: int, replica: Replica) -> dict[str, Tensor]:
    if replica.world == 1:
        return dict(generators)
    shared = {}
    for name, value in generators.items():
        buffer = value.to(replica.device, copy=True)
        dist.broadcast(buffer, rank)
        shared[name] = buffer.cpu()
    return shared


def _restore_random(state: Mapping[str, Any], replica: Replica) -> None:
    if len(state["generators"]) != replica.world:
        raise ValueError(
            f"checkpoint: was saved by {len(state['generators'])} processes, expected {replica.world}, since "
            "each has its own random numbers"
        )
    own = state["generators"][replica.rank]
    kind, words, gauss = state["python"]
    random.setstate((kind, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if replica.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], replica.device)
    torch.set_rng_state(own["torch"])
