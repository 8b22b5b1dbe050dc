"""Run under torchrun by test_gradient_surgery_systems.py: surgery on uneven shards against surgery on the whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from surgery_vectors import conflicting
from torch import Tensor

import xfercore

TASKS, STEPS, BETA = 5, 4, 0.3
OFFSETS = [0, 200, 1001, 1001, 5000]
SHAPES = [(40, 5), (7, 11), (1, 3), (300,)]
BITS: list[list[list[float]]] = []  # the last weights of each run, the same on every rank
CUTS = [(13, 0), (7, 0), (1, 0), (111, 0)]  # rows that rank 0 holds of each parameter; one is all of it


def surgery(grads: object, offsets: list[int], ema: Tensor, step: int, shared: bool) -> tuple[Tensor, Tensor]:
    """Weights and averages; of the whole where every process holds a shard."""
    gram = xfercore.task_gram(grads, offsets)
    if shared:
        dist.all_reduce(gram)
    found = xfercore.gradvac_coef(gram, ema, beta=BETA, seed_step=torch.tensor([9, step]))
    return found.weights, found.ema


def compare(one: Tensor, other: Tensor) -> float:
    return (
        float((one.double() - other.double()).abs().max() / other.double().abs().max())
        if other.numel()
        else 0.0
    )


def arena_errors(rank: int, dtype: torch.dtype) -> dict[str, float]:
    """Columns 0 to 1733 on rank 0, through a group's middle, the rest on rank 1."""
    begin, end = (0, 1734) if rank == 0 else (1734, OFFSETS[-1])
    inside = [min(max(value, begin), end) - begin for value in OFFSETS]
    ema_whole = ema_shard = torch.zeros(len(OFFSETS) - 1, TASKS, TASKS, dtype=torch.float64)
    worst = {"weights": 0.0, "out": 0.0}
    for step in range(STEPS):
        g = conflicting(TASKS, OFFSETS[-1], seed=step, dtype=dtype)
        whole, ema_whole = surgery(g, OFFSETS, ema_whole, step, False)
        shard, ema_shard = surgery(g[:, begin:end], inside, ema_shard, step, True)
        out = xfercore.combine_gradients(g, OFFSETS, whole)[begin:end]
        part = xfercore.combine_gradients(g[:, begin:end], inside, shard)
        worst["weights"] = max(worst["weights"], compare(shard, whole))
        worst["out"] = max(worst["out"], compare(part, out))
    BITS.append(shard.tolist())
    return worst | {"ema": compare(ema_shard, ema_whole)}


def list_errors(rank: int) -> dict[str, float]:
    """Parameters cut along their rows, as FSDP2 does."""
    flat = conflicting(TASKS, sum(torch.Size(shape).numel() for shape in SHAPES))
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    whole = [[p.reshape(s) for p, s in zip(row.split(sizes), SHAPES, strict=True)] for row in flat]
    shard = [[p[: c[0]] if rank == 0 else p[c[0] :] for p, c in zip(row, CUTS, strict=True)] for row in whole]
    groups = [0, 1, 4]
    ema = torch.zeros(2, TASKS, TASKS, dtype=torch.float64)
    weights, _ = surgery(whole, groups, ema, 0, False)
    found, _ = surgery(shard, groups, ema, 0, True)
    parts = xfercore.combine_gradients(shard, groups, found)
    outs = xfercore.combine_gradients(whole, groups, weights)
    errors = [
        compare(part, out[: c[0]] if rank == 0 else out[c[0] :])
        for part, out, c in zip(parts, outs, CUTS, strict=True)
    ]
    return {"weights": compare(found, weights), "out": max(errors)}


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    errors = {
        "float64": arena_errors(rank, torch.float64),
        "float32": arena_errors(rank, torch.float32),
        "bfloat16": arena_errors(rank, torch.bfloat16),
        "list": list_errors(rank),
    }
    Path(sys.argv[1], f"rank-{rank}.json").write_text(json.dumps({"errors": errors, "bits": BITS}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
