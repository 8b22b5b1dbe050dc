"""The error bounds of csrc/common/vector_math.h and exact_math.h, and Philox by sixteen, for every instruction set."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import xfercore

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
#include "common/vector_math.h"
#include "common/exact_math.h"
#include "common/philox_lanes.h"
extern "C" void exact_exp_f32(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = xfer::exact_exp(x[i]);
}
extern "C" void exact_log_f32(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = xfer::exact_log(x[i]);
}
extern "C" void philox_64(int64_t seed, int64_t offset, uint64_t first, uint32_t* block, uint32_t* single) {
  uint32_t words[64];
  xfer::philox_block({seed, offset}, 3, first, words);
  for (int i = 0; i < 64; ++i) {
    block[i] = words[i];
    single[i] = xfer::philox_words({seed, offset}, 3, first + i / 4).word[i % 4];
  }
}
extern "C" void exp_f32(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = xfer::vector_exp(x[i]);
}
extern "C" void tanh_f32(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = xfer::vector_tanh(x[i]);
}
extern "C" void philox(const uint32_t* c, const uint32_t* k, uint32_t* out) {
  const xfer::Philox4 words = xfer::philox4x32_10(c[0], c[1], c[2], c[3], k[0], k[1]);
  for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}
"""
# As in CMakeLists.txt: contraction to fma changes the last bits, so each level is measured by itself.
LEVELS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
ORDER = list(LEVELS)


@pytest.fixture(scope="module", params=ORDER)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("compiles vector_math.h with a host C++ compiler: none found")
    best = os.environ.get("XFER_CPU_ISA") or xfercore.build_info()["cpu_isa"]
    if ORDER.index(request.param) > ORDER.index(best):
        pytest.skip(f"this machine runs {best}, not {request.param}")
    folder = tmp_path_factory.mktemp("vector_math")
    (folder / "probe.cpp").write_text(SOURCE)
    flags = [
        "-std=c++20",
        "-O3",
        "-fPIC",
        "-shared",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
    ]
    command = [
        *compiler.split(),
        *flags,
        *LEVELS[request.param],
        f"-I{ROOT / 'csrc'}",
        "probe.cpp",
        "-o",
        "probe.so",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "probe.so"))


