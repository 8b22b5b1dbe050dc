"""Gradient surgery: ``task_gram``, ``gradvac_coef`` and ``combine_gradients`` in a row, and the two passes alone.

The gradients of T tasks for P parameters come as an arena, one row a task, or as a list, parameter by parameter (sizes
of encoder layers, as many as there are layers); groups are the whole model or the layers. Everybody writes to the same
vectors if their interface lets them, so the peak is what is needed beyond gradients and result.

At the floor the gradients are read twice and the result is written once. FLOPs are those of one triangle of the Gram
matrices in float64; their rate is that of a square product, which no product of T rows reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import xfercore
from benchmarks.harness import Bench, Candidate, Case, Options, Variant, Work, bind
from benchmarks.measures import Run
from benchmarks.ops.surgery_baselines import (
    Problem,
    TorchJD,
    add_gram,
    compiled_vector_loop,
    draw_order,
    gram_loop,
    gram_loop_of_list,
    vector_loop,
)
from xfercore import reference

__all__ = ["cases"]

_BETA = 1e-2
_SEED = 7
_CHUNK = 1 << 19  # columns widened at once
_ROW_SECONDS = {"cpu": 20.0, "cuda": 5.0}
# Chains of visits unroll: 25 tasks compile for half a minute and run no faster than eagerly. Once is enough to see it.
_MAX_COMPILED_TASKS = 8
_MAX_COMPILED_NUMEL = 2_000_000


def _layer_sizes(numel: int) -> list[int]:
    """Sizes of an encoder layer's twelve parameters, ``numel`` in all; the first takes what is left over."""
    dim = int((numel / 12) ** 0.5)
    while 12 * dim * dim + 13 * dim > numel:
        dim -= 1
    square = dim * dim
    sizes = [3 * square, 3 * dim, square, dim, 4 * square, 4 * dim, 4 * square, dim, dim, dim, dim, dim]
    sizes[0] += numel - sum(sizes)
    return sizes


def _gradients(num_tasks: int, sizes: Sequence[int], case: Case) -> list[Tensor]:
    """Normal ones with something in common: cosines of the tasks about 0 ± 0.25, so that half of the pairs move."""
    device, dtype = case.options.device, case.options.dtype
    common = torch.randn(num_tasks, 4) / 2
    found = []
    for size in sizes:
        made = torch.randn(num_tasks, size).addmm_(common, torch.randn(4, size))
        found.append(made.to(device=device, dtype=dtype))
    return found


