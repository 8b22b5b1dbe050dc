"""The measures: quantiles, the order of a round, the floor, relative error, peak memory, seconds per call."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "Run",
    "Work",
    "floor_seconds",
    "peak_memory",
    "quantile",
    "relative_error",
    "rotated",
    "summary",
    "time_calls",
]

Run = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Work:
    """The least a computation must do: FLOPs of its matrix products and bytes, each operand once.

    ``matmul`` is the ``(m, k, n)`` product whose measured rate stands for the FLOPs, in ``matmul_dtype`` (None: the
    inputs').
    """

    flops: float = 0.0
    bytes: float = 0.0
    matmul: tuple[int, int, int] | None = None
    matmul_dtype: torch.dtype | None = None


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q`` quantile by linear interpolation between order statistics."""
    if not values:
        raise ValueError("quantile: values is empty, expected at least one number")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def summary(values: Sequence[float]) -> dict[str, float]:
    """``{"p20", "p50", "p80"}`` of the values."""
    return {f"p{round(100 * q)}": quantile(values, q) for q in (0.2, 0.5, 0.8)}


def rotated(count: int, round_index: int) -> list[int]:
    """The order of a round: every variant once, every place taken by each variant in turn.

    The order rotated is the zigzag 0, 1, n-1, 2, n-2, ... of a balanced Latin square: in a plain rotation a
    variant would follow the same one in every round and always meet the cache and heap that one leaves.
    """
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    return [(place + round_index) % count for place in zigzag]


def floor_seconds(work: Work, flops_per_s: float | None, bytes_per_s: float) -> tuple[float, str]:
    """The larger of FLOPs over the matmul rate and bytes over the copy rate, and which of them it is."""
    by_flops = work.flops / flops_per_s if flops_per_s else 0.0
    by_bytes = work.bytes / bytes_per_s
    return (by_flops, "flops") if by_flops > by_bytes else (by_bytes, "bytes")


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest ``|got - expected| / |expected|`` (2-norms) over the leading tensors both sides have."""
    worst = 0.0
    for a, b in zip(got, expected, strict=False):
        a64, b64 = a.detach().double(), b.detach().double()
        if a64.shape != b64.shape:
            raise ValueError(f"relative_error: shapes {tuple(a.shape)} and {tuple(b.shape)} differ")
        gap, norm = float((a64 - b64).norm()), float(b64.norm())
        error = gap / norm if norm else gap
        worst = math.nan if math.isnan(error) or math.isnan(worst) else max(worst, error)
    return worst


def _status_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


def peak_memory(run: Run, device: str) -> int | None:
    """Bytes that one call needs on top of what stands before it, results included; None if unknown.

    CUDA: peak of the caching allocator. Linux CPU: free heap pages go back to the system first, then the
    kernel's high-water mark of the resident set is reset, and its rise counts. That sees scratch memory of
    native code, which a count of torch's own allocations would miss. What an implementation keeps from one
    call to the next is not seen by either; on the CPU, blocks under 32 MiB may come from free heap that glibc did
    not give back, so small figures are lower bounds.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        del result
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kib("VmRSS")
    except (OSError, AttributeError, KeyError):  # not glibc, not Linux, or a locked-down container
        return None
    result = run()
    peak = _status_kib("VmHWM")
    del result
    return max(0, peak - before) * 1024


def time_calls(run: Run, repeats: int, device: str, flush: Tensor | None) -> dict[str, float]:
    """Seconds per call on every clock the device has."""
    if device == "cuda":
        pairs = []
        for _ in range(repeats):
            if flush is not None:
                flush.zero_()  # out of cache, and the GPU stays busy while the host queues the launches
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return {"device": sum(a.elapsed_time(b) for a, b in pairs) / 1e3 / repeats}
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    cpu_end, wall_end = time.process_time(), time.perf_counter()
    return {"cpu": (cpu_end - cpu) / repeats, "wall": (wall_end - wall) / repeats}