def _apply(function: ctypes._NamedFuncPointer, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    pointer = ctypes.POINTER(ctypes.c_float)
    function(x.ctypes.data_as(pointer), out.ctypes.data_as(pointer), ctypes.c_int64(x.size))
    return out


def _every_nth_float(low: float, high: float, step: int) -> np.ndarray:
    """Floats of both signs between two magnitudes, evenly over their bit patterns."""
    first, last = (int(np.float32(v).view(np.uint32)) for v in (low, high))
    positive = np.arange(first, last, step, dtype=np.uint32).view(np.float32)
    return np.concatenate([positive, -positive])


def _ulp_error(actual: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in units of the last place of the exact value; subnormal results are not counted."""
    normal = np.abs(exact) >= np.finfo(np.float32).tiny
    exact, actual = exact[normal], actual[normal].astype(np.float64)
    assert np.isfinite(actual).all()
    ulp = np.exp2(np.floor(np.log2(np.abs(exact))) - 23)
    return float((np.abs(actual - exact) / ulp).max())


def test_exp_is_within_its_bound(library: ctypes.CDLL) -> None:
    x = _every_nth_float(1e-30, 87.33, 997)
    x = np.concatenate([x, np.linspace(-87.33, 88.72, 2_000_003, dtype=np.float32)])
    assert _ulp_error(_apply(library.exp_f32, x), np.exp(x.astype(np.float64))) <= 1.5


def test_tanh_is_within_its_bound(library: ctypes.CDLL) -> None:
    x = np.concatenate([_every_nth_float(1e-30, 30.0, 997), np.linspace(-1, 1, 2_000_003, dtype=np.float32)])
    actual = _apply(library.tanh_f32, x)
    assert _ulp_error(actual, np.tanh(x.astype(np.float64))) <= 3.0
    assert (np.abs(actual) <= 1.0).all()


def test_special_values(library: ctypes.CDLL) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([0.0, -0.0, inf, -inf, nan, 88.7229, 89.0, 1e30, -87.3366, -1e30, 1e-45, -1e-45], np.float32)
    exp = _apply(library.exp_f32, x)
    expected = [1.0, 1.0, inf, 0.0, nan, inf, inf, inf, 0.0, 0.0, 1.0, 1.0]
    np.testing.assert_array_equal(exp, np.array(expected, np.float32))
    tanh = _apply(library.tanh_f32, x)
    expected = [0.0, -0.0, 1.0, -1.0, nan, 1.0, 1.0, 1.0, -1.0, -1.0, x[10], x[11]]
    np.testing.assert_array_equal(tanh, np.array(expected, np.float32))


def test_exp_of_results_below_the_smallest_normal_number(library: ctypes.CDLL) -> None:
    x = np.linspace(-110, -87.4, 10_001, dtype=np.float32)
    assert (_apply(library.exp_f32, x) == 0.0).all()


def test_philox_known_answers(library: ctypes.CDLL) -> None:
    from test_philox import KNOWN

    for counter, key, expected in KNOWN:
        words = [(ctypes.c_uint32 * len(t.split()))(*(int(w, 16) for w in t.split())) for t in (counter, key)]
        out = (ctypes.c_uint32 * 4)()
        library.philox(*words, out)
        assert " ".join(f"{word:08x}" for word in out) == expected


def test_exact_exp_and_log_are_within_their_bounds(library: ctypes.CDLL) -> None:
    x = _every_nth_float(1e-30, 87.33, 997)
    x = np.concatenate([x, np.linspace(-87.33, 88.72, 2_000_003, dtype=np.float32)])
    exp = _apply(library.exact_exp_f32, x)
    assert _ulp_error(exp, np.exp(x.astype(np.float64))) <= 1.1
    x = np.abs(_every_nth_float(1.2e-38, 3e38, 4001))
    assert _ulp_error(_apply(library.exact_log_f32, x), np.log(x.astype(np.float64))) <= 1.0
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 89.0, -1e30], np.float32)
    np.testing.assert_array_equal(
        _apply(library.exact_exp_f32, special), [1, 1, np.inf, 0, np.nan, np.inf, 0]
    )


_EXACT_BITS: dict[str, bytes] = {}


def test_exact_exp_and_log_have_the_same_bits_on_every_level(library: ctypes.CDLL) -> None:
    """The first level that runs is what the others are compared with."""
    x = np.concatenate([np.linspace(-90, 90, 1_000_003, dtype=np.float32), _every_nth_float(1e-30, 80, 4001)])
    bits = {
        "exp": _apply(library.exact_exp_f32, x).tobytes(),
        "log": _apply(library.exact_log_f32, np.abs(x) + np.float32(1e-30)).tobytes(),
    }
    for name, found in bits.items():
        assert _EXACT_BITS.setdefault(name, found) == found, name


@pytest.mark.parametrize("first", [0, 1, 2**32 - 17, 2**32 - 16, 2**32 - 1, 2**32, 2**40 + 5])
def test_sixteen_counters_at_once_are_the_single_ones(library: ctypes.CDLL, first: int) -> None:
    """Across the carry into the counter's high word too."""
    block, single = ((ctypes.c_uint32 * 64)() for _ in range(2))
    seed, offset = ctypes.c_int64(2**61 + 12345), ctypes.c_int64(-(2**33) - 7)
    library.philox_64(seed, offset, ctypes.c_uint64(first), block, single)
    assert list(block) == list(single) and len(set(block)) == 64


def test_the_op_computes_this_tanh() -> None:
    """Through moe_mlp_mix with identity weights: the compiled module, at the level that this machine runs."""
    values = torch.from_numpy(_every_nth_float(1e-20, 20.0, 20011))
    tokens = values[: values.numel() // 4 * 4].view(-1, 4)
    eye, zeros = torch.eye(4)[None], torch.zeros(1, 4)
    out, _ = xfercore.moe_mlp_mix(
        tokens, zeros, torch.zeros(1), eye, zeros, eye, zeros, act1="none", act2="tanh"
    )
    assert _ulp_error(out.numpy(), np.tanh(tokens.numpy().astype(np.float64))) <= 3.0


@pytest.mark.parametrize("level", ORDER)
def test_every_level_of_the_compiled_module_agrees(level: str) -> None:
    """In a process each, for the level is chosen once: the same values to rounding, forward and backward."""
    best = xfercore.build_info()["cpu_isa"]
    if ORDER.index(level) > ORDER.index(best):
        pytest.skip(f"this machine runs {best}, not {level}")
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import torch, xfercore\n"
        "from op_specs import OP_SPECS\n"
        "from xfercore.testing import assert_matches_reference\n"
        "torch.set_num_threads(1)\n"
        "for spec in OP_SPECS.values():\n"
        "    for dtype in (torch.float32, torch.bfloat16, torch.float16):\n"
        "        for sample in spec.large_samples(torch.device('cpu'), dtype, True):\n"
        "            assert_matches_reference(spec, sample)\n"
        "print(xfercore.build_info()['cpu_isa'])\n"
    )
    import sys

    command = [sys.executable, "-W", "error", "-c", program, str(Path(__file__).parent), str(ROOT)]
    done = subprocess.run(
        command, env={**os.environ, "XFER_CPU_ISA": level}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == level
