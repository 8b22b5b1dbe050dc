"""One rank of the tests of in-batch ranking over a process group: its results, as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import xfercore

ROWS, EXTRA = (3, 5, 2, 4), (0, 2, 1, 0)
COTANGENTS = (1.0, 2.0, 0.5, 3.0)
DIM, HARD, SCALE, MARGIN = 6, 2, 1.7, 0.1
CASES = [
    {"symmetric": symmetric, "scope": scope, "ids": ids, "reduction": reduction}
    for symmetric in (False, True)
    for scope in (None, "own", "all")
    for ids in (False, True)
    for reduction in ("mean", "sum", "none")
]
#: What is wrong on rank 1 alone.
BAD: dict[str, dict[str, Any]] = {
    "empty": {"u": torch.zeros(0, DIM), "v": torch.zeros(0, DIM)},
    "target": {"targets": torch.tensor([0, 5])},
    "ids": {"doc_ids": torch.zeros(3, dtype=torch.int64)},
    "scale": {"scale": "big"},
    "flag": {"normalize": 1},
    "grad": {"symmetric": True, "u": torch.zeros(2, DIM, requires_grad=True)},
    "dim": {"u": torch.zeros(2, DIM - 1), "v": torch.zeros(2, DIM - 1)},
}


def problem(world: int, case: int) -> list[dict[str, Tensor]]:
    """Every rank's inputs, drawn alike on all of them."""
    rng = torch.Generator().manual_seed(case)
    ranks = []
    for rows, extra in list(zip(ROWS, EXTRA, strict=True))[:world]:
        docs = rows + extra
        ranks.append(
            {
                "u": torch.randn(rows, DIM, generator=rng, dtype=torch.float64),
                "v": torch.randn(docs, DIM, generator=rng, dtype=torch.float64),
                "hard": torch.randn(rows, HARD, DIM, generator=rng, dtype=torch.float64),
                "targets": torch.randint(0, docs, (rows,), generator=rng),
                "doc_ids": torch.randint(-1, 9, (docs,), generator=rng),
                "hard_ids": torch.randint(-1, 9, (rows, HARD), generator=rng),
                "weight": torch.rand(rows, generator=rng, dtype=torch.float64) + 0.1,
            }
        )
    return ranks


def options_of(case: dict[str, Any], given: dict[str, Tensor], hard: Tensor) -> dict[str, Any]:
    options: dict[str, Any] = {"symmetric": case["symmetric"], "margin": MARGIN}
    if case["ids"]:
        options["doc_ids"] = given["doc_ids"]
    if case["scope"]:
        options |= {"hard_neg": hard, "hard_neg_scope": case["scope"]}
        if case["ids"]:
            options["hard_neg_ids"] = given["hard_ids"]
    return options


def run_case(rank: int, world: int, number: int) -> dict[str, Tensor | None]:
    case, given = CASES[number], problem(world, number)[rank]
    u, v, hard = (given[name].clone().requires_grad_() for name in ("u", "v", "hard"))
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    out = xfercore.inbatch_softmax_loss(
        u, v, scale=scale, targets=given["targets"], row_weight=given["weight"], reduction=case["reduction"],
        group=dist.group.WORLD, return_stats=True, workspace_bytes=None if number % 2 else 700,
        **options_of(case, given, hard),
    )  # fmt: skip
    (out.loss.sum() * COTANGENTS[rank]).backward()
    return {
        "loss": out.loss.detach(), "rank": out.rank, "argmax": out.argmax, "u": u.grad, "v": v.grad,
        "hard": hard.grad, "scale": scale.grad,
    }  # fmt: skip


def run_autocast(rank: int) -> list[Tensor]:
    """Loss and gradient of both directions under autocast, from embeddings of two dtypes."""
    rng = torch.Generator().manual_seed(rank)
    u = torch.randn(4, 16, generator=rng).requires_grad_()
    v = torch.randn(4, 16, generator=rng).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = xfercore.inbatch_softmax_loss(u, v, symmetric=True, scale=0.3, group=dist.group.WORLD)
    return [loss.detach(), *torch.autograd.grad(loss, (u, v))]


def refusal(rank: int, name: str) -> str:
    arguments: dict[str, Any] = {
        "u": torch.zeros(2, DIM),
        "v": torch.zeros(2, DIM),
        "symmetric": name == "grad",
    }
    if rank == 1:
        arguments |= BAD[name]
    try:
        xfercore.inbatch_softmax_loss(group=dist.group.WORLD, **arguments)
    except ValueError as error:
        return str(error)
    return ""


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    results = {
        "autocast": run_autocast(rank),
        "cases": [run_case(rank, world, number) for number in range(len(CASES))],
        "refusals": {name: refusal(rank, name) for name in BAD},
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
