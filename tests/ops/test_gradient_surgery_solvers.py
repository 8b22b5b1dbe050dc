"""MGDA against exact solutions, GradNorm against autograd, A-GEM by hand; and orders that are none."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from surgery_vectors import KINDS, cosine_of, normal, random_case
from torch import Tensor

import xfercore
from xfercore.testing import assert_close, same_values

# ---- MGDA


def _gram(g: Tensor) -> Tensor:
    return xfercore.task_gram(g)


def _square(gram: Tensor, weights: Tensor) -> float:
    return float(weights @ gram @ weights)


def _exact(gram: Tensor) -> float:
    """The least square norm over the simplex: of every face, the solution of its equations, if inside."""
    best, tasks = math.inf, len(gram)
    for size in range(1, tasks + 1):
        for face in itertools.combinations(range(tasks), size):
            part = gram[list(face)][:, list(face)]
            equations = torch.zeros(size + 1, size + 1, dtype=torch.float64)
            equations[:size, :size], equations[size, :size], equations[:size, size] = part, 1.0, 1.0
            right = torch.zeros(size + 1, dtype=torch.float64)
            right[size] = 1.0
            found = torch.linalg.lstsq(equations, right, driver="gelsd").solution[:size]
            if bool((found > -1e-12).all()):
                weights = found.clamp(min=0) / found.clamp(min=0).sum()
                best = min(best, _square(part, weights))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_mgda_finds_the_least_norm_of_every_face(seed: int) -> None:
    tasks = 2 + seed % 4
    g = normal(tasks, 30, seed=seed) * (1 + torch.arange(tasks)[:, None]) + (seed % 3) * normal(30, seed=99)
    gram = _gram(g)
    found = xfercore.mgda_coef(gram)
    assert bool((found.weights >= 0).all()) and float(found.weights.sum()) == pytest.approx(1.0, abs=1e-12)
    unit = float(gram[0].diagonal().max())
    assert _square(gram[0], found.weights[0]) - _exact(gram[0]) <= 2e-10 * unit
    assert 0.0 <= float(found.gap) <= 1e-10


@pytest.mark.parametrize("tasks", [10, 25, 40])
def test_mgda_is_at_least_as_good_as_slsqp(tasks: int) -> None:
    g = normal(tasks, 60, seed=tasks) + 0.5 * normal(60, seed=1)
    gram = _gram(g)
    found = xfercore.mgda_coef(gram)
    matrix = (gram[0] / gram.max()).numpy()
    theirs = minimize(
        lambda a: a @ matrix @ a,
        np.full(tasks, 1 / tasks),
        jac=lambda a: 2 * matrix @ a,
        bounds=[(0, 1)] * tasks,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-13, "maxiter": 1000},
        method="SLSQP",
    )
    assert theirs.x.sum() == pytest.approx(1.0, abs=1e-9) and theirs.x.min() > -1e-9
    ours = _square(gram[0] / gram.max(), found.weights[0])
    assert ours <= theirs.fun * (1 + 1e-6)
    np.testing.assert_allclose(found.weights[0].numpy(), theirs.x, atol=1e-4)


@pytest.mark.parametrize("cosine", [-0.9, -0.3, 0.2, 0.7])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 3.0])
def test_mgda_of_two_tasks_is_the_closed_form(cosine: float, ratio: float) -> None:
    """gamma = clip(<g_2 - g_1, g_2> / |g_1 - g_2|², 0, 1), Sener & Koltun's Eq. 4."""
    g = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    g[1] *= ratio
    gamma = float(((g[1] - g[0]) @ g[1] / (g[0] - g[1]).norm() ** 2).clamp(0, 1))
    found = xfercore.mgda_coef(_gram(g), tolerance=1e-14)
    assert_close(
        found.weights[0], torch.tensor([gamma, 1 - gamma], dtype=torch.float64), "weights", tolerance=1e-9
    )


@pytest.mark.parametrize("iterations", [0, 1, 2, 7, 63, 64, 65, 200, 2000])
def test_mgda_tells_the_gap_that_it_leaves(iterations: int) -> None:
    """Of the weights that it returns: steps carry the slopes along, and their rounding must not flatter."""
    gram = _gram(normal(12, 14) + 1e-3 * normal(14, seed=1))
    found = xfercore.mgda_coef(gram, max_iterations=iterations, tolerance=1e-15)
    slopes = gram[0] @ found.weights[0]
    unit = gram[0].diagonal().max()
    true = float((found.weights[0] @ slopes - slopes.min()) / unit)
    assert float(found.gap) == pytest.approx(true, abs=1e-13)
    best = xfercore.mgda_coef(gram, max_iterations=10**6, tolerance=1e-15).weights[0]
    assert _square(gram[0], found.weights[0]) - _square(gram[0], best) <= 2 * float(found.gap * unit) + 1e-12
    assert found.gap > 1e-4 or iterations > 2


