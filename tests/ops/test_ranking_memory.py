"""Peak memory of in-batch ranking, in a process of its own, where nothing else has left free heap behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xfercore

_MEASURE = """
import ctypes, sys
from pathlib import Path
import torch, xfercore
from torch.nn.functional import cross_entropy

rows, dim, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(2)
u, v = (torch.randn(rows, dim).requires_grad_() for _ in range(2))

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

def step(u, v):
    if kind == "naive":
        loss = cross_entropy(0.05 * (u @ v.T), torch.arange(u.shape[0]))
    else:
        loss = xfercore.inbatch_softmax_loss(u, v, scale=0.05)
    if kind != "no_grad":
        loss.backward()

with torch.set_grad_enabled(kind != "no_grad"):
    step(u[:64].detach().requires_grad_(), v[:64].detach().requires_grad_())  # loads what a first call loads
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS:")
    step(u, v)
print(status("VmHWM:") - before)
"""


def _mib(rows: int, dim: int, kind: str) -> float:
    command = [sys.executable, "-c", _MEASURE, str(rows), str(dim), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not let a process reset its peak memory")
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_an_eighth_of_the_naive_memory() -> None:
    naive, ours = _mib(8192, 512, "naive"), _mib(8192, 512, "fused")
    print(f"8192 x 512: naive {naive:.0f} MiB, fused {ours:.0f} MiB")
    assert naive > 512, "two matrices of 8192 x 8192 at least"
    assert ours <= naive / 8


@pytest.mark.slow
def test_without_gradients_the_workspace_is_all() -> None:
    assert _mib(8192, 512, "no_grad") < 48  # 32 MiB, and what the products themselves take


@pytest.mark.long
def test_a_block_of_more_than_two_billion_logits() -> None:
    """More elements than an int32 counts; in blocks of the default size the same comes out."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    if int(meminfo["MemAvailable"].split()[0]) < 14 << 20:
        pytest.skip("needs 14 GiB of free memory")
    u, v = torch.randn(46_400, 1).requires_grad_(), torch.randn(46_400, 1).requires_grad_()
    assert u.shape[0] * v.shape[0] > 2**31
    results = []
    for budget in (9 << 30, None):
        out = xfercore.inbatch_softmax_loss(u, v, workspace_bytes=budget, return_stats=True)
        results.append((out.loss.detach(), out.rank, *torch.autograd.grad(out.loss, (u, v))))
    assert torch.equal(results[0][1], results[1][1])
    for whole, blocks in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(whole, blocks, rtol=1e-4, atol=1e-9)
