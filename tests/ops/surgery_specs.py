"""The specifications of the ops of gradient surgery; ``op_specs.py`` puts them into its table.

The two passes over gradients take every dtype, the coefficients between them float64 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import surgery_errors
import torch
from draw import Draw, drawer, gram_of, group_weights, seed_step_of
from torch import Tensor

import xfercore
from xfercore import reference
from xfercore.testing import OpSpec, Sample

ListForm = list[list[Tensor | None]]
Missing = Callable[[int, int], bool]

# ---- task_gram, combine_gradients

_ARENAS: list[tuple[int, int, list[int] | None]] = [  # tasks, columns, offsets
    (3, 7, None),
    (1, 1, None),
    (2, 0, None),
    (4, 0, [0, 0, 0]),
    (5, 13, [0, 1, 1, 13]),
    (33, 6, [0, 3, 6]),
    (65, 37, [0, 36, 37]),
    (2, 9, [2, 5]),
    (3, 40, [4]),
]
_PARAM_SHAPES: list[tuple[int, ...]] = [(2, 3), (), (0,), (5,), (1, 1), (3, 1, 7)]


def _lists(draw: Draw, tasks: int, shapes: Sequence[tuple[int, ...]], missing: Missing) -> ListForm:
    return [[None if missing(t, n) else draw(*shape) for n, shape in enumerate(shapes)] for t in range(tasks)]


def _list_forms(draw: Draw) -> list[tuple[str, ListForm, list[int] | None]]:
    return [
        ("list", _lists(draw, 3, _PARAM_SHAPES, lambda t, n: False), None),
        ("list-groups", _lists(draw, 4, _PARAM_SHAPES, lambda t, n: (t + n) % 3 == 0), [0, 1, 3, 3, 6]),
        ("list-one-task", _lists(draw, 1, [(4,)], lambda t, n: False), [0, 1]),
        ("list-absent-task", _lists(draw, 3, _PARAM_SHAPES, lambda t, n: t == 1), None),
        ("list-unused-parameter", _lists(draw, 2, _PARAM_SHAPES, lambda t, n: n == 3), [0, 6]),
        ("list-uncovered", _lists(draw, 2, _PARAM_SHAPES, lambda t, n: False), [1, 4]),
        ("list-no-group", _lists(draw, 2, [(3,), (2, 2)], lambda t, n: False), [1]),
    ]


def _offsets(values: list[int] | None, device: torch.device, as_tensor: bool = True) -> Any:
    return torch.tensor(values, dtype=torch.int64, device=device) if values and as_tensor else values


def _gram_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    draw = drawer(device, dtype, False)
    samples = []
    for i, (tasks, columns, offsets) in enumerate(_ARENAS):
        args = (draw(tasks, columns), _offsets(offsets, device, as_tensor=i % 2 == 0))
        samples.append(Sample(f"{tasks}x{columns}-{offsets}", args))
    return samples + [Sample(name, (grads, offsets)) for name, grads, offsets in _list_forms(draw)]


_LARGE_OFFSETS = [0, 16_384, 20_000, 20_000, 70_021]  # chunks of 16 Ki columns
_LARGE_SHAPES: list[tuple[int, ...]] = [(123, 45), (2 * 16_384 + 5,), (7,), (40, 501)]


def _large_lists(draw: Draw) -> ListForm:
    return _lists(draw, 5, _LARGE_SHAPES, lambda t, n: t == 2 and n < 2)


def _gram_large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    draw = drawer(device, dtype, False)
    return [
        Sample("arena", (draw(7, _LARGE_OFFSETS[-1]), _offsets(_LARGE_OFFSETS, device))),
        Sample("list", (_large_lists(draw), [0, 1, 4])),
    ]


def _combine_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    draw = drawer(device, dtype, False)
    samples = []
    for i, (tasks, columns, offsets) in enumerate(_ARENAS):
        taken = _offsets(offsets, device, as_tensor=i % 2 == 0)
        args = (draw(tasks, columns), taken, group_weights(device, offsets, tasks))
        name = f"{tasks}x{columns}-{offsets}"
        samples.append(Sample(name, args))
        samples.append(Sample(f"{name}-out", args, {"out": draw(columns)}, written=("out",)))
    for name, grads, offsets in _list_forms(draw):
        args = (grads, offsets, group_weights(device, offsets, len(grads)))
        samples.append(Sample(name, args))
        some = [torch.empty_like(g) if g is not None else draw(2, 2) for g in grads[0]]
        samples.append(Sample(f"{name}-out", args, {"out": some}, written=("out",)))
        fewer = [None if n % 2 else tensor for n, tensor in enumerate(some)]
        samples.append(Sample(f"{name}-some-out", args, {"out": fewer}, written=("out",)))
    return [s for s in samples if _out_fits(s)]


def _out_fits(sample: Sample) -> bool:
    """Whether the entries of ``out`` have the shapes of the gradients (task 0 may lack one that another has)."""
    out, grads = sample.kwargs.get("out"), sample.args[0]
    if not isinstance(out, list):
        return True
    shapes = [next((row[n].shape for row in grads if row[n] is not None), None) for n in range(len(out))]
    return all(o is None or s is None or o.shape == s for o, s in zip(out, shapes, strict=True))


def _combine_large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    draw = drawer(device, dtype, False)
    arena, lists = draw(7, _LARGE_OFFSETS[-1]), _large_lists(draw)
    out = [draw(*shape) for shape in _LARGE_SHAPES]
    args = (lists, [0, 1, 4], group_weights(device, [0, 1, 4], 5))
    offsets = _offsets(_LARGE_OFFSETS, device)
    return [
        Sample("arena", (arena, offsets, group_weights(device, _LARGE_OFFSETS, 7))),
        Sample("list", args),
        Sample("list-out", args, {"out": out}, written=("out",)),
    ]


# ---- the coefficients


_SIZES = [(1, 2), (3, 4), (2, 1), (0, 3), (2, 9), (1, 33)]  # groups, tasks


def _flags(tasks: int, device: torch.device, missing: int) -> Tensor:
    return torch.arange(tasks, device=device) != missing


def _orders(groups: int, tasks: int, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(groups + tasks)
    keys = torch.rand(groups, tasks, tasks, generator=generator)
    full = keys.argsort(-1).to(device)
    return {"all": full, "groups": full[:, :1], "rows": full[0], "one": full[0, 0]}


def _pcgrad_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    for groups, tasks in _SIZES:
        args = (gram_of(device, groups, tasks),)
        samples.append(Sample(f"{groups}x{tasks}", args, {"seed_step": seed_step_of(device)}))
    args = (gram_of(device, 3, 5),)
    for name, order in _orders(3, 5, device).items():
        samples.append(Sample(f"order-{name}", args, {"order": order}))
    options: dict[str, Any] = {
        "task_weights": torch.arange(5.0, dtype=torch.float64, device=device) - 1,
        "task_mask": _flags(5, device, 2),
        "apply_to": _flags(5, device, 1),
        "residual_eps": 0.5,
    }
    for name, value in options.items():
        samples.append(Sample(name, args, {"seed_step": seed_step_of(device), name: value}))
    return [*samples, Sample("every-option", args, {"seed_step": seed_step_of(device), **options})]


def _gradvac_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    for sample in _pcgrad_samples(device, dtype, grad):
        (gram,) = sample.args
        ema = gram_of(device, *gram.shape[:2], seed=3) / (6 * gram.shape[1] + 4)
        samples.append(Sample(sample.name, (gram, ema), sample.kwargs))
    args, seed = (
        (gram_of(device, 2, 4), gram_of(device, 2, 4, seed=3) / 30),
        {"seed_step": seed_step_of(device)},
    )
    for beta in (0.0, 0.5, 1.0):
        samples.append(Sample(f"beta-{beta}", args, {**seed, "beta": beta}))
    for target in (-1, 0.0, 0.3, 0.999, 1.0, args[1].abs()):
        name = "tensor" if isinstance(target, Tensor) else target
        samples.append(Sample(f"target-{name}", args, {**seed, "target": target}))
    samples.append(Sample("no-ema", args[:1], {**seed, "target": 0.2}))
    samples.append(Sample("clip", args, {**seed, "target": 0.9, "target_clip": 0.5}))
    return samples


def _mgda_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    """Solved to the end: on the way, which of two equal slopes comes first is a matter of rounding."""
    exact = {"tolerance": 1e-15}
    samples = [Sample(f"{k}x{t}", (gram_of(device, k, t),), exact) for k, t in _SIZES]
    args = (gram_of(device, 2, 4),)
    options: dict[str, Any] = {
        "scale": torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
        + 0.5,
        "task_mask": _flags(4, device, 2),
        "max_iterations": 5000,
    }
    samples += [Sample(name, args, exact | {name: value}) for name, value in options.items()]
    samples += [Sample(f"{n}-steps", args, {"max_iterations": n}) for n in (0, 1)]
    return [
        *samples,
        Sample("loose", args, {"tolerance": 1.0}),
        Sample("every-option", args, exact | options),
    ]


def _gradnorm_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    for groups, tasks in _SIZES:
        draw = drawer(device, torch.float64, False, seed=2)
        losses = (draw(tasks).abs() + 0.1, draw(tasks).abs() + 0.5)
        gram = gram_of(device, groups, tasks)
        name = f"{groups}x{tasks}"
        samples.append(Sample(name, (gram, *losses, draw(groups, tasks).abs())))
        shared = (gram, *losses, draw(tasks).abs())
        samples.append(
            Sample(f"{name}-shared", shared, {"alpha": 0.5, "task_mask": _flags(tasks, device, 1)})
        )
    return samples


def _agem_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    return [
        Sample(
            f"{k}x{t}-{reference_}", (gram_of(device, k, t, seed=t + reference_),), {"reference": reference_}
        )
        for k, t in _SIZES
        for reference_ in sorted({0, -1, t // 2, -t})
    ]


def _large_coefficients(device: torch.device, dtype: torch.dtype, grad: bool, *, op: str) -> list[Sample]:
    """As many groups as make it worth several threads; more tasks than a warp has lanes."""
    gram = gram_of(device, 11, 37)
    draw = drawer(device, torch.float64, False, seed=2)
    kwargs: dict[str, Any] = {}
    if op in ("gradvac_coef", "pcgrad_coef"):
        kwargs = {"seed_step": seed_step_of(device)}
    if op == "gradvac_coef":
        kwargs["ema"] = gram_of(device, 11, 37, seed=3) / 300
    if op == "mgda_coef":
        kwargs["tolerance"] = 1e-14
    if op == "gradnorm_stats":
        kwargs = {
            "losses": draw(37).abs(),
            "initial_losses": draw(37).abs() + 1,
            "weights": draw(11, 37).abs(),
        }
    return [Sample("11x37", (gram,), kwargs)]


def _spec(name: str, samples: Any, large: Any, errors: Any, **options: Any) -> OpSpec:
    return OpSpec(
        name=name,
        op=getattr(xfercore, name),
        reference=getattr(reference, name),
        samples=samples,
        large_samples=large,
        error_samples=errors,
        differentiable=False,
        double_backward=False,
        autocast="none",
        **options,
    )


def _coefficients(name: str, samples: Any, errors: Any, **options: Any) -> OpSpec:
    large = partial(_large_coefficients, op=name)
    return _spec(name, samples, large, errors, dtypes=(torch.float64,), **options)


SURGERY_SPECS = [
    _spec("task_gram", _gram_samples, _gram_large, surgery_errors.grads_errors),
    _spec("combine_gradients", _combine_samples, _combine_large, surgery_errors.combine_errors),
    _coefficients("gradvac_coef", _gradvac_samples, surgery_errors.gradvac_errors),
    _coefficients("pcgrad_coef", _pcgrad_samples, surgery_errors.pcgrad_errors),
    _coefficients("mgda_coef", _mgda_samples, surgery_errors.mgda_errors, tolerance=1e-6),
    _coefficients("gradnorm_stats", _gradnorm_samples, surgery_errors.gradnorm_errors),
    _coefficients("agem_coef", _agem_samples, surgery_errors.agem_errors),
]
