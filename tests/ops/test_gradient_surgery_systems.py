"""Gradient surgery over processes that hold shards, and on CUDA: one graph, no waiting, what the CPU computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from surgery_vectors import conflicting, normal
from torch import Tensor

import xfercore
from xfercore.testing import assert_close, same_values

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_shards_and_one_all_reduce_are_the_whole(tmp_path: Path) -> None:
    """Two processes on gloo, uneven shards: the Gram matrices add up, and every process draws the same orders."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in [str(HERE), *sys.path] if p)
    done = subprocess.run(
        [sys.executable, *launcher, str(HERE / "sharded_surgery.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank-*.json"))]
    assert len(ranks) == 2
    for rank in ranks:
        for form, errors in rank["errors"].items():
            assert errors["weights"] < 1e-12 and errors.get("ema", 0.0) < 1e-12, (form, errors)
            # A weight that differs in its last bit may round to the next float32.
            assert errors["out"] < {"float32": 1e-6, "bfloat16": 1e-2}.get(form, 1e-12), (form, errors)
    assert ranks[0]["bits"] == ranks[1]["bits"], "ranks would step apart"


# ---- CUDA

OFFSETS = [0, 700, 701, 701, 20_001]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever synchronises the host with the device raises."""
    xfercore.device_status("cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def _step(g: Tensor, offsets: Tensor, ema: Tensor, seed_step: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    gram = xfercore.task_gram(g, offsets)
    found = xfercore.gradvac_coef(gram, ema, beta=0.3, seed_step=seed_step)
    xfercore.combine_gradients(g, offsets, found.weights, out=out)
    return found.weights, found.ema


@pytest.mark.gpu
def test_a_graph_of_the_arena_form_replays_with_new_gradients_steps_and_averages() -> None:
    tasks = 7
    g = torch.zeros(tasks, OFFSETS[-1], device="cuda")
    offsets = torch.tensor(OFFSETS, device="cuda")
    ema = torch.zeros(len(OFFSETS) - 1, tasks, tasks, dtype=torch.float64, device="cuda")
    seed_step, out = torch.tensor([5, 0], device="cuda"), torch.empty(OFFSETS[-1], device="cuda")
    g.copy_(conflicting(tasks, OFFSETS[-1]))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _step(g, offsets, ema, seed_step, out)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        weights, new_ema = _step(g, offsets, ema, seed_step, out)
        ema.copy_(new_ema)
        seed_step[1] += 1
    expected_ema, expected_out = torch.zeros_like(ema), torch.empty_like(out)
    ema.zero_(), seed_step.copy_(torch.tensor([5, 0]))
    for step in range(5):
        g.copy_(conflicting(tasks, OFFSETS[-1], seed=step))
        graph.replay()
        wanted, expected_ema = _step(
            g, offsets, expected_ema, torch.tensor([5, step], device="cuda"), expected_out
        )
        assert (
            torch.equal(weights, wanted) and torch.equal(ema, expected_ema) and torch.equal(out, expected_out)
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 8, 25, 33, 65])
def test_cuda_computes_what_the_cpu_does(tasks: int, dtype: torch.dtype) -> None:
    g, offsets = conflicting(tasks, OFFSETS[-1], dtype=dtype), torch.tensor(OFFSETS)
    ema = torch.full((len(OFFSETS) - 1, tasks, tasks), 0.2, dtype=torch.float64)
    seed_step = torch.tensor([2**40 + 1, 2**33 + 3])
    gram = xfercore.task_gram(g, offsets)
    assert_close(xfercore.task_gram(g.cuda(), offsets.cuda()).cpu(), gram, "gram", tolerance=1e-13)
    found = xfercore.gradvac_coef(gram, ema, seed_step=seed_step)
    there = xfercore.gradvac_coef(gram.cuda(), ema.cuda(), seed_step=seed_step.cuda())
    for name, one, other in zip(found._fields, there, found, strict=True):
        assert_close(one.cpu(), other, name, tolerance=1e-10)
    out = xfercore.combine_gradients(g, offsets, found.weights)
    combined = xfercore.combine_gradients(g.cuda(), offsets.cuda(), found.weights.cuda())
    assert_close(combined.cpu(), out, "combined")
    mgda = xfercore.mgda_coef(gram.cuda(), tolerance=1e-14)
    assert_close(
        mgda.weights.cpu(), xfercore.mgda_coef(gram, tolerance=1e-14).weights, "mgda", tolerance=1e-5
    )


@pytest.mark.gpu
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("form", ["arena", "arena-offsets-on-the-host", "arena-no-offsets", "list"])
def test_nothing_waits_for_the_device(form: str) -> None:
    torch.cuda.set_sync_debug_mode("default")
    g = normal(4, OFFSETS[-1], dtype=torch.float32).cuda()
    cut = [700, 1, OFFSETS[-1] - 701]
    grads = g if form.startswith("arena") else [list(row.split(cut)) for row in g]
    offsets = {"arena": torch.tensor(OFFSETS, device="cuda"), "arena-no-offsets": None, "list": [0, 1, 1, 3]}
    taken = offsets.get(form, OFFSETS)
    seed_step = torch.tensor([1, 2], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    gram = xfercore.task_gram(grads, taken)
    found = xfercore.gradvac_coef(gram, torch.zeros_like(gram), seed_step=seed_step)
    xfercore.combine_gradients(grads, taken, found.weights)
    xfercore.pcgrad_coef(gram, seed_step=seed_step)
    xfercore.mgda_coef(gram)
    xfercore.agem_coef(gram)
    ones = gram[0, 0] * 0 + 1
    xfercore.gradnorm_stats(gram, ones, ones, ones)


@pytest.mark.gpu
@pytest.mark.parametrize("offsets", [[0, 3, 2, 5], [-1, 2, 5], [0, 2, 6]])
def test_offsets_out_of_order_or_range_give_nan_and_a_flag(offsets: list[int]) -> None:
    xfercore.device_status("cuda")
    gram = xfercore.task_gram(torch.ones(2, 5, device="cuda"), torch.tensor(offsets, device="cuda"))
    assert gram.isnan().any()
    assert any("task_gram" in sentence for sentence in xfercore.device_status("cuda"))


@pytest.mark.gpu
def test_bits_on_cuda_are_the_same_from_run_to_run_and_in_lists() -> None:
    cut = [700, 1, OFFSETS[-1] - 701]
    g = conflicting(9, OFFSETS[-1], dtype=torch.float32).cuda()
    lists = [list(row.split(cut)) for row in g]
    ends = torch.tensor([0, 700, 701, OFFSETS[-1]], device="cuda")
    gram = xfercore.task_gram(g, ends)
    for _ in range(20):
        assert same_values(xfercore.task_gram(g, ends), gram)
    assert_close(xfercore.task_gram(lists, [0, 1, 2, 3]), gram, "lists", tolerance=1e-14)