@pytest.mark.parametrize("kind", KINDS)
def test_mgda_of_awkward_gradients(kind: str) -> None:
    """Near-antiparallel ones take more steps than anybody waits for; the gap says so."""
    for seed in range(10):
        gram = _gram(random_case(kind, seed).g)
        found = xfercore.mgda_coef(gram)
        weights = found.weights[0]
        there = gram[0].diagonal() > 0
        assert bool((weights >= 0).all()) and bool((weights[~there] == 0).all())
        assert float(weights.sum()) == pytest.approx(1.0 if there.any() else 0.0, abs=1e-10)
        if there.any():
            slopes = (gram[0] @ weights)[there]
            true = (_square(gram[0], weights) - float(slopes.min())) / float(gram.max())
            assert float(found.gap) == pytest.approx(max(true, 0.0), abs=1e-13), (kind, seed)
            assert true <= 1e-10 or (kind == "antiparallel" and true < 1e-3), (kind, seed)


def test_mgda_scales_as_the_authors_do() -> None:
    """Gradients are divided before the search, the weights are for the gradients as they are."""
    g, scale = normal(4, 30), torch.tensor([[0.5, 2.0, 3.0, 1.0]], dtype=torch.float64)
    found = xfercore.mgda_coef(_gram(g), scale=scale, tolerance=1e-14)
    divided = xfercore.mgda_coef(_gram(g / scale.T), tolerance=1e-14)
    assert_close(found.weights, divided.weights, "weights", tolerance=1e-6)
    for power in (-60, 60):
        one, other = xfercore.mgda_coef(_gram(g)), xfercore.mgda_coef(_gram(g * 2.0**power))
        assert same_values(one.weights, other.weights) and same_values(one.gap, other.gap)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_mgda_and_tasks_that_are_absent_or_not_finite(bad: float) -> None:
    g = normal(4, 30)
    mask = torch.tensor([True, True, False, True])
    three = xfercore.mgda_coef(_gram(g[mask]), tolerance=1e-14)
    masked = xfercore.mgda_coef(_gram(g), task_mask=mask, tolerance=1e-14)
    assert_close(masked.weights[:, mask], three.weights, "weights", tolerance=1e-6)
    g[2] = bad
    assert xfercore.mgda_coef(_gram(g)).weights.isnan().all()
    absent = xfercore.mgda_coef(_gram(g), task_mask=mask, tolerance=1e-14)
    assert float(absent.weights[0, 2]) == 0.0
    assert_close(absent.weights, masked.weights, "an absent task's gradient is none", tolerance=1e-6)
    none = xfercore.mgda_coef(_gram(g), task_mask=~mask & mask)
    assert torch.equal(none.weights, torch.zeros(1, 4, dtype=torch.float64)) and float(none.gap) == 0.0


def test_mgda_agrees_with_torchjd() -> None:
    """Theirs steps towards vertices alone and stops early by default."""
    torchjd: ModuleType = pytest.importorskip(
        "torchjd.aggregation", reason="torchjd is part of the test extra"
    )
    for seed in range(5):
        g = normal(5, 30, seed=seed) + 0.2 * normal(30, seed=50)
        gram = _gram(g)
        theirs = torchjd.MGDA(epsilon=1e-9, max_iters=5000).gramian_weighting(gram[0])
        ours = xfercore.mgda_coef(gram).weights[0]
        assert _square(gram[0], ours) <= _square(gram[0], theirs) * (1 + 1e-9)
        assert_close(theirs, ours, "weights", tolerance=2e-2)


