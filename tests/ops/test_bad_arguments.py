"""Spoilt arguments to every op: refused with the op's and an argument's name, or taken; never a crash."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from argument_fuzzer import draw_call, run_call, valid_calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_specs import OP_SPECS

import xfercore

ops = pytest.mark.parametrize("op", list(OP_SPECS))
HERE = Path(__file__).resolve().parent


@ops
@settings(
    max_examples=300,
    deadline=None,  # the first call compiles nothing, but the machine may be busy
    derandomize=True,  # the volume test below takes the chances
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(rng=st.randoms(use_true_random=False))
def test_spoilt_arguments_shrunk_by_hypothesis(op: str, rng: random.Random) -> None:
    run_call(op, *draw_call(op, rng))


def _in_a_process_of_its_own(op: str, first_seed: int, count: int) -> dict[str, int]:
    path = os.pathsep.join(p for p in [str(HERE), *sys.path] if p)
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-X", "faulthandler"),
            *(HERE / "argument_fuzzer.py", op, str(first_seed), str(count)),
        ],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)


@ops
def test_thousands_of_spoilt_calls(op: str) -> None:
    result = _in_a_process_of_its_own(op, 0, 2_500)
    assert result["calls"] == 2_500
    share = result["accepted"] / result["calls"]
    assert 0.2 < share < 0.8, f"{share:.0%} of the calls were valid: the generator no longer tests refusals"


@pytest.mark.slow
@ops
def test_tens_of_thousands_of_spoilt_calls(op: str) -> None:
    assert _in_a_process_of_its_own(op, 100_000, 20_000)["calls"] == 20_000


@ops
def test_unspoilt_calls_are_accepted(op: str) -> None:
    for call in valid_calls(op):
        assert run_call(op, dict(call), [])


def test_a_crash_is_seen() -> None:
    """The harness itself: a process that dies must not pass."""
    with pytest.raises(AssertionError, match="exit code"):
        _in_a_process_of_its_own("no_such_op", 0, 1)


def test_sizes_beyond_31_bits_are_compared_not_truncated() -> None:
    """2^32 + 4 is 4 to anyone who keeps 32 bits."""
    wide = torch.zeros(()).expand(2**32 + 4, 3)
    with pytest.raises(ValueError, match=r"gated_mix\(\): experts.*4294967300"):
        xfercore.gated_mix(torch.zeros(4, 3), [wide, wide, wide])
    with pytest.raises(ValueError, match=r"linear_grad_reverse\(\): bias.*4294967300"):
        xfercore.linear_grad_reverse(torch.zeros(4, 3), torch.zeros(4, 3), wide[:, 0])
    with pytest.raises(ValueError, match=r"moe_mlp_mix\(\): b1.*4294967298"):
        xfercore.moe_mlp_mix(
            torch.zeros(4, 3),
            torch.zeros(2, 3),
            torch.zeros(2),
            torch.zeros(2, 2, 3),
            torch.zeros(()).expand(2, 2**32 + 2),
            torch.zeros(2, 4, 2),
            torch.zeros(2, 4),
        )
    doubles = torch.zeros((), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"combine_gradients\(\): weights.*4294967299"):
        xfercore.combine_gradients(torch.zeros(3, 5), None, doubles.expand(1, 2**32 + 3))
    with pytest.raises(ValueError, match=r"combine_gradients\(\): out.*4294967301"):
        xfercore.combine_gradients(
            torch.zeros(3, 5), None, doubles.expand(1, 3), out=wide[:, 0][:1].expand(2**32 + 5)
        )
    with pytest.raises(ValueError, match=r"task_gram\(\): grads\[1\]\[0\].*4294967300"):
        xfercore.task_gram([[torch.zeros(4, 3)], [wide]])
    gram = torch.zeros(1, 3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"gradvac_coef\(\): ema.*4294967297"):
        xfercore.gradvac_coef(gram, doubles.expand(2**32 + 1, 3, 3), order=torch.arange(3))
    with pytest.raises(ValueError, match=r"mgda_coef\(\): scale.*4294967299"):
        xfercore.mgda_coef(gram, scale=doubles.expand(1, 2**32 + 3))
    lam = torch.zeros(()).expand(2**32 + 4)
    with pytest.raises(ValueError, match=r"grad_reverse\(\): lam.*4294967300"):
        xfercore.grad_reverse(torch.zeros(4, 3), lam)


def test_outputs_beyond_what_memory_holds_are_an_error_not_a_crash() -> None:
    x = torch.zeros(1, 1).expand(2**45, 1)
    with pytest.raises((RuntimeError, MemoryError)):
        xfercore.linear_grad_reverse(x, torch.zeros(3, 1))
