"""Is this installation in order, and which kernels will it use? Facts, choices with their reasons, and a self-test."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xferkit.runs.environment import hardware, num_cores, source_commit, versions

__all__ = ["ARRANGED", "Finding", "examine"]

Section = Literal["versions", "machine", "kernels", "self-test", "disk"]

_PACKAGES = (
    "xfercore",
    "torch",
    "numpy",
    "scipy",
    "accelerate",
    "safetensors",
    "jsonargparse",
    "rich",
    "tqdm",
)
_EXTRAS = {
    "tokenizers": "subword vocabularies",
    "datasets": "Hugging Face datasets on disk",
    "Babel": "the demo's names",
    "matplotlib": "PNG figures",
}
_CUDA = "CUDA kernel"

#: Ops that have no kernel of their own, with what they do instead.
ARRANGED = {"linear_grad_reverse": "the reversal is folded into the backward GEMM"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        section: where it belongs.
        name: what was looked at.
        value: what was found.
        problem: a sentence when something is broken, None when it is in order.
    """

    section: Section
    name: str
    value: str
    problem: str | None = None


def examine(folder: Path | None = None) -> Iterator[Finding]:
    """Everything, one finding after the other; none of them raises.

    Args:
        folder: the folder whose disk is looked at (None: the working directory); nothing stays in it.
    """
    for part in (_versions, _machine, _kernels, lambda: _disk(folder or Path.cwd())):
        yield from part()


def _versions() -> Iterator[Finding]:
    for name, version in versions(_PACKAGES).items():
        missing = version == "not installed"
        problem = f"{name} is not installed; run: pip install xfercore" if missing else None
        yield Finding("versions", name, version, problem)
    for name, version in versions(tuple(_EXTRAS)).items():
        if name != "python":
            note = f" (only for {_EXTRAS[name]})" if version == "not installed" else ""
            yield Finding("versions", name, version + note)
    yield Finding("versions", "commit", source_commit() or "installed package, no checkout")


def _machine() -> Iterator[Finding]:
    for name, value in hardware().items():
        yield Finding("machine", name, value)
    quota = _cpu_quota()
    if quota is not None and quota < num_cores():
        yield Finding("machine", "CPU quota", f"{quota:g} cores, fewer than the {num_cores()} that show")
    try:
        import torch
    except Exception as error:
        problem = f"torch cannot be imported ({type(error).__name__}: {error}); run: pip install torch"
        yield Finding("machine", "torch", "cannot be imported", problem)
        return
    forced = os.environ.get("OMP_NUM_THREADS")
    reason = f"OMP_NUM_THREADS={forced}" if forced else "one a core; OMP_NUM_THREADS changes it"
    yield Finding("machine", "threads", f"{torch.get_num_threads()} ({reason})")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(index)
            memory = f"{p.total_memory / 2**30:.0f} GiB"
            yield Finding("machine", f"GPU {index}", f"{p.name}, {memory}, sm_{p.major}{p.minor}")
    else:
        yield Finding("machine", "GPU", "none that torch can use")


def _cpu_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _kernels() -> Iterator[Finding]:
    try:
        import xfercore
        from xfercore import ops
    except Exception as error:
        yield Finding("kernels", "xfercore", "cannot be imported", f"xfercore cannot be imported: {error}")
        return
    info = xfercore.build_info()
    cuda = f"CUDA {info['cuda']} for {info['cuda_archs']}" if info["cuda"] else "no CUDA kernels"
    yield Finding("kernels", "build", f"torch {info['torch']}, {info['compiler']}, {cuda}")
    why = _cpu_reason(info["cpu_isa"])
    gpu, gpu_why = _gpu_choice(info["cuda"], info["cuda_archs"])
    for op in ops.__all__:
        own = op not in ARRANGED
        cpu = f"{info['cpu_isa']} ({why})" if own else f"torch's own kernels ({ARRANGED[op]})"
        yield Finding("kernels", f"{op} on CPU", cpu)
        yield Finding("kernels", f"{op} on GPU", f"{gpu if own or gpu != _CUDA else cpu} ({gpu_why})")
    from xferkit.runs.selftest import self_test

    for device in ["cpu", *(["cuda"] if gpu == _CUDA else [])]:
        for op in ops.__all__:
            result = self_test(op, device)
            text = "broken" if result.problem else f"agrees with its definition ({result.seconds:.2f} s)"
            yield Finding("self-test", f"{op} on {device}", text, result.problem)
    if gpu == _CUDA:
        for sentence in xfercore.device_status():
            yield Finding("self-test", "device status", "set", sentence)


def _cpu_reason(level: str) -> str:
    forced = os.environ.get("XFER_CPU_ISA")
    if forced == level:
        return f"XFER_CPU_ISA={forced} asks for it"
    has = {
        "avx512": "the processor has AVX-512 F, BW, DQ and VL",
        "avx2": "the processor has AVX2, FMA and F16C, and not all of AVX-512",
        "portable": "the processor lacks AVX2, FMA or F16C",
    }.get(level, "the best there is")
    note = f"; XFER_CPU_ISA={forced} is no lower level of it and counts for nothing" if forced else ""
    return has + note


def _gpu_choice(cuda: str | None, archs: str | None) -> tuple[str, str]:
    import torch

    if not torch.cuda.is_available():
        return "none", "torch sees no GPU"
    if cuda is None:
        reason = "this build has no CUDA kernels; build again where nvcc is, with XFER_CUDA=1"
        return "none; tensors on the GPU raise", reason
    major, minor = torch.cuda.get_device_capability()
    return _CUDA, f"sm_{major}{minor}; the build holds {archs}"


def _disk(folder: Path) -> Iterator[Finding]:
    try:
        usage = shutil.disk_usage(folder)
        yield Finding("disk", "folder", str(folder))
        yield Finding("disk", "free", f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".xferkit-doctor-") as scratch:
            yield _fsync_time(Path(scratch))
            yield _lock(Path(scratch))
    except OSError as error:
        where = error.filename or folder
        problem = (
            f"cannot write to {where}: {error.strerror or error}; a training needs a folder it can write to"
        )
        yield Finding("disk", "folder", str(folder), problem)


def _fsync_time(scratch: Path) -> Finding:
    from xferkit.files import write_atomic

    start = time.perf_counter()
    write_atomic(scratch / "probe", b"\0" * 2**20)
    taken = time.perf_counter() - start
    return Finding("disk", "1 MiB, written safely", f"{1e3 * taken:.0f} ms (written, flushed, renamed)")


def _lock(scratch: Path) -> Finding:
    import fcntl

    with open(scratch / "lock", "w") as first, open(scratch / "lock", "w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Finding("disk", "locks", "hold")
    problem = (
        "file locks do not hold in this folder (a network file system?); two trainings in one folder would "
        "destroy each other's checkpoints, so use another disk"
    )
    return Finding("disk", "locks", "do not hold", problem)
