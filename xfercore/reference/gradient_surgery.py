"""Gradient surgery in plain PyTorch: Gram matrices, the coefficients of each method, and the combination."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xfercore.reference.philox import philox4x32

__all__ = [
    "AgemCoef",
    "GradNormStats",
    "GradVacCoef",
    "MgdaCoef",
    "agem_coef",
    "combine_gradients",
    "gradnorm_stats",
    "gradvac_coef",
    "mgda_coef",
    "pcgrad_coef",
    "surgery_order",
    "task_gram",
]

_MASK32 = 0xFFFFFFFF
_STREAM = 0x53

TaskGrads = Tensor | Sequence[Sequence[Tensor | None]]


class GradVacCoef(NamedTuple):
    """What :func:`gradvac_coef` and :func:`pcgrad_coef` return.

    Attributes:
        weights: float64 ``[num_groups, num_tasks]``: the combined gradient is ``sum_j weights_j g_j``.
        ema: float64 ``[num_groups, num_tasks, num_tasks]``, the new moving averages.
        cosine: float64, same shape: the cosine of g'_i with g_j when the pair was visited, NaN where it was not.
        moved: bool, same shape: whether the visit moved g'_i.
        coefficients: float64, same shape: ``g'_i = sum_j coefficients_ij g_j``.
    """

    weights: Tensor
    ema: Tensor
    cosine: Tensor
    moved: Tensor
    coefficients: Tensor


class MgdaCoef(NamedTuple):
    """What :func:`mgda_coef` returns.

    Attributes:
        weights: float64 ``[num_groups, num_tasks]``, non-negative, summing to 1 over the tasks that take part.
        gap: float64 ``[num_groups]``: the duality gap left, relative to the largest squared norm.
    """

    weights: Tensor
    gap: Tensor


class GradNormStats(NamedTuple):
    """What :func:`gradnorm_stats` returns.

    Attributes:
        grad_weights: float64 ``[num_groups, num_tasks]``, the derivative of ``loss`` by the weights.
        loss: float64 ``[num_groups]``.
        norms: float64 ``[num_groups, num_tasks]``, the weighted gradients' norms.
    """

    grad_weights: Tensor
    loss: Tensor
    norms: Tensor


class AgemCoef(NamedTuple):
    """What :func:`agem_coef` returns.

    Attributes:
        weights: float64 ``[num_groups, num_tasks]``.
        cosine: float64 ``[num_groups]``: of the sum of the others with the reference.
    """

    weights: Tensor
    cosine: Tensor


def task_gram(grads: TaskGrads, offsets: Tensor | Sequence[int] | None = None) -> Tensor:
    """See :func:`xfercore.task_gram`."""
    bounds = _bounds(grads, offsets)
    if isinstance(grads, Tensor):
        parts = [grads[:, a:b].double() for a, b in bounds]
        return torch.stack([part @ part.T for part in parts]) if parts else _empty_gram(grads, len(grads))
    like = _like(grads)
    grams = []
    for a, b in bounds:
        gram = torch.zeros(len(grads), len(grads), dtype=torch.float64, device=like.device)
        for n in range(a, b):
            rows = [row[n] for row in grads]
            some = next((g for g in rows if g is not None), None)
            if some is not None:
                part = torch.stack([(torch.zeros_like(some) if g is None else g).reshape(-1) for g in rows])
                gram += part.double() @ part.double().T
        grams.append(gram)
    return torch.stack(grams) if grams else _empty_gram(like, len(grads))


def combine_gradients(
    grads: TaskGrads,
    offsets: Tensor | Sequence[int] | None,
    weights: Tensor,
    out: Tensor | Sequence[Tensor | None] | None = None,
) -> Tensor | list[Tensor | None]:
    """See :func:`xfercore.combine_gradients`."""
    bounds = _bounds(grads, offsets)
    if isinstance(grads, Tensor):
        compute = torch.promote_types(grads.dtype, torch.float32)
        total = torch.zeros(grads.shape[1], dtype=compute, device=grads.device)
        for (a, b), row in zip(bounds, weights.to(compute), strict=True):
            total[a:b] = (row[:, None] * grads[:, a:b].to(compute)).sum(0)
        combined = total.to(grads.dtype)
        return combined if not isinstance(out, Tensor) else _write(out, combined)
    firsts = [next((g for g in column if g is not None), None) for column in zip(*grads, strict=True)]
    results: list[Tensor | None] = [None if first is None else torch.zeros_like(first) for first in firsts]
    for (a, b), row in zip(bounds, weights, strict=True):
        for n in range(a, b):
            given = [(t, g) for t, row_ in enumerate(grads) if (g := row_[n]) is not None]
            if given:
                compute = torch.promote_types(given[0][1].dtype, torch.float32)
                parts = [row[t].to(compute) * g.to(compute) for t, g in given]
                results[n] = torch.stack(parts).sum(0).to(given[0][1].dtype)
    if out is None:
        return results
    return [
        None if o is None else _write(o, 0.0 if r is None else r) for o, r in zip(out, results, strict=True)
    ]


def surgery_order(seed_step: Tensor, num_groups: int, num_tasks: int) -> Tensor:
    """int64 ``[num_groups, num_tasks, num_tasks]``: the permutation of each row, a function of (seed, step) alone.

    Fisher-Yates from the last place down; the place p swaps with ``word * (p + 1) >> 32``, where the words are those
    of Philox with counter (row * ceil(T / 4) + p / 4, step, stream 0x53) and key seed.
    """
    seed, step = (int(value) for value in seed_step.tolist())
    groups = (num_tasks + 3) // 4
    index = torch.arange(num_groups * num_tasks * groups)
    counter = [index & _MASK32, index >> 32]
    counter += [
        torch.full_like(index, step & _MASK32),
        torch.full_like(index, ((step >> 32) & _MASK32) ^ (_STREAM << 24)),
    ]
    key = [torch.full_like(index, seed & _MASK32), torch.full_like(index, (seed >> 32) & _MASK32)]
    words = torch.stack(philox4x32(counter, key), dim=-1).reshape(num_groups * num_tasks, groups * 4).tolist()
    rows = []
    for row in words:
        order = list(range(num_tasks))
        for p in range(num_tasks - 1, 0, -1):
            other = (row[p] * (p + 1)) >> 32
            order[p], order[other] = order[other], order[p]
        rows.append(order)
    found = torch.tensor(rows, dtype=torch.int64, device=seed_step.device)
    return found.reshape(num_groups, num_tasks, num_tasks)


def gradvac_coef(
    gram: Tensor,
    ema: Tensor | None = None,
    *,
    beta: float = 1e-2,
    order: Tensor | None = None,
    seed_step: Tensor | None = None,
    target: float | Tensor | None = None,
    task_weights: Tensor | None = None,
    task_mask: Tensor | None = None,
    apply_to: Tensor | None = None,
    target_clip: float = 1 - 1e-6,
    residual_eps: float = 1e-6,
) -> GradVacCoef:
    """See :func:`xfercore.gradvac_coef`."""
    num_groups, num_tasks, _ = gram.shape
    if order is None:
        assert seed_step is not None
        order = surgery_order(seed_step, num_groups, num_tasks)
    order = order.expand(num_groups, num_tasks, num_tasks)
    averages = torch.zeros_like(gram) if ema is None else ema.clone()
    wanted = (
        averages.clone() if target is None else torch.as_tensor(target, dtype=torch.float64).expand_as(gram)
    )
    cosine = torch.full_like(gram, math.nan)
    moved = torch.zeros_like(gram, dtype=torch.bool)
    coefficients = torch.zeros_like(gram)
    present = [True] * num_tasks if task_mask is None else task_mask.tolist()
    operated = [True] * num_tasks if apply_to is None else apply_to.tolist()
    for k in range(num_groups):
        g = gram[k]
        for i in range(num_tasks):
            if not present[i]:
                continue
            c = coefficients[k, i]
            c[i] = 1.0
            raw = float(g[i, i])
            if not operated[i] or not 0.0 < raw < math.inf:
                continue
            dots, square = g[i].clone(), raw
            for j in order[k, i].tolist():
                square_j = float(g[j, j])
                if (
                    j == i
                    or not present[j]
                    or not 0.0 < square_j < math.inf
                    or not square > residual_eps**2 * raw
                ):
                    continue
                norm, norm_j = math.sqrt(square), math.sqrt(square_j)
                phi = float(dots[j]) / norm / norm_j
                if not math.isfinite(phi):
                    continue
                phi = min(max(phi, -1.0), 1.0)
                hat = min(max(float(wanted[k, i, j]), -target_clip), target_clip)
                cosine[k, i, j] = phi
                if phi < hat:
                    moved[k, i, j] = True
                    sine, sine_hat = math.sqrt((1 - phi) * (1 + phi)), math.sqrt((1 - hat) * (1 + hat))
                    step = norm * (hat * sine - phi * sine_hat) / (norm_j * sine_hat)
                    c[j] += step
                    dots += step * g[j]
                    used = c != 0
                    square = float((c[used] * dots[used]).sum())
                averages[k, i, j] = (1 - beta) * averages[k, i, j] + beta * phi
    scale = torch.ones(num_tasks, dtype=torch.float64) if task_weights is None else task_weights.double()
    weights = (scale.to(gram.device)[:, None] * coefficients).sum(1)
    return GradVacCoef(weights, averages, cosine, moved, coefficients)


def pcgrad_coef(
    gram: Tensor,
    *,
    order: Tensor | None = None,
    seed_step: Tensor | None = None,
    task_weights: Tensor | None = None,
    task_mask: Tensor | None = None,
    apply_to: Tensor | None = None,
    residual_eps: float = 1e-6,
) -> GradVacCoef:
    """See :func:`xfercore.pcgrad_coef`."""
    return gradvac_coef(
        gram,
        beta=0.0,
        order=order,
        seed_step=seed_step,
        target=0.0,
        task_weights=task_weights,
        task_mask=task_mask,
        apply_to=apply_to,
        residual_eps=residual_eps,
    )


def mgda_coef(
    gram: Tensor,
    *,
    scale: Tensor | None = None,
    task_mask: Tensor | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 2000,
) -> MgdaCoef:
    """See :func:`xfercore.mgda_coef`."""
    weights, gaps = torch.zeros_like(gram[:, 0]), gram.new_zeros(gram.shape[0])
    for k, g in enumerate(gram):
        taking = g.diagonal() != 0
        if task_mask is not None:
            taking = taking & task_mask
        index = taking.nonzero().squeeze(1)
        if len(index) == 0:
            continue
        s = g[index][:, index]
        if scale is not None:
            inverse = 1.0 / scale[k, index]
            s = s * inverse[:, None] * inverse[None, :]
        if not bool(s.diagonal().isfinite().all()):
            weights[k], gaps[k] = math.nan, math.nan
            continue
        unit = s.diagonal().max()
        alpha = torch.zeros_like(s[0])
        alpha[s.diagonal().argmin()] = 1.0
        for iteration in range(max_iterations + 1):
            slope = s @ alpha
            to = int(slope.argmin())
            start = int(torch.where(alpha > 0, slope, -math.inf).argmax())
            gap = (alpha @ slope - slope[to]) / unit
            if gap <= tolerance or to == start or iteration == max_iterations:
                break
            curvature = s[to, to] - 2 * s[to, start] + s[start, start]
            mass = alpha[start].clone()
            step = min((slope[start] - slope[to]) / curvature, mass) if curvature > 0 else mass
            alpha[to] += step
            alpha[start] = mass - step
        weights[k, index], gaps[k] = alpha, gap.clamp(min=0)
    return MgdaCoef(weights, gaps)


def gradnorm_stats(
    gram: Tensor,
    losses: Tensor,
    initial_losses: Tensor,
    weights: Tensor,
    *,
    alpha: float = 1.5,
    task_mask: Tensor | None = None,
) -> GradNormStats:
    """See :func:`xfercore.gradnorm_stats`."""
    present = torch.ones_like(losses, dtype=torch.bool) if task_mask is None else task_mask
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    weighted = torch.where(present, weights.double().expand_as(norms) * norms, 0.0)
    count = present.sum().clamp(min=1)
    ratio = torch.where(present, losses.double() / initial_losses.double(), 0.0)
    rate = ratio / (ratio.sum() / count)
    off = weighted - weighted.sum(1, keepdim=True) / count * rate**alpha
    off = torch.where(present, off, 0.0)
    sign = torch.where(off.isnan(), off, off.sign())  # torch.sign makes 0 of NaN
    return GradNormStats(torch.where(present, sign * norms, 0.0), off.abs().sum(1), weighted)


def agem_coef(gram: Tensor, *, reference: int = -1) -> AgemCoef:
    """See :func:`xfercore.agem_coef`."""
    num_tasks = gram.shape[1]
    reference = reference % num_tasks
    others = torch.ones(num_tasks, dtype=torch.float64, device=gram.device)
    others[reference] = 0.0
    dot = gram[:, reference] @ others
    square = others @ gram @ others
    own = gram[:, reference, reference]
    weights = others.expand(len(gram), num_tasks).clone()
    weights[:, reference] = torch.where((own > 0) & ~(dot >= 0), -dot / own, 0.0)
    return AgemCoef(weights, dot / square.sqrt() / own.sqrt())


def _bounds(grads: TaskGrads, offsets: Tensor | Sequence[int] | None) -> list[tuple[int, int]]:
    size = grads.shape[1] if isinstance(grads, Tensor) else len(grads[0])
    places = [0, size] if offsets is None else [int(value) for value in offsets]
    return list(itertools.pairwise(places))


def _like(grads: Sequence[Sequence[Tensor | None]]) -> Tensor:
    return next(g for row in grads for g in row if g is not None)


def _empty_gram(like: Tensor, num_tasks: int) -> Tensor:
    return torch.zeros(0, num_tasks, num_tasks, dtype=torch.float64, device=like.device)


def _write(out: Tensor, value: Tensor | float) -> Tensor:
    return out.copy_(value) if isinstance(value, Tensor) else out.fill_(value)
