"""The emulator itself: right kernels run, every planted defect is found and named."""

from __future__ import annotations

import time

import pytest
import torch
from simt_harness import Arena, PlantedArgs, SimtError, call
from torch import Tensor

KERNELS = [
    "block_sum",
    "missing_barrier",
    "copy",
    "read_overrun",
    "write_overrun",
    "write_underrun",
    "write_to_input",
    "shared_overrun",
    "unreached_barrier",
    "stale_shared",
    "warp_votes",
    "partial_shuffle",
]


def run(kernel: str, values: Tensor, out: Tensor, *, seed: int = 0, layout: int = 0) -> Tensor:
    arena = Arena(layout)
    args = PlantedArgs(kernel=KERNELS.index(kernel), count=values.numel(), in_=arena.input("in", values))
    args.out = arena.output("out", out.shape, out.dtype)
    arena.outputs["out"].copy_(out)
    call("planted", args, seed)
    return arena.outputs["out"].clone()


def test_reduction_over_100000_elements_is_right_and_fast() -> None:
    values = torch.arange(100_000) % 7
    run("block_sum", values.float(), torch.zeros(1))  # compiles
    start = time.process_time()
    out = run("block_sum", values.float(), torch.zeros(1))
    assert time.process_time() - start < 1.0
    assert out.item() == values.sum().item()


def test_missing_barrier_shows_as_a_wrong_result() -> None:
    values = torch.ones(5000)
    right = [run("block_sum", values, torch.zeros(1), seed=seed).item() for seed in range(3)]
    wrong = [run("missing_barrier", values, torch.zeros(1), seed=seed).item() for seed in range(3)]
    assert right == [5000.0] * 3
    assert all(value != 5000.0 for value in wrong)


@pytest.mark.parametrize("layout", [0, 1, 2])
def test_copy_within_bounds_passes(layout: int) -> None:
    values = torch.randn(300)
    assert torch.equal(run("copy", values, torch.empty(300), layout=layout), values)


@pytest.mark.parametrize(
    ("kernel", "layout", "message"),
    [
        (
            "read_overrun",
            0,
            r"read_kernel: block .* thread .* read \d+ bytes past the end of 'in' \(1200 bytes\)",
        ),
        ("read_overrun", 2, r"read_kernel: .* read \d+ bytes past the end of 'in'"),
        ("write_overrun", 0, r"copy_kernel: .* write 0 bytes past the end of 'out' \(1200 bytes\)"),
        ("write_overrun", 1, r"copy_kernel: write 0 bytes past the end of 'out'"),
        ("write_underrun", 1, r"copy_kernel: .* write 4 bytes before the start of 'out'"),
        ("write_underrun", 0, r"copy_kernel: write 4 bytes before the start of 'out'"),
        ("write_to_input", 0, r"write_to_input_kernel: .* write to the read-only argument 'in', byte 0"),
        (
            "shared_overrun",
            0,
            r"shared_overrun_kernel: .* write 0 bytes past the end of 'dynamic shared memory'",
        ),
        (
            "unreached_barrier",
            0,
            r"unreached_barrier_kernel: deadlock .* 128 of 256 .* 128 wait at .*planted.cu:\d+",
        ),
        ("partial_shuffle", 0, r"partial_shuffle_kernel: .*mask names a lane that has ended"),
    ],
)
def test_planted_defect_is_found_and_named(kernel: str, layout: int, message: str) -> None:
    with pytest.raises(SimtError, match=message):
        run(kernel, torch.randn(300), torch.zeros(300), layout=layout)
    # The emulator is usable after the abort.
    values = torch.randn(300)
    assert torch.equal(run("copy", values, torch.empty(300)), values)


def test_shared_memory_is_poisoned_before_each_block() -> None:
    assert run("stale_shared", torch.ones(1), torch.zeros(1)).isnan().item()


@pytest.mark.parametrize("seed", range(4))
def test_votes_and_shuffles_follow_cuda(seed: int) -> None:
    assert run("warp_votes", torch.ones(1), torch.zeros(64), seed=seed).eq(1.0).all()
