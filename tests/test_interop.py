"""NumPy and CuPy arrays in and out of every op, over the same memory."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import xfercore
from xfercore.testing import OpSpec, Sample, same_values

sys.path.insert(0, str(Path(__file__).parent / "ops"))

from op_specs import OP_SPECS

specs = pytest.mark.parametrize("spec", OP_SPECS.values(), ids=list(OP_SPECS))


def _check_arrays(spec: OpSpec, library: Any, device: torch.device, sample: Sample) -> None:
    to_array = lambda v: library.from_dlpack(v) if isinstance(v, Tensor) else v  # noqa: E731
    args, kwargs = tree_map(to_array, (sample.args, sample.kwargs))
    expected = sample.call(spec.op)
    got = spec.op(*args, **kwargs)
    got = [a for a in got if a is not None] if isinstance(got, (tuple, list)) else [got]
    for array, tensor in zip(got, expected, strict=True):
        assert isinstance(array, library.ndarray)
        back = torch.from_dlpack(array)
        assert back.device == tensor.device and same_values(back, tensor)


@specs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_numpy_arrays_in_and_out(spec: OpSpec, dtype: torch.dtype) -> None:
    cpu = torch.device("cpu")
    for sample in spec.samples(cpu, dtype, False)[:12]:
        _check_arrays(spec, np, cpu, sample)


@pytest.mark.gpu
@specs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cupy_arrays_in_and_out(spec: OpSpec, dtype: torch.dtype) -> None:
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        pytest.skip("cupy is not installed")
    device = torch.device("cuda")
    for sample in spec.samples(device, dtype, False)[:12]:
        _check_arrays(spec, cupy, device, sample)


def test_arrays_share_memory_both_ways() -> None:
    x = np.arange(6.0).reshape(2, 3)
    y = xfercore.grad_reverse(x, 0.5)
    assert np.shares_memory(x, y)


def test_named_results_stay_named_and_lists_stay_lists() -> None:
    grads = [np.ones((2, 3)), None], [np.full((2, 3), -2.0), np.ones(4)]
    gram = xfercore.task_gram(grads)
    found = xfercore.pcgrad_coef(gram, order=np.arange(2))
    assert isinstance(found, tuple) and found._fields == ("weights", "ema", "cosine", "moved", "coefficients")
    assert all(isinstance(value, np.ndarray) for value in found) and found.moved.dtype == np.bool_
    combined = xfercore.combine_gradients(grads, None, found.weights)
    assert isinstance(combined, list) and all(isinstance(value, np.ndarray) for value in combined)
    out = [np.empty((2, 3)), np.empty(4)]
    xfercore.combine_gradients(grads, None, found.weights, out=out)
    for one, other in zip(out, combined, strict=True):
        np.testing.assert_array_equal(one, other)


def test_lists_of_arrays_and_tensors_among_arrays() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    experts = np.random.default_rng(1).normal(size=(4, 3, 5)).astype(np.float32)
    targets = np.array([0, 1, -1, 2])
    wanted, wanted_nll = xfercore.gated_mix(
        torch.from_numpy(logits), torch.from_numpy(experts), targets=torch.from_numpy(targets)
    )
    listed = [experts[:, k] for k in range(3)]
    listed_mixed: list[Any] = [torch.from_numpy(listed[0]), *listed[1:]]
    for form in (experts, np.asfortranarray(experts), listed, tuple(listed), listed_mixed):
        mixed, nll = xfercore.gated_mix(logits, form, targets=targets)
        np.testing.assert_array_equal(mixed, wanted.numpy())
        np.testing.assert_array_equal(nll, wanted_nll.numpy())
    assert isinstance(xfercore.gated_mix(torch.from_numpy(logits), experts)[0], np.ndarray)


def test_arrays_carry_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    y = xfercore.linear_grad_reverse(np.ones((2, 3), np.float32), weight)
    assert isinstance(y, np.ndarray) and weight.grad is None


def test_read_only_arrays_are_read() -> None:
    logits, experts = np.zeros((4, 3), np.float32), np.ones((4, 3, 5), np.float32)
    logits.flags.writeable = experts.flags.writeable = False
    np.testing.assert_allclose(xfercore.gated_mix(logits, experts)[0], 1.0, rtol=1e-6)


BAD_ARRAYS = {
    "object": np.zeros((4, 3)).astype(object),
    "text": np.array([["a"]]),
    "byte order": np.zeros((4, 3)).astype(">f4" if sys.byteorder == "little" else "<f4"),
    "negative stride": np.zeros((4, 3), np.float32)[::-1],
    "integer": np.zeros((4, 3), np.int64),
    "complex": np.zeros((4, 3), np.complex64),
    "rank": np.zeros(4, np.float32),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays_are_refused_by_name(kind: str) -> None:
    experts = np.zeros((4, 3, 5), np.float32)
    with pytest.raises(ValueError, match=r"gated_mix\(\): logits"):
        xfercore.gated_mix(BAD_ARRAYS[kind], experts)
    with pytest.raises(ValueError, match=r"gated_mix\(\): experts"):
        xfercore.gated_mix(np.zeros((4, 2), np.float32), [np.zeros((4, 5), np.float32), BAD_ARRAYS[kind]])


def test_errors_of_the_op_reach_the_caller_of_arrays() -> None:
    with pytest.raises(ValueError, match=r"gated_mix\(\): targets\[1\] = 7"):
        xfercore.gated_mix(np.zeros((2, 3)), np.zeros((2, 3, 1)), targets=np.array([0, 7]))


def test_wrong_number_of_arguments() -> None:
    with pytest.raises(TypeError, match="grad_reverse"):
        xfercore.grad_reverse(np.zeros(3), 0.5, 1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="grad_reverse"):
        xfercore.grad_reverse(np.zeros(3), lamda=1)  # type: ignore[call-arg]
