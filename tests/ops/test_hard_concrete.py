"""hard_concrete and hard_concrete_eval: the distribution, the noise, derivatives, saturation, what replays."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import xfercore
from xfercore import reference
from xfercore.reference.hard_concrete import hard_concrete_uniform
from xfercore.reference.philox import philox4x32

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
SEED = torch.tensor([2**61 + 12345, 2**33 + 7])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- the distribution


@pytest.mark.parametrize(
    ("log_alpha", "kept"), [(-2.0, 0.401), (0.0, 0.832), (2.0, 0.973), (-6.0, None), (5.0, None)]
)
@pytest.mark.parametrize("options", [{}, {"beta": 0.4, "gamma": -0.2, "zeta": 1.3}], ids=["paper", "other"])
def test_probabilities_and_mean_against_monte_carlo_and_closed_form(
    log_alpha: float, kept: float | None, options: dict[str, float]
) -> None:
    beta, gamma, zeta = ({"beta": BETA, "gamma": GAMMA, "zeta": ZETA} | options).values()
    n = 400_000
    z, penalty = xfercore.hard_concrete(torch.full((n,), log_alpha), seed_offset=SEED, **options)
    nonzero = expit(log_alpha - beta * math.log(-gamma / zeta))
    whole = expit(log_alpha - beta * math.log((1 - gamma) / (zeta - 1)))
    if kept is not None and not options:
        assert nonzero == pytest.approx(kept, abs=5e-4)

    def above(x: float) -> float:
        share = (x - gamma) / (zeta - gamma)
        return float(expit(log_alpha - beta * math.log(share / (1 - share))))

    mean, _ = quad(above, 0, 1)
    for found, expected in (
        ((z > 0).double().mean(), nonzero),
        ((z == 1).double().mean(), whole),
        (z.double().mean(), mean),
    ):
        bound = 5 * math.sqrt(
            max(expected * (1 - expected), 1e-6) / n
        )  # z lies in [0, 1]: no larger variance
        assert abs(float(found) - expected) < bound
    assert float(penalty) == pytest.approx(n * nonzero, rel=1e-6)
    assert z.min() >= 0 and z.max() <= 1


def test_gates_of_evaluation_do_not_divide_by_beta() -> None:
    log_alpha = torch.linspace(-6, 6, 101, dtype=torch.float64)
    expected = (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
    torch.testing.assert_close(xfercore.hard_concrete_eval(log_alpha), expected, atol=1e-15, rtol=1e-14)
    theta = torch.randn(101, dtype=torch.float64)
    torch.testing.assert_close(xfercore.hard_concrete_eval(log_alpha, theta), theta * expected)


# ---- the noise


def test_known_answers_of_philox() -> None:
    """Random123's own vectors (kat_vectors, philox4x32 with 10 rounds): of the definition, and of the kernel."""
    known = [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, words in known:
        found = philox4x32([torch.tensor([c]) for c in counter], [torch.tensor(k) for k in key])
        assert [int(w) for w in found] == words
    # Counter (0, 0, 0, 0) and key (0, 0) are those of the first four gates under seed 0 and offset 0.
    u = [((word >> 9) + 0.5) / 2**23 for word in known[0][2]]
    z, _ = xfercore.hard_concrete(
        torch.zeros(4, dtype=torch.float64), seed_offset=torch.zeros(2, dtype=torch.long)
    )
    expected = [expit((math.log(v) - math.log(1 - v)) / BETA) * (ZETA - GAMMA) + GAMMA for v in u]
    assert z.tolist() == pytest.approx([min(1.0, max(0.0, e)) for e in expected], abs=1e-14)


def test_uniforms_are_never_0_or_1() -> None:
    u = hard_concrete_uniform(SEED, 1 << 20)
    assert 0 < float(u.min()) < 1e-5 and 1 - 1e-5 < float(u.max()) < 1
    assert abs(float(u.double().mean()) - 0.5) < 2e-3
    smallest, largest = (torch.tensor(k + 0.5) * 2.0**-23 for k in (0, 2**23 - 1))
    assert smallest > 0 and largest < 1 and 1 - largest > 0


@pytest.mark.parametrize("count", [1, 3, 63, 64, 65, 1000, 70_000, 200_001])
def test_kernel_and_definition_draw_the_same_noise(count: int) -> None:
    """In float64 an unsaturated gate gives its u back."""
    u = hard_concrete_uniform(SEED, count).double()
    log_alpha = -(u / (1 - u)).log()  # t = 0, so that s = 1/2 wherever the noise is the same
    z, _ = xfercore.hard_concrete(log_alpha, seed_offset=SEED)
    torch.testing.assert_close(z, torch.full_like(z, 0.5), atol=1e-12, rtol=0)


def test_a_gate_depends_on_seed_offset_and_number_alone() -> None:
    z, _ = xfercore.hard_concrete(torch.zeros(1000), seed_offset=SEED)
    shorter, _ = xfercore.hard_concrete(torch.zeros(10, 9), seed_offset=SEED)
    assert torch.equal(z[:90], shorter.flatten())
    for other in (SEED + torch.tensor([1, 0]), SEED + torch.tensor([0, 1]), SEED + torch.tensor([2**40, 0])):
        assert (xfercore.hard_concrete(torch.zeros(1000), seed_offset=other)[0] != z).float().mean() > 0.5


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("group_dims", [None, (1,), (0,), (0, 1)])
def test_same_bits_on_any_number_of_threads(group_dims: tuple[int, ...] | None) -> None:
    shape = (701, 701)
    kept = [s for d, s in enumerate(shape) if d not in (group_dims or ())]
    runs = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        generator = torch.Generator().manual_seed(0)
        log_alpha = torch.randn(kept, generator=generator).requires_grad_()
        theta = torch.randn(shape, generator=generator).requires_grad_()
        out, penalty = xfercore.hard_concrete(log_alpha, theta, seed_offset=SEED, group_dims=group_dims)
        grads = torch.autograd.grad((out * out).sum() + penalty, (log_alpha, theta))
        runs.append((out, penalty, *grads))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_same_bits_on_every_instruction_set(tmp_path: object) -> None:
    """z must not depend on the machine: a mask drawn on one is the mask of the other."""
    code = (
        "import sys, torch, xfercore\n"
        "la = torch.linspace(-8, 8, 70_001)\n"
        "seed = torch.tensor([5, 9])\n"
        "out = [xfercore.hard_concrete(la, seed_offset=seed, beta=b)[0] for b in (2 / 3, 0.5)]\n"
        "torch.save([*out, xfercore.hard_concrete_eval(la)], sys.argv[1])\n"
    )
    found = {}
    for level in ("portable", "avx2", "avx512"):
        path = f"{tmp_path}/{level}.pt"
        command = [sys.executable, "-c", code, path]
        done = subprocess.run(
            command, env={**os.environ, "XFER_CPU_ISA": level}, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            found[level] = torch.load(path, weights_only=True)
    assert xfercore.build_info()["cpu_isa"] in found and "portable" in found
    for level, gates in found.items():
        assert all(torch.equal(a, b) for a, b in zip(gates, found["portable"], strict=True)), level


# ---- derivatives


def _closed_forms(log_alpha: Tensor, u: Tensor) -> dict[str, Tensor]:
    """The formulas that the derivation gives, written out once more."""
    k = (ZETA - GAMMA) / BETA
    s = torch.sigmoid(((u / (1 - u)).log() + log_alpha) / BETA)
    stretched = s * (ZETA - GAMMA) + GAMMA
    moves = ((stretched > 0) & (stretched < 1)).double()
    slope = moves * k * s * (1 - s)
    q = torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))
    return {
        "z": stretched.clamp(0, 1),
        "z'": slope,
        "z''": slope * (1 - 2 * s) / BETA,
        "q": q,
        "q'": q * (1 - q),
        "q''": q * (1 - q) * (1 - 2 * q),
    }


