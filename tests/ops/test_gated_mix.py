"""What gated_mix promises beyond the checks generated for all ops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import xfercore
from xfercore.testing import assert_close

MAX_POINTERS = 64  # kGatedMixMaxPointers


def _inputs(tokens: int, experts: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(tokens, experts, dtype=dtype), torch.randn(tokens, experts, dim, dtype=dtype)


def test_mixes_with_softmax_weights() -> None:
    logits, experts = _inputs(6, 3, 5)
    mixed, nll = xfercore.gated_mix(logits, experts, targets=torch.tensor([0, 1, 2, 0, 1, 2]))
    alpha = logits.softmax(1)
    assert_close(mixed, (alpha.unsqueeze(-1) * experts).sum(1), "mixed")
    assert_close(nll, -alpha.log()[range(6), [0, 1, 2, 0, 1, 2]], "gate_nll")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("experts", [1, 2, 8, MAX_POINTERS, MAX_POINTERS + 1, 257])
def test_list_and_stacked_experts_agree_bitwise(experts: int, dtype: torch.dtype) -> None:
    logits, stacked = _inputs(7, experts, 133, dtype)
    targets = torch.arange(7) % experts
    listed = [t.contiguous() for t in stacked.unbind(1)]
    for a, b in zip(
        xfercore.gated_mix(logits, stacked, targets=targets),
        xfercore.gated_mix(logits, listed, targets=targets),
        strict=True,
    ):
        assert torch.equal(a, b)
    leaves = [t.requires_grad_() for t in (logits, *listed)]
    out, nll = xfercore.gated_mix(leaves[0], leaves[1:], targets=targets)
    grads = torch.autograd.grad(out.sum() + nll.sum(), leaves)
    stacked.requires_grad_()
    out, nll = xfercore.gated_mix(logits, stacked, targets=targets)
    wanted = torch.autograd.grad(out.sum() + nll.sum(), (logits, stacked))
    assert torch.equal(grads[0], wanted[0])
    assert torch.equal(torch.stack(grads[1:], 1), wanted[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_experts_are_summed_in_float32(dtype: torch.dtype) -> None:
    """Across the blocks of 256 experts as well: a sum carried in a half type would stop growing."""
    experts = 4096
    logits, stacked = torch.zeros(2, experts, dtype=dtype), torch.ones(2, experts, 3, dtype=dtype)
    mixed, _ = xfercore.gated_mix(logits, stacked)
    assert torch.equal(mixed, torch.ones(2, 3, dtype=dtype))
    logits, stacked = _inputs(3, experts, 5, dtype)
    mixed, _ = xfercore.gated_mix(logits, stacked)
    exact, _ = xfercore.reference.gated_mix(logits.double(), stacked.double())
    error = (mixed.double() - exact).abs().max() / exact.abs().max()
    assert error <= torch.finfo(dtype).eps / 2, "more than the one rounding of the result"


class _Calls(TorchDispatchMode):
    """Names and first list argument of the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.pointers: list[list[int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        if func.name() == "xfercore::gated_mix":
            self.pointers.append([t.data_ptr() for t in args[1]])
        return func(*args, **(kwargs or {}))


def test_a_list_is_never_copied() -> None:
    logits = torch.randn(4, 3)
    # Columns of one wide matrix: rows are strided, and the experts still go in where they lie.
    wide = torch.randn(4, 3 * 5)
    listed = list(wide.split(5, dim=1))
    with _Calls() as calls:
        xfercore.gated_mix(logits, listed)
    assert calls.names == ["xfercore::gated_mix"]
    assert calls.pointers == [[t.data_ptr() for t in listed]]


def test_memory_of_the_list_form() -> None:
    """Below the dispatcher too: the profiler sees no allocation but the two results."""
    tokens, dim = 512, 64
    logits, listed = torch.randn(tokens, 3), [torch.randn(tokens, dim) for _ in range(3)]
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as prof:
        xfercore.gated_mix(logits, listed)
    (event,) = (e for e in prof.events() if e.name == "xfercore::gated_mix")
    allocated = sum(e.self_cpu_memory_usage for e in (event, *event.cpu_children))
    assert 0 < allocated <= 4 * (tokens * dim + tokens) + 256, f"{allocated} bytes"


@pytest.mark.parametrize("ignore_index", [-1, -100, 2, 77])
def test_targets_that_are_ignored_count_nothing(ignore_index: int) -> None:
    logits, experts = _inputs(3, 4, 2, torch.float64)
    logits.requires_grad_()
    targets = torch.tensor([0, ignore_index, 1])
    _, nll = xfercore.gated_mix(logits, experts, targets=targets, ignore_index=ignore_index)
    assert nll[1] == 0.0 and (nll[[0, 2]] > 0).all()
    (grad,) = torch.autograd.grad(nll.sum(), logits)
    assert (grad[1] == 0).all() and (grad[[0, 2]] != 0).all()


def test_all_targets_ignored() -> None:
    logits, experts = _inputs(3, 4, 2)
    _, nll = xfercore.gated_mix(logits, experts, targets=torch.full((3,), -1))
    assert torch.equal(nll, torch.zeros(3))


@pytest.mark.parametrize("value", [-2, 4, 2**40, -(2**63)])
def test_a_target_out_of_range_raises_with_row_and_value(value: int) -> None:
    logits, experts = _inputs(5, 4, 2)
    targets = torch.tensor([0, -1, 3, value, 9])
    with pytest.raises(ValueError, match=rf"gated_mix\(\): targets\[3\] = {value} is out of range.*4.*-1"):
        xfercore.gated_mix(logits, experts, targets=targets)


@pytest.mark.gpu
def test_a_target_out_of_range_on_cuda_gives_nan_and_a_flag() -> None:
    logits, experts = (t.cuda() for t in _inputs(3, 4, 2))
    xfercore.device_status("cuda")
    _, nll = xfercore.gated_mix(logits, experts, targets=torch.tensor([0, 4, 1], device="cuda"))
    assert nll.isnan().tolist() == [False, True, False]
    assert any("gated_mix" in sentence for sentence in xfercore.device_status("cuda"))
    assert xfercore.device_status("cuda") == []


def test_device_status_is_empty_on_the_cpu() -> None:
    assert xfercore.device_status("cpu") == []


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_extreme_logits(scale: float) -> None:
    logits = torch.tensor([[scale, -scale, 0.0], [-scale, -scale, -scale]], requires_grad=True)
    experts = torch.randn(2, 3, 4, requires_grad=True)
    mixed, nll = xfercore.gated_mix(logits, experts, targets=torch.tensor([1, 2]))
    assert torch.equal(mixed[0], experts[0, 0])
    assert_close(mixed[1], experts[1].mean(0), "equal logits")
    assert nll[0] == 2 * scale and abs(nll[1].item() - math.log(3)) < 1e-6
    grads = torch.autograd.grad(mixed.sum() + nll.sum(), (logits, experts))
    assert all(g.isfinite().all() for g in grads)


def test_minus_infinity_masks_an_expert() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    experts = torch.randn(1, 3, 4)
    mixed, _ = xfercore.gated_mix(logits, experts)
    assert_close(mixed, experts[:, [0, 2]].mean(1), "mean of the unmasked")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_stay_in_their_row_and_do_not_vanish(bad: float) -> None:
    for place in ("logits", "experts"):
        logits, experts = _inputs(3, 4, 140)
        (logits if place == "logits" else experts)[1, 2] = bad
        for form in (experts, list(experts.unbind(1))):
            mixed, nll = xfercore.gated_mix(logits, form, targets=torch.tensor([0, 1, 2]))
            assert not mixed[1].isfinite().any()
            assert mixed[[0, 2]].isfinite().all() and nll[[0, 2]].isfinite().all()
            assert bool(nll[1].isfinite()) == (place == "experts")


def test_gradient_of_unused_outputs() -> None:
    logits, experts = _inputs(3, 4, 2)
    logits.requires_grad_()
    experts.requires_grad_()
    mixed, nll = xfercore.gated_mix(logits, experts, targets=torch.tensor([0, 1, 2]))
    (only,) = torch.autograd.grad(nll.sum(), logits, retain_graph=True)
    alpha = logits.detach().softmax(1)
    assert_close(only, alpha - torch.eye(4)[:3], "softmax minus one-hot")
    (none,) = torch.autograd.grad(nll.sum(), experts, retain_graph=True)
    assert (none == 0).all()
    assert torch.autograd.grad(mixed.sum(), experts)[0].isfinite().all()


def test_inputs_are_not_changed() -> None:
    logits, experts = _inputs(5, 3, 4)
    targets = torch.tensor([0, 1, 2, -1, 0])
    before = [t.clone() for t in (logits, experts, targets)]
    logits.requires_grad_()
    xfercore.gated_mix(logits, experts, targets=targets)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip((logits, experts, targets), before, strict=True))
