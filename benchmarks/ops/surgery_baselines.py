"""GradVac on task gradients as others compute it: on the vectors, on a Gram matrix of torch's, and by TorchJD.

All are given one `Problem`: the same gradients, the same order of visits and moving averages to start from at every
call, so that what they return can be compared. Each is written at its best: norms are computed once, scalars stay in
Python, results go where they are wanted if the interface has an ``out``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Problem",
    "TorchJD",
    "add_gram",
    "compiled_vector_loop",
    "draw_order",
    "gram_loop",
    "gram_loop_of_list",
    "vector_loop",
]


@dataclass(frozen=True)
class Problem:
    """Gradients of tasks, and GradVac's state.

    Attributes:
        jacobians: ``[num_tasks, numel]`` alone, or ``[num_tasks, numel of the parameter]`` for every parameter.
        bounds: first and last column, or first and last parameter, of every group.
        order: int64 ``[num_groups, num_tasks, num_tasks]``, as `draw_order` gives it.
        ema: float64, same shape.
        beta: the weight of the newest cosine in the moving averages.
        out: what the result is written to: ``[numel]`` alone, or a vector for each parameter.
    """

    jacobians: list[Tensor]
    bounds: list[tuple[int, int]]
    order: Tensor
    ema: Tensor
    beta: float
    out: list[Tensor]
    visits: list[list[list[int]]] = field(init=False)

    def __post_init__(self) -> None:
        # The last place of a row is the task itself, which is not visited.
        object.__setattr__(self, "visits", self.order[:, :, :-1].tolist())

    def matrices(self) -> list[Tensor]:
        """An arena's gradients group by group."""
        return [self.jacobians[0][:, a:b] for a, b in self.bounds]

    def slices(self) -> list[Tensor]:
        """An arena's result group by group."""
        return [self.out[0][a:b] for a, b in self.bounds]

    def by_parameter(self, sizes: Sequence[int], bounds: list[tuple[int, int]]) -> Problem:
        """An arena as a list: views of its columns, groups as bounds of parameters."""
        jacobians, out = self.jacobians[0].split(list(sizes), dim=1), self.out[0].split(list(sizes))
        return Problem(list(jacobians), bounds, self.order, self.ema, self.beta, list(out))


def draw_order(num_groups: int, num_tasks: int, seed: int) -> Tensor:
    """The order that TorchJD's GradVac visits in when torch's generator starts from ``seed``; each task itself last."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(num_groups):
        for i in range(num_tasks):
            others = [j for j in range(num_tasks) if j != i]
            permutation = torch.randperm(num_tasks - 1, generator=generator).tolist()
            rows.append([others[place] for place in permutation] + [i])
    return torch.tensor(rows, dtype=torch.int64).reshape(num_groups, num_tasks, num_tasks)


def _step(norm: float, norm_j: float, phi: float, hat: float) -> float:
    sine, sine_hat = math.sqrt(max(1 - phi * phi, 0.0)), math.sqrt(1 - hat * hat)
    return norm * (hat * sine - phi * sine_hat) / (norm_j * sine_hat)


def vector_loop(problem: Problem) -> list[Tensor]:
    """Algorithm 2 as it stands, vector by vector. As libraries have it, without their second copy of all gradients."""
    ema, beta = problem.ema.tolist(), problem.beta
    for k, (grads, total) in enumerate(zip(problem.matrices(), problem.slices(), strict=True)):
        norms = [math.sqrt(float(torch.dot(g, g))) for g in grads]
        total.zero_()
        for i, order in enumerate(problem.visits[k]):
            own, norm, averages = grads[i].clone(), norms[i], ema[k][i]
            for j in order:
                phi, hat = float(torch.dot(own, grads[j])) / (norm * norms[j]), averages[j]
                if phi < hat:
                    own.add_(grads[j], alpha=_step(norm, norms[j], phi, hat))
                    norm = math.sqrt(float(torch.dot(own, own)))
                averages[j] = (1 - beta) * hat + beta * phi
            total.add_(own)
    return [*problem.slices(), torch.tensor(ema, dtype=torch.float64)]


def _visit(own: Tensor, other: Tensor, norm_j: Tensor, hat: Tensor) -> tuple[Tensor, Tensor]:
    norm = (own * own).sum().sqrt()
    phi = (own * other).sum() / (norm * norm_j)
    sine, sine_hat = (1 - phi * phi).clamp(min=0).sqrt(), (1 - hat * hat).sqrt()
    step = norm * (hat * sine - phi * sine_hat) / (norm_j * sine_hat)
    return own + torch.where(phi < hat, step, 0.0) * other, phi


def compiled_vector_loop() -> Callable[[Problem], list[Tensor]]:
    """`vector_loop` with its visit, free of branches, under torch.compile; as a whole it would unroll without end."""
    visit = torch.compile(_visit)

    def run(problem: Problem) -> list[Tensor]:
        ema = problem.ema.to(problem.out[0])
        averages = ema.clone()
        for k, (grads, total) in enumerate(zip(problem.matrices(), problem.slices(), strict=True)):
            norms, hats = grads.norm(dim=1).unbind(), [row.unbind() for row in ema[k].unbind()]
            total.zero_()
            for i, order in enumerate(problem.visits[k]):
                own, cosines = grads[i], []
                for j in order:
                    own, phi = visit(own, grads[j], norms[j], hats[i][j])
                    cosines.append(phi)
                averages[k, i, order] += problem.beta * (torch.stack(cosines) - averages[k, i, order])
                total.add_(own)
        return [*problem.slices(), averages]

    return run


def _coefficients(gram: Tensor, order: Tensor, ema: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Weights ``[K, T]`` and new averages; the chains of all groups and tasks go side by side, visit by visit."""
    visits = order[:, :, :-1]
    square = gram.diagonal(dim1=1, dim2=2)
    norms_j = square.sqrt().unsqueeze(1).expand_as(gram).gather(2, visits)
    hats = ema.gather(2, visits)
    sines_hat = (1 - hats * hats).sqrt()
    coefficients = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device).repeat(gram.shape[0], 1, 1)
    dots, cosines = gram, []
    for s in range(visits.shape[2]):
        j = visits[:, :, s : s + 1]
        dot, norm = dots.gather(2, j).squeeze(2), square.sqrt()
        norm_j, hat, sine_hat = norms_j[:, :, s], hats[:, :, s], sines_hat[:, :, s]
        phi = dot / (norm * norm_j)
        step = norm * (hat * (1 - phi * phi).clamp(min=0).sqrt() - phi * sine_hat) / (norm_j * sine_hat)
        step = torch.where(phi < hat, step, 0.0)
        coefficients.scatter_add_(2, j, step.unsqueeze(2))
        dots = torch.addcmul(dots, step.unsqueeze(2), gram.gather(1, j.expand_as(gram)))
        square = square + step * (2 * dot + step * norm_j * norm_j)
        cosines.append(phi)
    averages = (1 - beta) * hats + beta * torch.stack(cosines, dim=2)
    return coefficients.sum(1), ema.scatter(2, visits, averages)