def _bounds(total: int, groups: int) -> list[tuple[int, int]]:
    return list(pairwise(total * k // groups for k in range(groups + 1)))


def _parameter_sizes(numel: int, layers: int) -> list[int]:
    return [size for a, b in _bounds(numel, layers) for size in _layer_sizes(b - a)]


def _problem(case: Case) -> Problem:
    t, p, groups, layers = (int(case.shape[key]) for key in ("T", "P", "K", "layers"))
    device, dtype = case.options.device, case.options.dtype
    as_list = case.shape["input"] == "list"
    sizes = _parameter_sizes(p, layers) if as_list else [p]
    ema = torch.rand(groups, t, t, dtype=torch.float64) * 0.6 - 0.3
    return Problem(
        jacobians=_gradients(t, sizes, case),
        bounds=_bounds(len(sizes) if as_list else p, groups),
        order=draw_order(groups, t, _SEED).to(device),
        ema=ema.to(device),
        beta=_BETA,
        out=[torch.empty(size, device=device, dtype=dtype) for size in sizes],
    )


def _chunks(grads: Tensor) -> list[Tensor]:
    return [grads[:, a : a + _CHUNK] for a in range(0, grads.shape[1], _CHUNK)]


def _gram64(parts: Sequence[Tensor]) -> Tensor:
    wide = (chunk.double() for part in parts for chunk in _chunks(part))
    return torch.stack([chunk @ chunk.T for chunk in wide]).sum(0)


def _combine64(grads: Tensor, weights: Tensor) -> Tensor:
    return torch.cat([weights @ chunk.double() for chunk in _chunks(grads)])


def _exact(problem: Problem) -> list[Tensor]:
    """The reference's coefficients on float64 sums, chunk by chunk: group by group or parameter by parameter."""
    as_list = len(problem.jacobians) > 1
    parts = [problem.jacobians[a:b] if as_list else [problem.jacobians[0][:, a:b]] for a, b in problem.bounds]
    gram = torch.stack([_gram64(group) for group in parts]).cpu()
    coef = reference.gradvac_coef(gram, problem.ema.cpu(), beta=problem.beta, order=problem.order.cpu())
    weights = coef.weights.to(problem.order.device)
    combined = [_combine64(g, row) for group, row in zip(parts, weights, strict=True) for g in group]
    return [*combined, coef.ema]


def _ours(problem: Problem) -> Callable[[], list[Tensor]]:
    if len(problem.jacobians) > 1:
        grads: Any = [list(rows) for rows in zip(*problem.jacobians, strict=True)]
        out: Any = problem.out
        offsets: Any = torch.tensor([0, *(b for _, b in problem.bounds)])
        results = problem.out
    else:
        grads, out = problem.jacobians[0], problem.out[0]
        offsets = torch.tensor([0, *(b for _, b in problem.bounds)], device=out.device)
        results = problem.slices()

    def run() -> list[Tensor]:
        gram = xfercore.task_gram(grads, offsets)
        coef = xfercore.gradvac_coef(gram, problem.ema, beta=problem.beta, order=problem.order)
        xfercore.combine_gradients(grads, offsets, coef.weights, out)
        return [*results, coef.ema]

    return run


def _bound(case: Case, function: Callable[..., Any], *args: Any) -> Run:
    return bind(Candidate(function, args, ()), case.passes)


def _setup(case: Case) -> Bench:
    problem = _problem(case)
    torchjd = TorchJD(problem, _SEED)
    variants = [Variant("xfercore", "ours", _bound(case, _ours(problem)))]

    def add(name: str, function: Callable[..., Any], *args: Any, comparable: bool = True) -> None:
        role = "compiled" if name.endswith(".compiled") else "eager"
        variants.append(Variant(name, role, _bound(case, function, *args), comparable))

    if case.shape["input"] == "list":
        add("gram_loop", gram_loop_of_list, problem)
        add("torchjd.jac_to_grad", torchjd.jac_to_grad(optimize=False))
        add("torchjd.optimize_gramian", torchjd.jac_to_grad(optimize=True))
        return Bench(variants, oracle=lambda: _exact(problem))
    add("vector_loop", vector_loop, problem)
    add("gram_loop", gram_loop, problem)
    add("torchjd.matrix", torchjd.matrix)
    # On views of the arena by parameter: on some shapes the fastest that TorchJD has. Its results come by parameter,
    # not by group; rows of lists compare them.
    num_tasks, numel = problem.jacobians[0].shape
    sizes = _parameter_sizes(numel, int(case.shape["layers"]))
    by_parameter = problem.by_parameter(sizes, _bounds(len(sizes), len(problem.bounds)))
    add(
        "torchjd.optimize_gramian",
        TorchJD(by_parameter, _SEED).jac_to_grad(optimize=True),
        comparable=False,
    )
    if case.options.compile and (num_tasks <= _MAX_COMPILED_TASKS or numel <= _MAX_COMPILED_NUMEL):
        add("vector_loop.compiled", compiled_vector_loop(), problem)
        add("gram_loop.compiled", torch.compile(gram_loop), problem, True)
    return Bench(variants, oracle=lambda: _exact(problem))


def _setup_gram(case: Case) -> Bench:
    (grads,) = _gradients(int(case.shape["T"]), [int(case.shape["P"])], case)

    def chunked(dtype: torch.dtype) -> Tensor:
        gram = torch.zeros(len(grads), len(grads), dtype=dtype, device=grads.device)
        for part in grads.split(1 << 14, dim=1):
            add_gram(gram, part.to(dtype), None)
        return gram

    def widened() -> Tensor:
        wide = grads.double()
        return wide @ wide.T

    return Bench(
        [
            Variant("xfercore", "ours", _bound(case, lambda: xfercore.task_gram(grads)[0])),
            Variant("matmul", "eager", _bound(case, lambda: grads @ grads.T)),
            Variant("matmul_chunks", "eager", _bound(case, chunked, grads.dtype)),
            Variant("matmul_fp64", "eager", _bound(case, widened)),
            Variant("matmul_fp64_chunks", "eager", _bound(case, chunked, torch.float64)),
        ],
        oracle=lambda: [_gram64([grads])],
    )


def _setup_combine(case: Case) -> Bench:
    (grads,) = _gradients(int(case.shape["T"]), [int(case.shape["P"])], case)
    weights = torch.rand(1, len(grads), dtype=torch.float64).to(grads.device) * 2
    row = weights[0].to(grads.dtype)
    out, into = torch.empty_like(grads[0]), torch.empty_like(grads[0])
    return Bench(
        [
            Variant(
                "xfercore",
                "ours",
                _bound(case, lambda: xfercore.combine_gradients(grads, None, weights, out)),
            ),
            Variant("mv_out", "eager", _bound(case, lambda: torch.mv(grads.T, row, out=into))),
            Variant("weights_at_grads", "eager", _bound(case, lambda: row @ grads)),
        ],
        oracle=lambda: [_combine64(grads, weights[0])],
    )


def _work(t: int, p: int, itemsize: int, *, reads: int, writes: int, gram: bool, quick: bool) -> Work:
    size = 256 if quick else 1024
    return Work(
        flops=float(t * (t + 1) * p) if gram else 0.0,
        bytes=float((reads * t * p + writes * p) * itemsize),
        matmul=(size, size, size) if gram else None,
        matmul_dtype=torch.float64,
    )


def cases(options: Options) -> list[Case]:
    """Rows: the whole computation for every number of tasks, parameters and groups; then each pass alone."""
    tasks = (4, 8) if options.quick else (4, 8, 25)
    numels = (12_000,) if options.quick else (1_000_000, 10_000_000)
    layers = 5 if options.quick else 25
    quick, itemsize = options.quick, options.dtype.itemsize
    rows = [
        Case(
            op="gradient_surgery",
            passes="call",
            shape={"T": t, "P": p, "K": groups, "layers": layers, "input": form},
            options=options,
            setup=_setup,
            work=_work(t, p, itemsize, reads=2, writes=1, gram=True, quick=quick),
            seconds=_ROW_SECONDS[options.device],
        )
        for t in tasks
        for p in numels
        for groups in (1, layers)
        for form in ("arena", "list")
    ]
    alone = [("task_gram", _setup_gram, 0, True), ("combine_gradients", _setup_combine, 1, False)]
    for op, setup, writes, gram in alone:
        rows += [
            Case(
                op=op,
                passes="call",
                shape={"T": t, "P": p},
                options=options,
                setup=setup,
                work=_work(t, p, itemsize, reads=1, writes=writes, gram=gram, quick=quick),
                seconds=_ROW_SECONDS[options.device] / 4,
            )
            for t in tasks
            for p in numels
        ]
    return rows
