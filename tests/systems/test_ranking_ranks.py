"""In-batch ranking over 2 and 4 processes: losses and gradients are those of one process with all documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranking_ranks as worker
import torch
from torch import Tensor

from xfercore import reference

WORLDS = (2, 4)


def _run(world: int, folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, str(Path(worker.__file__))]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    for process in processes:
        try:
            _, errors = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise AssertionError("the ranks wait for each other") from None
        assert process.returncode == 0, errors[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return _run(request.param, tmp_path_factory.mktemp("ranks"))


def _together(world: int, number: int) -> tuple[Any, list[dict[str, Tensor | None]]]:
    """One process with the rows of all ranks, and what each rank should have got."""
    case, given = worker.CASES[number], worker.problem(world, number)
    inputs = [{k: g[k].clone().requires_grad_() for k in ("u", "v", "hard")} for g in given]
    scale = torch.tensor(worker.SCALE, dtype=torch.float64, requires_grad=True)
    whole = {name: torch.cat([g[name] for g in given]) for name in ("doc_ids", "hard_ids")}
    first = 0
    targets = []
    for g in given:
        targets.append(g["targets"] + first)
        first += g["v"].shape[0]
    u, v, hard = (torch.cat([i[name] for i in inputs]) for name in ("u", "v", "hard"))
    out = reference.inbatch_softmax_loss(
        u, v, scale=scale, targets=torch.cat(targets), reduction="none", return_stats=True,
        **worker.options_of(case, whole, hard),
    )  # fmt: skip
    losses, total = [], torch.zeros((), dtype=torch.float64)
    for rank, rows in enumerate(out.loss.split([g["u"].shape[0] for g in given])):
        loss = rows * given[rank]["weight"]
        if case["reduction"] != "none":
            loss = loss.sum() / (given[rank]["weight"].sum() if case["reduction"] == "mean" else 1)
        losses.append(loss)
        total = total + loss.sum() * worker.COTANGENTS[rank]
    total.backward()
    wanted = [
        {"loss": loss.detach(), "scale": scale.grad, **{name: t.grad for name, t in i.items()}}
        for loss, i in zip(losses, inputs, strict=True)
    ]
    return out, wanted


def test_losses_and_gradients_are_exact(ranks: list[dict[str, Any]]) -> None:
    world, compared = len(ranks), 0
    for number in range(len(worker.CASES)):
        _, wanted = _together(world, number)
        for rank, expected in enumerate(wanted):
            actual = ranks[rank]["cases"][number]
            for name in ("loss", "u", "v", "hard"):
                if expected[name] is None:
                    assert actual[name] is None
                    continue
                torch.testing.assert_close(
                    actual[name], expected[name], rtol=1e-11, atol=1e-12, msg=f"{number} {name}"
                )
                compared += 1
        scale = sum(ranks[rank]["cases"][number]["scale"] for rank in range(world))
        torch.testing.assert_close(scale, wanted[0]["scale"], rtol=1e-11, atol=1e-12)
    assert compared >= 3 * world * len(worker.CASES)


def test_ranks_and_argmax_are_those_of_all_documents(ranks: list[dict[str, Any]]) -> None:
    world = len(ranks)
    for number, case in enumerate(worker.CASES):
        out, _ = _together(world, number)
        sizes = [part["u"].shape[0] for part in worker.problem(world, number)]
        for name, whole in (("rank", out.rank), ("argmax", out.argmax)):
            for rank, rows in enumerate(whole.split(sizes)):
                actual = ranks[rank]["cases"][number][name]
                if name == "argmax" and case["scope"] == "own":
                    # Own hard negatives come after all documents, and carry the number within the row.
                    assert torch.equal(actual, rows)
                elif name == "rank" or case["scope"] is None:
                    assert torch.equal(actual, rows)


def test_autocast_casts_before_anything_is_gathered(ranks: list[dict[str, Any]]) -> None:
    inputs = []
    for rank in range(len(ranks)):
        rng = torch.Generator().manual_seed(rank)
        u, v = torch.randn(4, 16, generator=rng), torch.randn(4, 16, generator=rng)
        inputs.append([t.bfloat16().double().requires_grad_() for t in (u, v)])
    u, v = (torch.cat([pair[side] for pair in inputs]) for side in (0, 1))
    rows = reference.inbatch_softmax_loss(u, v, symmetric=True, scale=0.3, reduction="none")
    losses = [part.mean() for part in rows.split(4)]
    torch.stack(losses).sum().backward()
    for (loss, grad_u, grad_v), wanted, pair in zip(
        (rank["autocast"] for rank in ranks), losses, inputs, strict=True
    ):
        torch.testing.assert_close(loss.double(), wanted.detach(), rtol=1e-5, atol=1e-6)
        for actual, leaf in ((grad_u, pair[0]), (grad_v, pair[1])):
            torch.testing.assert_close(actual.double(), leaf.grad, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", worker.BAD)
def test_what_is_wrong_on_one_rank_is_said_on_all(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        sentence = rank["refusals"][name]
        assert sentence.startswith("inbatch_softmax_loss(): ") and "rank 1" in sentence, sentence
    words = {"empty": "at least one query", "target": "targets[1] = 5", "ids": "doc_ids", "scale": "scale"}
    words |= {"flag": "normalize", "grad": "requires grad"}
    assert words.get(name, "dim") in ranks[0]["refusals"][name]
