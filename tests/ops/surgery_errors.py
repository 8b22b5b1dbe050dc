"""Invalid calls of the ops of gradient surgery, for the table in ``surgery_specs.py``."""

from __future__ import annotations

from typing import Any

import torch
from draw import drawer, gram_of, group_weights, seed_step_of
from torch import Tensor

from xfercore.testing import ErrorSample


def _error(name: str, args: tuple[Any, ...], argument: str, **kwargs: Any) -> ErrorSample:
    return ErrorSample(name, args, kwargs, argument)


def _needs_grad(name: str, args: tuple[Any, ...], argument: str, **kwargs: Any) -> ErrorSample:
    return ErrorSample(f"{name}-requires-grad", args, kwargs, argument, RuntimeError)


def grads_errors(device: torch.device, *rest: Any) -> list[ErrorSample]:
    """What is wrong with gradients or offsets, for both ops; ``rest`` follows them."""
    draw = drawer(device, torch.float32, False)
    arena, one = draw(2, 3), draw(3)
    grads: dict[str, Any] = {
        "none": None,
        "number": 1.0,
        "one-dim": arena[0],
        "three-dim": arena[None],
        "integer": arena.long(),
        "sparse": arena.to_sparse(),
        "no-task": arena[:0],
        "empty-list": [],
        "list-of-tensors": [one, one],
        "ragged": [[one, one], [one]],
        "all-none": [[None], [None]],
        "no-parameter": [[], []],
        "mixed-dtypes": [[one], [one.bfloat16()]],
        "mixed-devices": [[one], [one.to("meta")]],
        "shapes": [[one], [one[:2]]],
        "entry": [[one], [1.0]],
        "sparse-entry": [[one], [one.to_sparse()]],
        "integer-entry": [[one], [one.long()]],
    }
    errors = [_error(f"grads-{name}", (value, None, *rest), "grads") for name, value in grads.items()]
    leaf = one.clone().requires_grad_()
    for name, value in {"arena": arena.clone().requires_grad_(), "list": [[one], [leaf]]}.items():
        errors.append(_needs_grad(f"grads-{name}", (value, None, *rest), "grads"))
    listed = [[one, one], [one, None]]
    ends = torch.tensor([0, 2], device=device)
    offsets: dict[str, tuple[Any, Any]] = {
        "float": (arena, ends.float()),
        "int32": (arena, ends.int()),
        "rank": (arena, ends[None]),
        "empty": (arena, ends[:0]),
        "meta": (arena, ends.to("meta")),
        "string": (arena, "02"),
        "number": (arena, 2),
        "fraction": (arena, [0, 1.5]),
        "bits": (arena, [0, 10**30]),
        "list-empty": (listed, []),
        "list-rank": (listed, ends.cpu()[None]),
        "list-meta": (listed, ends.to("meta")),
    }
    return errors + [
        _error(f"offsets-{name}", (taken, value, *rest), "offsets")
        for name, (taken, value) in offsets.items()
    ]


def combine_errors(device: torch.device) -> list[ErrorSample]:
    draw = drawer(device, torch.float32, False)
    arena, one, half = draw(2, 3), draw(3), draw(3).half()
    listed = [[one, one], [one, None]]
    good = group_weights(device, None, 2)
    weights: dict[str, Any] = {
        "none": None,
        "list": [[1.0, 1.0]],
        "float32": good.float(),
        "integer": good.long(),
        "rank": good[0],
        "tasks": good[:, :1],
        "groups": good.expand(2, 2),
        "meta": good.to("meta"),
        "sparse": good.to_sparse(),
    }
    errors = [_error(f"weights-{name}", (arena, None, value), "weights") for name, value in weights.items()]
    errors.append(_needs_grad("weights", (arena, None, good.clone().requires_grad_()), "weights"))
    outs: dict[str, tuple[Any, Any]] = {
        "size": (arena, one[:2]),
        "rank": (arena, arena[:1]),
        "dtype": (arena, half),
        "meta": (arena, one.to("meta")),
        "strided": (arena, draw(6)[::2]),
        "list-for-an-arena": (arena, [one]),
        "tensor-for-a-list": (listed, one),
        "short": (listed, [one]),
        "entry-size": (listed, [one, one[:2]]),
        "entry-dtype": (listed, [half, None]),
        "entry-meta": (listed, [one, one.to("meta")]),
        "entry-number": (listed, [one, 1.0]),
        "entry-strided": (listed, [one, draw(6)[::2]]),
    }
    errors += [_error(f"out-{n}", (taken, None, good), "out", out=o) for n, (taken, o) in outs.items()]
    leaf = one.clone().requires_grad_()
    errors.append(_needs_grad("out", (arena, None, good), "out", out=leaf))
    errors.append(_needs_grad("out-entry", (listed, None, good), "out", out=[leaf, None]))
    return [*grads_errors(device, good), *errors]


def _gram_errors(gram: Tensor, good: dict[str, Any]) -> list[ErrorSample]:
    bad: dict[str, Any] = {
        "none": None,
        "list": [[1.0]],
        "float32": gram.float(),
        "integer": gram.long(),
        "rank": gram[0],
        "not-square": gram[:, :2],
        "no-task": gram[:, :0, :0],
        "sparse": gram.to_sparse(),
    }
    errors = [_error(f"gram-{name}", (value,), "gram", **good) for name, value in bad.items()]
    return [*errors, _needs_grad("gram", (gram.clone().requires_grad_(),), "gram", **good)]