def add_gram(total: Tensor, grads: Tensor, columns: int | None) -> None:
    """``total += grads @ grads.T``, so many columns at a time.

    Products of a few very long rows are slow: MKL takes 1.5 (T = 4) to 2.5 times (T = 8) as long for ten million
    columns as for the same in blocks that stay in cache; with 25 rows blocks are no gain.
    """
    if columns is None:
        total.addmm_(grads, grads.T)
        return
    for part in grads.split(columns, dim=1):
        total.addmm_(part, part.T)


def _columns(grads: Tensor) -> int | None:
    few_rows = grads.device.type == "cpu" and len(grads) < 16
    return 1 << 14 if few_rows else None


def gram_loop(problem: Problem, whole: bool = False) -> list[Tensor]:
    """The best that eager PyTorch does: torch's Gram matrices, chains on coefficients, one product with the weights.

    ``whole``: one product to a group, which torch.compile does not unroll to hundreds.
    """
    matrices = problem.matrices()
    columns = None if whole else _columns(matrices[0])
    grams = matrices[0].new_zeros(len(matrices), *problem.order.shape[1:])
    for total, grads in zip(grams, matrices, strict=True):
        add_gram(total, grads, columns)
    weights, ema = _coefficients(grams.double(), problem.order, problem.ema, problem.beta)
    rows = weights.to(matrices[0].dtype)
    slices = problem.slices()
    for grads, row, out in zip(matrices, rows, slices, strict=True):
        torch.mv(grads.T, row, out=out)
    return [*slices, ema]


def gram_loop_of_list(problem: Problem) -> list[Tensor]:
    """`gram_loop` on Jacobians parameter by parameter, without joining them."""
    columns = _columns(problem.jacobians[0])
    grams = problem.jacobians[0].new_zeros(len(problem.bounds), *problem.order.shape[1:])
    for total, (a, b) in zip(grams, problem.bounds, strict=True):
        for jacobian in problem.jacobians[a:b]:
            add_gram(total, jacobian, columns)
    weights, ema = _coefficients(grams.double(), problem.order, problem.ema, problem.beta)
    for (a, b), row in zip(problem.bounds, weights.to(grams.dtype), strict=True):
        for n in range(a, b):
            torch.mv(problem.jacobians[n].T, row, out=problem.out[n])
    return [*problem.out, ema]


class TorchJD:
    """TorchJD's GradVac, an aggregator to a group as its guide to grouping has it.

    An aggregator cannot load its state and draws from torch's own generator, so both are set from outside before each
    call (a few microseconds).
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.aggregators: list[Any] = []
        self.parameters: list[Tensor] = []

    def _start(self) -> list[Any]:
        problem = self.problem
        if not self.aggregators:
            from torchjd.aggregation import GradVac

            self.aggregators = [GradVac(beta=problem.beta) for _ in problem.bounds]
            self.ema = problem.ema.cpu().to(problem.out[0].dtype)
            self.key = (problem.order.shape[1], self.ema.dtype)
        for aggregator, ema in zip(self.aggregators, self.ema, strict=True):
            weighting = aggregator.gramian_weighting
            weighting._phi_t, weighting._state_key = ema.clone(), self.key
        torch.default_generator.manual_seed(self.seed)
        return self.aggregators

    def matrix(self) -> Sequence[Tensor]:
        """The aggregator on an arena's matrices."""
        return [a(grads) for a, grads in zip(self._start(), self.problem.matrices(), strict=True)]

    def jac_to_grad(self, optimize: bool) -> Callable[[], Sequence[Tensor]]:
        """``jac_to_grad`` on Jacobians parameter by parameter, joined to a matrix or (``optimize``) not."""

        def run() -> Sequence[Tensor]:
            aggregators = self._start()
            from torchjd.autojac import jac_to_grad

            if not self.parameters:
                for out, jacobian in zip(self.problem.out, self.problem.jacobians, strict=True):
                    parameter = torch.nn.Parameter(torch.zeros_like(out))
                    vars(parameter)["jac"] = jacobian
                    self.parameters.append(parameter)
            for parameter in self.parameters:
                parameter.grad = None
            for aggregator, (a, b) in zip(aggregators, self.problem.bounds, strict=True):
                jac_to_grad(
                    self.parameters[a:b], aggregator, retain_jac=True, optimize_gramian_computation=optimize
                )
            return [p.grad for p in self.parameters if p.grad is not None]

        return run