# ---- GradNorm


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("masked", [False, True])
def test_gradnorm_is_the_derivative_of_its_loss(alpha: float, masked: bool) -> None:
    g, offsets = normal(4, 60), [0, 20, 60]
    gram = xfercore.task_gram(g, offsets)
    losses, first, weights = (normal(*s, seed=n).abs() + 0.2 for n, s in enumerate([(4,), (4,), (2, 4)]))
    mask = torch.tensor([True, False, True, True]) if masked else torch.ones(4, dtype=torch.bool)
    found = xfercore.gradnorm_stats(
        gram, losses, first, weights, alpha=alpha, task_mask=mask if masked else None
    )
    leaf = weights.clone().requires_grad_()
    total = []
    for k, part in enumerate(g.split([20, 40], dim=1)):
        norms = leaf[k, mask] * part[mask].norm(dim=1)
        ratio = (losses / first)[mask]
        target = (norms.mean() * (ratio / ratio.mean()) ** alpha).detach()
        total.append((norms - target).abs().sum())
        assert_close(found.norms[k, mask], norms, "norms", tolerance=1e-12)
    assert_close(found.loss, torch.stack(total), "loss", tolerance=1e-12)
    (wanted,) = torch.autograd.grad(sum(total), leaf)
    assert_close(found.grad_weights, wanted, "gradient", tolerance=1e-12)
    assert bool((found.grad_weights[:, ~mask] == 0).all()) and bool((found.norms[:, ~mask] == 0).all())
    shared = xfercore.gradnorm_stats(gram, losses, first, weights[0], alpha=alpha)
    spread = xfercore.gradnorm_stats(gram, losses, first, weights[:1].expand(2, 4), alpha=alpha)
    assert all(torch.equal(a, b) for a, b in zip(shared, spread, strict=True))


def test_gradnorm_of_absent_and_of_spoilt_tasks() -> None:
    g = normal(3, 20)
    losses = torch.tensor([1.0, math.nan, 2.0], dtype=torch.float64)
    first, weights = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    g[1] = math.nan
    mask = torch.tensor([True, False, True])
    found = xfercore.gradnorm_stats(_gram(g), losses, first, weights, task_mask=mask)
    two = xfercore.gradnorm_stats(_gram(g[mask]), losses[mask], first[mask], weights[mask])
    assert torch.equal(found.grad_weights[:, mask], two.grad_weights) and torch.equal(found.loss, two.loss)
    assert xfercore.gradnorm_stats(_gram(g), losses, first, weights).loss.isnan().all(), "NaN propagates"
    none = xfercore.gradnorm_stats(_gram(g), losses, first, weights, task_mask=mask & ~mask)
    assert all(bool((value == 0).all()) for value in none)


# ---- A-GEM


@pytest.mark.parametrize("reference", [0, 2, -1])
def test_agem_projects_the_sum_of_the_others_by_hand(reference: int) -> None:
    conflicts = 0
    for seed in range(20):
        g = normal(4, 30, seed=seed)
        found = xfercore.agem_coef(_gram(g), reference=reference)
        total = g.sum(0) - g[reference]
        dot = float(total @ g[reference])
        wanted = total - min(dot, 0.0) / float(g[reference] @ g[reference]) * g[reference]
        out = xfercore.combine_gradients(g, None, found.weights)
        assert_close(out, wanted, f"seed {seed}", tolerance=1e-12)
        assert float(found.cosine) == pytest.approx(cosine_of(total, g[reference]), abs=1e-12)
        assert float(out @ g[reference]) >= -1e-12 * float(g[reference] @ g[reference])
        conflicts += dot < 0
        scaled = xfercore.agem_coef(_gram(g * 2.0**-80), reference=reference)
        assert all(same_values(a, b) for a, b in zip(found, scaled, strict=True))
    assert 0 < conflicts < 20


def test_agem_without_memory_or_without_tasks() -> None:
    g = normal(3, 20)
    g[2] = 0.0
    found = xfercore.agem_coef(_gram(g))
    assert found.weights.tolist() == [[1.0, 1.0, 0.0]] and found.cosine.isnan().all()
    alone = xfercore.agem_coef(_gram(g[:1]))
    assert alone.weights.tolist() == [[0.0]]
    g[0, 0] = math.nan
    g[2] = 1.0
    spoilt = xfercore.combine_gradients(g, None, xfercore.agem_coef(_gram(g)).weights)
    assert spoilt.isnan().all()


# ---- GradVac's arguments


def test_a_permutation_that_is_none_is_refused_with_its_row() -> None:
    gram = xfercore.task_gram(normal(3, 10))
    for bad, row, value in (([0, 0, 1], 0, 0), ([0, 1, 3], 0, 3), ([0, 1, -1], 0, -1)):
        with pytest.raises(ValueError, match=rf"gradvac_coef\(\): order must hold .* row {row} has {value}"):
            xfercore.gradvac_coef(gram, torch.zeros_like(gram), order=torch.tensor(bad))
        with pytest.raises(ValueError, match=rf"pcgrad_coef\(\): order must hold .* row 4 has {value}"):
            orders = torch.arange(3).repeat(2, 3, 1)
            orders[1, 1] = torch.tensor(bad)
            xfercore.pcgrad_coef(gram.expand(2, 3, 3), order=orders)
