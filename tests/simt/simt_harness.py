"""Builds the CUDA kernels with the host compiler and calls their launchers with guarded buffers.

The library is cached in ``build/simt`` under a hash of its sources; the argument structs are those of
``csrc/ops/<op>/<op>.h``, field by field.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "simt"
FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-DXFER_SIMT", "-ffp-contract=fast"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# The checked longjmp of hardened C libraries refuses to jump between fibers.
FLAGS += ["-U_FORTIFY_SOURCE", f"-I{ROOT / 'csrc'}", f"-I{HERE}"]

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class SimtError(RuntimeError):
    """A defect the emulator found, or an error the launcher raised."""


def compiler() -> str | None:
    """The host C++ compiler, or None."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


@cache
def library() -> ctypes.CDLL:
    """The emulator with every kernel of csrc/ops, compiled at first use."""
    csrc = ROOT / "csrc"
    sources = [*sorted(csrc.glob("ops/*/*.cu")), *sorted(HERE.glob("*.cu")), *sorted(HERE.glob("*.cpp"))]
    headers = [*sorted(csrc.glob("**/*.h")), *sorted(csrc.glob("**/*.cuh")), *sorted(HERE.glob("*.h"))]
    cxx = compiler()
    if cxx is None:
        raise SimtError("no C++ compiler: set CXX or install g++")
    digest = hashlib.sha256(" ".join([cxx, *FLAGS]).encode())
    for path in sources + headers:
        digest.update(path.name.encode() + path.read_bytes())
    target = BUILD / f"simt_{digest.hexdigest()[:16]}.so"
    if not target.exists():
        _compile(cxx, sources, target)
    lib = ctypes.CDLL(str(target))
    lib.simt_buffer.restype = ctypes.c_void_p
    lib.simt_buffer.argtypes = [
        ctypes.c_char_p,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_bool,
    ]
    lib.simt_seed.argtypes = [ctypes.c_uint64]
    return lib


def _compile(cxx: str, sources: Sequence[Path], target: Path) -> None:
    work = BUILD / f"{target.stem}.{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> Path:
        out = work / f"{source.stem}.o"
        command = [cxx, *FLAGS, "-x", "c++", "-c", str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SimtError(f"{source.name} does not compile for tests/simt:\n{done.stderr}")
        return out

    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(one, sources))
        linked = work / target.name
        subprocess.run([cxx, "-shared", "-o", str(linked), *map(str, objects)], check=True)
        linked.replace(target)  # whole or not at all, also with several test processes
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Arena:
    """Guarded copies of tensors for one launch.

    ``layout`` 0 puts each buffer's end at a guard page (its start is then aligned to one element alone),
    1 its start, 2 its end rounded up to 16 bytes.
    """

    def __init__(self, layout: int = 0) -> None:
        self.layout = layout
        self.outputs: dict[str, Tensor] = {}
        library().simt_free_buffers()

    def _buffer(
        self, name: str, dtype: torch.dtype, shape: Sequence[int], writable: bool
    ) -> tuple[int, Tensor]:
        count = 1
        for size in shape:
            count *= size
        item = dtype.itemsize
        address = library().simt_buffer(name.encode(), count * item, item, self.layout, writable)
        if count == 0:
            return address, torch.empty(tuple(shape), dtype=dtype)
        raw = (ctypes.c_uint8 * (count * item)).from_address(address)
        return address, torch.frombuffer(raw, dtype=dtype).view(tuple(shape))

    def input(self, name: str, value: Tensor | None) -> int | None:
        """The address of a read-only copy of ``value``; None for None."""
        if value is None:
            return None
        address, view = self._buffer(name, value.dtype, value.shape, False)
        view.copy_(value)
        return address

    def output(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> int:
        """The address of a poisoned buffer; its contents after the launch are ``self.outputs[name]``."""
        address, self.outputs[name] = self._buffer(name, dtype, shape, True)
        return address


def call(launcher: str, args: ctypes.Structure, seed: int) -> None:
    """Runs a launcher under the thread order of ``seed``; a defect raises :class:`SimtError`."""
    lib = library()
    size = getattr(lib, f"{launcher}_args_size")
    size.restype = ctypes.c_uint64
    if size() != ctypes.sizeof(args):
        raise SimtError(f"{type(args).__name__} of simt_harness.py differs from the C++ struct of {launcher}")
    function = getattr(lib, launcher)
    function.restype = ctypes.c_char_p
    lib.simt_seed(seed)
    error = function(ctypes.byref(args))
    if error is not None:
        raise SimtError(error.decode())


_P, _I64 = ctypes.c_void_p, ctypes.c_int64


class PlantedArgs(ctypes.Structure):
    _fields_ = [("kernel", ctypes.c_int32), ("count", _I64), ("in_", _P), ("out", _P)]


class GradReverseBackwardArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("num_rows", _I64),
        ("row_size", _I64),
        ("grad", _P),
        ("lam", _P),
        ("lam_per_row", ctypes.c_bool),
        ("scale", ctypes.c_double),
        ("out", _P),
        ("stream", _P),
    ]


MAX_POINTERS = 64


class GatedMixExperts(ctypes.Structure):
    _fields_ = [
        ("pointers", _P * MAX_POINTERS),
        ("row_stride", _I64 * MAX_POINTERS),
        ("expert_stride", _I64),
        ("stacked", ctypes.c_bool),
    ]


class GatedMixForwardArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("num_tokens", _I64),
        ("num_experts", _I64),
        ("dim", _I64),
        ("logits", _P),
        ("experts", GatedMixExperts),
        ("targets", _P),
        ("ignore_index", _I64),
        ("mixed", _P),
        ("gate_nll", _P),
        ("status", _P),
        ("stream", _P),
    ]


class GatedMixBackwardArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("num_tokens", _I64),
        ("num_experts", _I64),
        ("dim", _I64),
        ("grad_mixed", _P),
        ("grad_nll", _P),
        ("logits", _P),
        ("experts", GatedMixExperts),
        ("targets", _P),
        ("ignore_index", _I64),
        ("grad_logits", _P),
        ("grad_experts", GatedMixExperts),
        ("need_grad_experts", ctypes.c_bool),
        ("stream", _P),
    ]


class MoeMlpMixShape(ctypes.Structure):
    _fields_ = [
        ("num_tokens", _I64),
        ("num_experts", _I64),
        ("in_dim", _I64),
        ("hidden_dim", _I64),
        ("out_dim", _I64),
    ]


class MoeMlpMixForwardArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("shape", MoeMlpMixShape),
        ("act1", ctypes.c_int32),
        ("act2", ctypes.c_int32),
        ("mix", ctypes.c_int32),
        ("dropout_p", ctypes.c_double),
        ("seed_offset", _P),
        ("x", _P),
        ("gate_weight", _P),
        ("gate_bias", _P),
        ("w1", _P),
        ("b1", _P),
        ("w2", _P),
        ("b2", _P),
        ("out", _P),
        ("gate_logits", _P),
        ("hidden", _P),
        ("expert_out", _P),
        ("lse", _P),
        ("gemm", _P),
        ("scratch", _P),
        ("workers", ctypes.c_int),
        ("stream", _P),
    ]


class MoeMlpMixBackwardArgs(ctypes.Structure):
    _fields_ = [
        ("forward", MoeMlpMixForwardArgs),
        ("grad_out", _P),
        ("grad_gate_logits", _P),
        ("detach_gate_input", ctypes.c_bool),
        ("grad_x", _P),
        ("grad_gate_weight", _P),
        ("grad_gate_bias", _P),
        ("grad_w1", _P),
        ("grad_b1", _P),
        ("grad_w2", _P),
        ("grad_b2", _P),
        ("workspace", _P),
    ]


class TaskGradientsView(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("num_tasks", _I64),
        ("num_columns", _I64),
        ("num_segments", _I64),
        ("offsets", _P),
        ("base", _P),
        ("row_stride", _I64),
        ("pointers", _P),
    ]


class TaskGramArgs(ctypes.Structure):
    _fields_ = [
        ("grads", TaskGradientsView),
        ("num_groups", _I64),
        ("group_offsets", _P),
        ("gram", _P),
        ("workspace", _P),
        ("status", _P),
        ("stream", _P),
    ]


class CombineGradientsArgs(ctypes.Structure):
    _fields_ = [
        ("grads", TaskGradientsView),
        ("num_groups", _I64),
        ("group_offsets", _P),
        ("weights", _P),
        ("out", _P),
        ("out_pointers", _P),
        ("stream", _P),
    ]


class SurgeryOrder(ctypes.Structure):
    _fields_ = [("order", _P), ("group_stride", _I64), ("row_stride", _I64), ("seed_step", _P)]


class GradVacCoefArgs(ctypes.Structure):
    _fields_ = [
        ("num_groups", _I64),
        ("num_tasks", _I64),
        ("gram", _P),
        ("ema", _P),
        ("beta", ctypes.c_double),
        ("order", SurgeryOrder),
        ("target", _P),
        ("use_target_value", ctypes.c_bool),
        ("target_value", ctypes.c_double),
        ("target_clip", ctypes.c_double),
        ("residual_eps", ctypes.c_double),
        ("task_weights", _P),
        ("task_mask", _P),
        ("apply_to", _P),
        ("weights", _P),
        ("new_ema", _P),
        ("cosine", _P),
        ("moved", _P),
        ("coefficients", _P),
        ("stream", _P),
    ]


class MgdaCoefArgs(ctypes.Structure):
    _fields_ = [
        ("num_groups", _I64),
        ("num_tasks", _I64),
        ("gram", _P),
        ("scale", _P),
        ("task_mask", _P),
        ("tolerance", ctypes.c_double),
        ("max_iterations", _I64),
        ("weights", _P),
        ("gap", _P),
        ("stream", _P),
    ]


class GradNormStatsArgs(ctypes.Structure):
    _fields_ = [
        ("num_groups", _I64),
        ("num_tasks", _I64),
        ("gram", _P),
        ("losses", _P),
        ("initial_losses", _P),
        ("weights", _P),
        ("task_mask", _P),
        ("alpha", ctypes.c_double),
        ("grad_weights", _P),
        ("loss", _P),
        ("norms", _P),
        ("stream", _P),
    ]


class AgemCoefArgs(ctypes.Structure):
    _fields_ = [
        ("num_groups", _I64),
        ("num_tasks", _I64),
        ("gram", _P),
        ("reference", _I64),
        ("weights", _P),
        ("cosine", _P),
        ("stream", _P),
    ]
