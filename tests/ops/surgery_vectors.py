"""Gradient surgery written out on vectors in float64, without a Gram matrix, and random gradients of awkward kinds.

Independent of ``xfercore.reference``, which like the kernels works on Gram matrices.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import xfercore


@dataclass
class Surgery:
    """What Algorithm 2 did: rows g'_i, averages, and what was seen at each visit."""

    rows: Tensor  # [num_tasks, numel]
    ema: Tensor
    cosine: Tensor
    moved: Tensor
    least: list[float]  # |g'_i| / |g_i|, the smallest on the way
    margin: Tensor  # phi - target at the visit


def vaccinate(
    g: Tensor,
    ema: Tensor,
    order: Tensor,
    *,
    beta: float = 1e-2,
    target: float | Tensor | None = None,
    task_mask: Tensor | None = None,
    apply_to: Tensor | None = None,
    target_clip: float = 1 - 1e-6,
    residual_eps: float = 1e-6,
) -> Surgery:
    """Algorithm 2 of the thesis for one group: ``g`` float64 ``[T, P]``, ``ema [T, T]``, ``order [T, T]``."""
    tasks = len(g)
    there = [True] * tasks if task_mask is None else task_mask.tolist()
    operated = [True] * tasks if apply_to is None else apply_to.tolist()
    norms = [float(torch.linalg.vector_norm(row)) for row in g]
    found = Surgery(
        g.clone(), ema.clone(), torch.full_like(ema, math.nan), torch.zeros_like(ema, dtype=torch.bool),
        [1.0] * tasks, torch.full_like(ema, math.inf),
    )  # fmt: skip
    for i in range(tasks):
        if not there[i]:
            found.rows[i] = 0.0
            continue
        if not operated[i] or norms[i] == 0.0:
            continue
        row = g[i].clone()
        for j in order[i].tolist():
            norm = float(torch.linalg.vector_norm(row))
            if j == i or not there[j] or norms[j] == 0.0 or norm <= residual_eps * norms[i]:
                continue
            phi = max(-1.0, min(1.0, float((row / norm) @ (g[j] / norms[j]))))
            past = float(ema[i, j])
            wanted = past if target is None else float(target[i, j]) if isinstance(target, Tensor) else target
            hat = max(-target_clip, min(target_clip, wanted))
            found.cosine[i, j], found.margin[i, j] = phi, phi - hat
            if phi < hat:
                found.moved[i, j] = True
                sin, sin_hat = math.sqrt((1 - phi) * (1 + phi)), math.sqrt((1 - hat) * (1 + hat))
                row = row + g[j] * (norm * (hat * sin - phi * sin_hat) / (norms[j] * sin_hat))
                found.least[i] = min(found.least[i], float(torch.linalg.vector_norm(row)) / norms[i])
            found.ema[i, j] = (1 - beta) * past + beta * phi
        found.rows[i] = row
    return found


KINDS = (
    "normal",
    "aligned",
    "conflicting",
    "low-rank",
    "duplicates",
    "antiparallel",
    "scales",
    "zeros",
    "one-element",
)


def random_gradients(kind: str, rng: random.Random) -> Tensor:
    """float64 ``[num_tasks, numel]``."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    tasks, numel = rng.choice([1, 2, 3, 4, 5, 8, 13, 33]), rng.choice([2, 3, 7, 40, 257])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    g = normal(tasks, numel)
    if kind == "aligned":
        g = g + 0.7 * normal(numel)
    elif kind == "conflicting":
        g = g + torch.tensor([1.0, -1.0]).repeat(tasks)[:tasks, None] * normal(numel)
    elif kind == "low-rank":
        g = normal(tasks, 2) @ normal(2, numel)
    elif kind == "duplicates":
        g = g[torch.arange(tasks) % max(1, tasks // 2)] * rng.choice([1.0, -1.0, 3.0])
    elif kind == "antiparallel":
        g[1:] = -g[:1] * (1 + normal(tasks, 1)[1:].abs()) + 10.0 ** rng.uniform(-6, -1) * g[1:]
    elif kind == "scales":
        g = g * 10.0 ** (60 * torch.rand(tasks, 1, generator=generator, dtype=torch.float64) - 30)
    elif kind == "zeros":
        g[torch.rand(tasks, generator=generator) < 0.4] = 0.0
    elif kind == "one-element":
        g = normal(tasks, 1)
    return g


@dataclass
class Case:
    """A random group of gradients and random arguments of ``gradvac_coef`` for it."""

    name: str
    g: Tensor
    ema: Tensor
    order: Tensor
    kwargs: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> Surgery:
        return vaccinate(self.g, self.ema, self.order, **self.kwargs)

    def actual(self) -> xfercore.reference.gradient_surgery.GradVacCoef:
        kwargs = {
            k: v[None] if k == "target" and isinstance(v, Tensor) else v for k, v in self.kwargs.items()
        }
        return xfercore.gradvac_coef(xfercore.task_gram(self.g), self.ema[None], order=self.order, **kwargs)


def random_case(kind: str, seed: int) -> Case:
    """Targets within ±0.95: the step divides by sqrt(1 - target²), and both ways of computing it lose digits there."""
    rng = random.Random(f"{kind} {seed}")
    g = random_gradients(kind, rng)
    if kind != "scales" and rng.random() < 0.5:
        g = g.float().double()
    tasks = len(g)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    ema = torch.rand(tasks, tasks, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    order = torch.rand(tasks, tasks, generator=generator).argsort(-1)
    kwargs: dict[str, Any] = {"beta": rng.choice([0.0, 1e-2, 0.5, 1.0])}
    mode = rng.choice(["ema", "number", "zero", "tensor"])
    if mode == "tensor":
        kwargs["target"] = torch.rand(tasks, tasks, generator=generator, dtype=torch.float64) * 1.9 - 0.95
    elif mode != "ema":
        kwargs["target"] = rng.choice([-0.3, 0.3, 0.9]) if mode == "number" else 0.0
    for name in ("task_mask", "apply_to"):
        if rng.random() < 0.25:
            kwargs[name] = torch.rand(tasks, generator=generator) < 0.7
    if rng.random() < 0.2:
        kwargs["target_clip"] = rng.choice([0.0, 0.5, 0.99])
    if rng.random() < 0.2:
        kwargs["residual_eps"] = rng.choice([0.0, 1e-4, 0.3])
    return Case(f"{kind}-{seed}", g, ema, order, kwargs)


def random_orders(tasks: int, groups: int = 1, seed: int = 0) -> Tensor:
    """int64 ``[groups, tasks, tasks]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(groups, tasks, tasks, generator=generator).argsort(-1)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def conflicting(tasks: int, numel: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gradients that all but cancel in their sum, so that every row is moved."""
    g = normal(tasks, numel, seed=seed)
    return (g - 0.9 * g.mean(0)).to(dtype)


def cosine_of(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())