def test_derivatives_against_the_formulas_to_1e_15() -> None:
    log_alpha = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    expected = _closed_forms(log_alpha, hard_concrete_uniform(SEED, 1001).double())
    curves = torch.ops.xfercore.hard_concrete_curves(log_alpha, SEED, BETA, GAMMA, ZETA)
    assert curves.shape == (6, 1001)
    for (name, wanted), found in zip(expected.items(), curves, strict=True):
        assert (found - wanted).abs().max() < 4e-15, name


def test_gradients_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    log_alpha, theta, g = (torch.randn(257, generator=generator, dtype=torch.float64) for _ in range(3))
    forms = _closed_forms(log_alpha, hard_concrete_uniform(SEED, 257).double())
    la, th = log_alpha.clone().requires_grad_(), theta.clone().requires_grad_()
    out, penalty = xfercore.hard_concrete(la, th, seed_offset=SEED)
    grad_la, grad_th = torch.autograd.grad(
        (out, penalty), (la, th), (g, torch.tensor(0.7, dtype=torch.float64))
    )
    torch.testing.assert_close(grad_th, g * forms["z"], atol=1e-14, rtol=0)
    torch.testing.assert_close(grad_la, g * theta * forms["z'"] + 0.7 * forms["q'"], atol=1e-14, rtol=0)