def _float64_errors(gram: Tensor, good: dict[str, Any], name: str, value: Tensor) -> list[ErrorSample]:
    bad: dict[str, Any] = {
        "float32": value.float(),
        "integer": value.long(),
        "list": [1.0, 2.0],
        "rank": value[None, None],
        "size": value[..., :-1],
        "meta": value.to("meta"),
    }
    errors = [_error(f"{name}-{what}", (gram,), name, **(good | {name: v})) for what, v in bad.items()]
    return [*errors, _needs_grad(name, (gram,), name, **(good | {name: value.clone().requires_grad_()}))]


def _mask_errors(gram: Tensor, good: dict[str, Any], name: str) -> list[ErrorSample]:
    mask = torch.ones(gram.shape[1], dtype=torch.bool, device=gram.device)
    bad = {"integer": mask.long(), "list": [True, False, True], "size": mask[:-1], "rank": mask[None]}
    bad["meta"] = mask.to("meta")
    return [_error(f"{name}-{what}", (gram,), name, **(good | {name: value})) for what, value in bad.items()]


def _number_errors(gram: Tensor, good: dict[str, Any], name: str, *bad: Any) -> list[ErrorSample]:
    return [_error(f"{name}-{value!r}", (gram,), name, **(good | {name: value})) for value in bad]


_NAN = float("nan")


def pcgrad_errors(device: torch.device) -> list[ErrorSample]:
    gram, seed = gram_of(device, 2, 3), seed_step_of(device)
    good = {"seed_step": seed}
    order = torch.arange(3, device=device)
    orders: dict[str, Any] = {
        "float": order.float(),
        "list": [0, 1, 2],
        "size": order[:2],
        "scalar": order[0],
        "rows": order.expand(2, 3),
        "groups": order.expand(3, 3, 3),
        "rank": order.expand(1, 2, 3, 3),
        "meta": order.to("meta"),
    }
    seeds: dict[str, Any] = {"float": seed.float(), "size": seed[:1], "number": 7, "rank": seed[None]}
    errors = [_error(f"order-{name}", (gram,), "order", order=value) for name, value in orders.items()]
    errors += [_error(f"seed-{name}", (gram,), "seed_step", seed_step=v) for name, v in seeds.items()]
    return [
        *_gram_errors(gram, good),
        *errors,
        _error("no-order", (gram,), "order"),
        _error("two-orders", (gram,), "seed_step", order=order, seed_step=seed),
        *_float64_errors(gram, good, "task_weights", gram[0, 0]),
        *_mask_errors(gram, good, "task_mask"),
        *_mask_errors(gram, good, "apply_to"),
        *_number_errors(gram, good, "residual_eps", -1.0, 1.5, _NAN, None, "0"),
    ]


def gradvac_errors(device: torch.device) -> list[ErrorSample]:
    gram = gram_of(device, 2, 3)
    good = {"seed_step": seed_step_of(device), "ema": torch.zeros_like(gram)}
    shared = [ErrorSample(e.name, e.args, {"ema": good["ema"]} | e.kwargs, e.argument, e.error)
              for e in pcgrad_errors(device)]  # fmt: skip
    return [
        *shared,
        _error("no-ema", (gram,), "ema", seed_step=good["seed_step"]),
        *_float64_errors(gram, good, "ema", gram),
        *_float64_errors(gram, good, "target", gram)[:2],
        *_float64_errors(gram, good, "target", gram)[3:],
        *_number_errors(gram, good, "target", "0.5", True, [0.5]),
        *_number_errors(gram, good, "beta", -0.1, 1.1, _NAN, None),
        *_number_errors(gram, good, "target_clip", -0.1, 1.0, _NAN, "1"),
    ]


def mgda_errors(device: torch.device) -> list[ErrorSample]:
    gram = gram_of(device, 2, 3)
    return [
        *_gram_errors(gram, {}),
        *_float64_errors(gram, {}, "scale", gram[:, 0].abs()),
        *_mask_errors(gram, {}, "task_mask"),
        *_number_errors(gram, {}, "tolerance", -1.0, 2.0, _NAN, None),
        *_number_errors(gram, {}, "max_iterations", -1, 1.5, True, None),
    ]


def gradnorm_errors(device: torch.device) -> list[ErrorSample]:
    gram = gram_of(device, 2, 3)
    ones = torch.ones(3, dtype=torch.float64, device=device)
    good = {"losses": ones, "initial_losses": ones, "weights": ones}
    return [
        *_gram_errors(gram, good),
        *(error for name in good for error in _float64_errors(gram, good, name, ones)),
        *_float64_errors(gram, good, "weights", ones.expand(2, 3)),
        *_number_errors(gram, good, "weights", None),
        *_number_errors(gram, good, "losses", None),
        *_number_errors(gram, good, "alpha", None, "1.5", True),
        *_mask_errors(gram, good, "task_mask"),
    ]


def agem_errors(device: torch.device) -> list[ErrorSample]:
    gram = gram_of(device, 2, 3)
    return [
        *_gram_errors(gram, {}),
        *_number_errors(gram, {}, "reference", 3, -4, 1.0, True, None, "0", 2**70),
    ]
