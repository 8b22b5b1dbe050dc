"""hard_concrete's CUDA kernels, run thread by thread, against the CPU kernels and the definition."""

from __future__ import annotations

import pytest
import torch
from simt_masks import Masks
from torch import Tensor

import xfercore
from xfercore import reference

SEED = torch.tensor([2**61 + 12345, 2**33 + 7])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
#: theta as [outer, gates, inner]: a gate an element, rows, columns, blocks, one gate for all.
GROUPS = [(1, 300, 1), (1, 5, 83), (71, 37, 1), (7, 5, 40), (9, 3, 5), (1, 1, 700), (300, 1, 1), (3, 2, 1100)]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 64, 1021, 4097])
@pytest.mark.parametrize("layout", [0, 1, 2])
@pytest.mark.parametrize("beta", [2 / 3, 0.4, None], ids=["paper", "other", "evaluation"])
def test_gates_have_the_bits_of_the_cpu_kernel(count: int, layout: int, beta: float | None) -> None:
    log_alpha = 4 * _draw(count)
    if beta is None:
        z, _ = Masks(log_alpha, layout=layout).forward()
        assert torch.equal(z, xfercore.hard_concrete_eval(log_alpha))
        return
    z, penalty = Masks(log_alpha, None, SEED, beta=beta, layout=layout).forward()
    expected, expected_penalty = xfercore.hard_concrete(log_alpha, seed_offset=SEED, beta=beta)
    assert torch.equal(z, expected)
    torch.testing.assert_close(penalty, expected_penalty, rtol=1e-6, atol=0)


@DTYPES
@pytest.mark.parametrize("shape", GROUPS, ids=str)
@pytest.mark.parametrize("layout", [0, 1, 2])
def test_masked_parameters_and_gradients(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: int
) -> None:
    log_alpha, theta = _draw(shape[1]), _draw(*shape, seed=1).to(dtype)
    grad, grad_penalty = _draw(*shape, seed=2).to(dtype), torch.tensor(0.7)
    masks = Masks(log_alpha, theta, SEED, layout=layout)
    out, penalty = masks.forward()
    expected, _ = xfercore.hard_concrete(log_alpha, theta, seed_offset=SEED, group_dims=(0, 2))
    assert torch.equal(out, expected)
    la, th = log_alpha.double().requires_grad_(), theta.double().requires_grad_()
    exact = reference.hard_concrete(la, th, seed_offset=SEED, group_dims=(0, 2))
    wanted = torch.autograd.grad(exact, (la, th), (grad.double(), grad_penalty.double()))
    torch.testing.assert_close(penalty.double(), exact[1].detach(), rtol=2e-6, atol=0)
    grad_log_alpha, grad_theta = masks.backward(grad, grad_penalty)
    assert grad_theta is not None
    for found, right, bound in (
        (grad_log_alpha, wanted[0], 2e-6),
        (grad_theta, wanted[1], TOLERANCE[dtype]),
    ):
        assert (found.double() - right).abs().max() <= bound * right.abs().max() + 1e-12


def test_gates_alone_and_absent_gradients() -> None:
    log_alpha = _draw(133)
    la = log_alpha.double().requires_grad_()
    z, penalty = reference.hard_concrete(la, seed_offset=SEED)
    for grad_out, grad_penalty in ((_draw(133, seed=3), None), (None, torch.tensor(1.5))):
        found, _ = Masks(log_alpha, None, SEED).backward(grad_out, grad_penalty)
        output, cotangent = (z, grad_out) if grad_out is not None else (penalty, grad_penalty)
        assert cotangent is not None
        (wanted,) = torch.autograd.grad(output, la, cotangent.double(), retain_graph=True)
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-6)
    grouped = Masks(log_alpha[:3], _draw(2, 3, 40), SEED)
    found, grad_theta = grouped.backward(None, torch.tensor(1.0))
    assert grad_theta is not None and not grad_theta.any() and (found > 0).all()


def test_curves_are_those_of_the_cpu_kernel() -> None:
    log_alpha = 3 * _draw(517)
    expected = torch.ops.xfercore.hard_concrete_curves(log_alpha, SEED, 2 / 3, -0.1, 1.1)
    found = Masks(log_alpha, None, SEED).curves()
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 300, 1), (70, 37, 1), (2, 3, 900)], ids=str)
def test_bits_do_not_depend_on_the_order_of_threads(shape: tuple[int, int, int]) -> None:
    runs = []
    for seed in range(3):
        masks = Masks(_draw(shape[1]), _draw(*shape, seed=1), SEED, seed=seed)
        grads = masks.backward(_draw(*shape, seed=2), torch.tensor(1.0))
        runs.append((*masks.forward(), *grads))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))  # type: ignore[arg-type]


def test_more_gates_than_one_sweep_of_the_grid() -> None:
    """A block goes on to the next run of gates; the penalty's parts stay as many as the grid has blocks."""
    count = 1024 * 256 * 4 + 777
    log_alpha = torch.linspace(-4, 4, count)
    z, penalty = Masks(log_alpha, None, SEED).forward()
    expected, expected_penalty = xfercore.hard_concrete(log_alpha, seed_offset=SEED)
    assert torch.equal(z, expected)
    torch.testing.assert_close(penalty, expected_penalty, rtol=1e-6, atol=0)


def test_no_gates_launch_nothing() -> None:
    assert Masks(torch.empty(0), torch.empty(2, 0, 3), SEED).forward()[0].shape == (2, 0, 3)
    masked, _ = Masks(torch.zeros(3), torch.empty(0, 3, 4), SEED).forward()
    assert masked.shape == (0, 3, 4)
