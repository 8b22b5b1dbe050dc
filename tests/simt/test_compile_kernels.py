"""The kernel check reads ptxas's report: a spill must not go unseen."""

from __future__ import annotations

from compile_kernels import parse_report

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90a'
ptxas info    : Function properties for _Z1bv
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 16 bytes cumulative stack size
"""


def test_registers_shared_memory_and_spills_are_read() -> None:
    first, second = parse_report(REPORT)
    assert (first.name, first.arch, first.registers, first.smem, first.spill_bytes) == (
        "_Z1av",
        "80",
        40,
        1024,
        0,
    )
    assert (second.arch, second.registers, second.smem, second.spill_bytes) == ("90a", 32, 0, 32)