def test_third_derivatives_go_through_the_definition() -> None:
    def chain(function: object) -> Tensor:
        la = torch.linspace(-1, 1, 9, dtype=torch.float64).requires_grad_()
        out, penalty = function(la, la * 2, seed_offset=SEED)  # type: ignore[operator]
        value = (out**2).sum() + penalty
        for _ in range(2):
            (value,) = torch.autograd.grad(value, la, create_graph=True)
            value = (value**2).sum()
        (last,) = torch.autograd.grad(value, la)
        return last

    torch.testing.assert_close(chain(xfercore.hard_concrete), chain(reference.hard_concrete))


def test_hessian_vector_products_of_a_masked_layer() -> None:
    """What a meta-learning step takes: d/dtheta of the gradient by log alpha, through a network."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)

    def product(op: object) -> tuple[Tensor, ...]:
        theta = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        theta.requires_grad_()
        la = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
        masked, penalty = op(la, theta, seed_offset=SEED, group_dims=(1,))  # type: ignore[operator]
        loss = torch.tanh(x @ masked.mT).pow(2).sum() + 0.1 * penalty
        (grad,) = torch.autograd.grad(loss, la, create_graph=True)
        return torch.autograd.grad((grad * torch.arange(4.0)).sum(), (theta, la))

    for ours, exact in zip(product(xfercore.hard_concrete), product(reference.hard_concrete), strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-12, rtol=1e-10)


# ---- saturation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [88.0, 104.0, 1e4, math.inf])
def test_extreme_logits(size: float, dtype: torch.dtype) -> None:
    log_alpha = torch.tensor([-size, size] * 100, dtype=dtype, requires_grad=True)
    theta = torch.full((200,), 3.0, dtype=dtype, requires_grad=True)
    out, penalty = xfercore.hard_concrete(log_alpha, theta, seed_offset=SEED)
    assert torch.equal(out, torch.tensor([0.0, 3.0] * 100, dtype=dtype))
    assert penalty.item() == pytest.approx(100.0, rel=1e-6)
    grads = torch.autograd.grad(out.sum() + penalty, (log_alpha, theta), create_graph=True)
    assert torch.equal(grads[1], torch.tensor([0.0, 1.0] * 100, dtype=dtype))
    assert grads[0].isfinite().all() and grads[0].abs().max() < 1e-37
    second = torch.autograd.grad(grads[0].sum() + grads[1].sum(), (log_alpha, theta))
    assert all((grad.isfinite().all() and not grad.any()) or grad.abs().max() < 1e-37 for grad in second)


def test_saturated_gates_are_exactly_0_and_1_and_get_no_gradient_but_the_penaltys() -> None:
    log_alpha = torch.tensor([-5.0, 5.0] * 500, requires_grad=True)
    out, _ = xfercore.hard_concrete(log_alpha, seed_offset=SEED)
    moving = (out > 0) & (out < 1)
    assert 0 < int(moving.sum()) < 100
    (grad,) = torch.autograd.grad(out.sum(), log_alpha)
    assert torch.equal(grad != 0, moving)
    (grad,) = torch.autograd.grad(xfercore.hard_concrete(log_alpha, seed_offset=SEED)[1], log_alpha)
    assert (grad > 0).all()


def test_penalty_gradient_near_one_does_not_cancel() -> None:
    """q (1 - q) from q alone is 0 in float32 from log alpha = 17 on."""
    log_alpha = torch.tensor([10.0, 17.0, 30.0, 60.0], requires_grad=True)
    _, penalty = xfercore.hard_concrete(log_alpha, seed_offset=SEED)
    (grad,) = torch.autograd.grad(penalty, log_alpha)
    shifted = log_alpha.detach().double() - BETA * math.log(-GAMMA / ZETA)
    torch.testing.assert_close(grad.double(), torch.exp(-shifted), rtol=1e-4, atol=0)


def test_nan_and_inf_propagate() -> None:
    log_alpha = torch.tensor([float("nan"), 0.0, 0.0, 5.0], requires_grad=True)
    theta = torch.tensor([1.0, float("nan"), float("inf"), 1.0], requires_grad=True)
    out, penalty = xfercore.hard_concrete(log_alpha, theta, seed_offset=SEED)
    expected, expected_penalty = reference.hard_concrete(log_alpha, theta, seed_offset=SEED)
    assert torch.equal(out.isnan(), expected.isnan()) and out[0].isnan() and out[1].isnan()
    assert penalty.isnan() and expected_penalty.isnan()
    grads = torch.autograd.grad(out.sum() + penalty, (log_alpha, theta))
    assert grads[0][0].isnan() and grads[1][0].isnan() and grads[0][3].isfinite()


def test_half_types_scale_by_float32_gates() -> None:
    """bfloat16 gates would keep 8 bits; theta alone is rounded."""
    for dtype in (torch.bfloat16, torch.float16):
        log_alpha = torch.linspace(-3, 3, 997)
        theta = torch.randn(997).to(dtype)
        z, _ = xfercore.hard_concrete(log_alpha, seed_offset=SEED)
        out, penalty = xfercore.hard_concrete(log_alpha, theta, seed_offset=SEED)
        assert out.dtype == dtype and penalty.dtype == torch.float32
        assert torch.equal(out, (theta.float() * z).to(dtype))


# ---- what replays


def test_checkpointing_replays_the_mask() -> None:
    """With a pair, and with none: torch's generator is what checkpointing restores."""
    for seed in (SEED, None):
        found = []
        for through in (False, True):
            torch.manual_seed(3)
            la = torch.zeros(1000, requires_grad=True)
            theta = torch.ones(1000, requires_grad=True)

            def layer(la: Tensor, theta: Tensor, seed: Tensor | None = seed) -> Tensor:
                masked, penalty = xfercore.hard_concrete(la, theta, seed_offset=seed)
                return masked.sin().sum() + penalty

            loss = checkpoint(layer, la, theta, use_reentrant=False) if through else layer(la, theta)
            found.append((loss, *torch.autograd.grad(loss, (la, theta))))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_generator_draws_the_pair() -> None:
    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return xfercore.hard_concrete(torch.zeros(99), seed_offset=generator)[0]

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    torch.manual_seed(0)
    first = xfercore.hard_concrete(torch.zeros(99))[0]
    assert not torch.equal(first, xfercore.hard_concrete(torch.zeros(99))[0])
    torch.manual_seed(0)
    assert torch.equal(first, xfercore.hard_concrete(torch.zeros(99))[0])


def test_nothing_random_is_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []
    la, theta = torch.zeros(1000, requires_grad=True), torch.ones(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        xfercore.hard_concrete(la, theta, seed_offset=SEED)
    assert sorted(t.numel() for t in kept) == [2, 1000, 1000]
    assert {t.data_ptr() for t in kept} == {la.data_ptr(), theta.data_ptr(), SEED.data_ptr()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_training_step_with_a_new_seed_each_step_compiles_once() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(la: Tensor, theta: Tensor, seed: Tensor) -> Tensor:
        out, penalty = xfercore.hard_concrete(la, theta, seed_offset=seed, group_dims=(1,))
        return out.square().sum() + 0.1 * penalty

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for number in range(4):
        la, theta = torch.zeros(5, requires_grad=True), torch.ones(5, 8, requires_grad=True)
        seed = SEED + torch.tensor([0, number])
        grads = [torch.autograd.grad(f(la, theta, seed), (la, theta)) for f in (compiled, step)]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert counter.frame_count == 1
    torch._dynamo.reset()
