"""The specifications of Hard-Concrete masks; ``op_specs.py`` puts them into its table."""

from __future__ import annotations

from typing import Any

import torch
from draw import drawer
from torch import Tensor

import xfercore
from xfercore import reference
from xfercore.testing import ErrorSample, OpSpec, Sample

#: Shape of theta and the dimensions that share a gate.
_GROUPS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((4, 3, 5), (1, 2)),  # heads of a projection
    ((5, 3, 2), (0, 2)),  # heads of the columns of one
    ((7, 5), (0,)),
    ((7, 5), (1,)),
    ((3, 4), (0, 1)),
    ((2, 3, 4, 5), (0, 2)),  # kept and shared dimensions alternate
    ((2, 3, 4, 5), (-1, 1)),
    ((3, 0, 2), (1,)),
    ((0, 4), (1,)),
    ((1, 1, 3), (0, 1)),
    ((3, 130), (1,)),
    ((37, 70), (0,)),
]
_SHAPES: list[tuple[int, ...]] = [(7,), (), (1,), (0,), (3, 0), (5, 13), (64,), (131,)]


def seed_of(device: torch.device) -> Tensor:
    return torch.tensor([2**61 + 12345, 2**33 + 7], device=device)


def _gates_of(shape: tuple[int, ...], group_dims: tuple[int, ...]) -> list[int]:
    grouped = {dim % len(shape) for dim in group_dims}
    return [size for dim, size in enumerate(shape) if dim not in grouped]


def _calls(device: torch.device, dtype: torch.dtype, grad: bool, options: dict[str, Any]) -> list[Sample]:
    samples = []
    for shape in _SHAPES:
        draw = drawer(device, dtype, grad)
        name = "x".join(map(str, shape)) or "0-dim"
        samples.append(Sample(f"gates-{name}", (draw(*shape, scale=2.0),), options))
        samples.append(Sample(f"theta-{name}", (draw(*shape, scale=2.0), draw(*shape)), options))
    for shape, dims in _GROUPS:
        draw = drawer(device, dtype, grad, seed=1)
        args = (draw(*_gates_of(shape, dims), scale=2.0), draw(*shape))
        name = f"group-{'x'.join(map(str, shape))}-{dims}"
        samples.append(Sample(name, args, options | {"group_dims": dims}))
    draw = drawer(device, dtype, grad, seed=2)
    padded = (draw(1, 5, 1), draw(4, 5, 3))
    samples.append(Sample("padded", padded, options | {"group_dims": (0, 2)}))
    samples.append(Sample("constant-theta", (draw(9), draw(9, grad=False)), options))
    samples.append(Sample("constant-logits", (draw(9, grad=False), draw(9)), options))
    constant = (draw(3, grad=False), draw(4, 3, 2))
    samples.append(Sample("group-constant-logits", constant, options | {"group_dims": (0, 2)}))
    constant = (draw(3), draw(4, 3, 2, grad=False))
    samples.append(Sample("group-constant-theta", constant, options | {"group_dims": (0, 2)}))
    samples.append(Sample("saturated", (draw(33, scale=30.0), draw(33)), options))
    interval = {"gamma": -0.3, "zeta": 1.5}
    samples.append(Sample("interval", (draw(33, scale=2.0), draw(33)), options | interval))
    return samples


def _samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    options: dict[str, Any] = {"seed_offset": seed_of(device)}
    samples = _calls(device, dtype, grad, options)
    draw = drawer(device, dtype, grad, seed=3)
    for beta in (0.25, 0.5, 1.0, 2.0):
        samples.append(Sample(f"beta-{beta}", (draw(33, scale=2.0), draw(33)), options | {"beta": beta}))
    samples.append(Sample("count", (draw(3), draw(4, 3)), options | {"group_dims": (0,), "count": "groups"}))
    if dtype in (torch.bfloat16, torch.float16):
        precise = drawer(device, torch.float32, grad, seed=4)(9)
        samples.append(Sample("float32-logits", (precise, draw(9)), options))
    return samples


def _large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    draw, options = drawer(device, dtype, grad), {"seed_offset": seed_of(device)}
    return [
        Sample("theta", (draw(200_003, scale=2.0), draw(200_003)), options),
        Sample("rows", (draw(301), draw(301, 777)), options | {"group_dims": (1,)}),
        Sample("columns", (draw(301), draw(777, 301)), options | {"group_dims": (0,)}),
        Sample("one", (draw(), draw(777, 301)), options | {"group_dims": (0, 1)}),
        Sample("blocks", (draw(31), draw(97, 31, 80)), options | {"group_dims": (0, 2)}),
    ]


def _gradcheck(device: torch.device) -> list[Sample]:
    options = {"seed_offset": seed_of(device)}
    draw = drawer(device, torch.float64, True, seed=5)
    return [
        Sample("gates", (draw(7),), options),
        Sample("theta", (draw(3, 2), draw(3, 2)), options),
        Sample("rows", (draw(3), draw(3, 2, 2)), options | {"group_dims": (1, 2)}),
        Sample("columns", (draw(3), draw(4, 3)), options | {"group_dims": (0,)}),
        Sample("blocks", (draw(2), draw(2, 2, 2)), options | {"group_dims": (0, 2), "count": "groups"}),
        Sample("alternating", (draw(2, 2), draw(2, 2, 2, 2)), options | {"group_dims": (0, 2)}),
        Sample("beta", (draw(5), draw(5)), options | {"beta": 0.4, "gamma": -0.2, "zeta": 1.3}),
        Sample("constant-theta", (draw(4), draw(4, grad=False)), options),
        Sample("empty", (draw(0), draw(0)), options),
    ]


def _eval_gradcheck(device: torch.device) -> list[Sample]:
    draw = drawer(device, torch.float64, True, seed=5)
    return [
        Sample("gates", (draw(7),)),
        Sample("theta", (draw(3, 2), draw(3, 2))),
        Sample("rows", (draw(3), draw(3, 2, 2)), {"group_dims": (1, 2), "gamma": -0.2}),
        Sample("columns", (draw(3), draw(4, 3)), {"group_dims": (0,), "zeta": 1.4}),
    ]


def _shared_errors(device: torch.device) -> list[ErrorSample]:
    draw = drawer(device, torch.float32, False)
    la, theta = draw(4), draw(4)

    def error(name: str, args: tuple[Any, ...], argument: str, **kwargs: Any) -> ErrorSample:
        return ErrorSample(name, args, kwargs, argument)

    return [
        error("logits-none", (None, theta), "log_alpha"),
        error("logits-integer", (la.long(), theta), "log_alpha"),
        error("logits-sparse", (la.to_sparse(), theta), "log_alpha"),
        error("logits-shape", (la[:3], theta), "log_alpha"),
        error("logits-double", (la.double(), theta), "log_alpha"),
        error("logits-of-group", (la, draw(3, 5)), "log_alpha", group_dims=(1,)),
        error("theta-integer", (la, theta.long()), "theta"),
        error("theta-list", (la, [1.0, 2.0, 3.0, 4.0]), "theta"),
        error("theta-meta", (la, theta.to("meta")), "theta"),
        error("group-without-theta", (la,), "group_dims", group_dims=(0,)),
        error("group-number", (la, theta), "group_dims", group_dims=0),
        error("group-float", (la, theta), "group_dims", group_dims=(0.0,)),
        error("group-range", (la, theta), "group_dims", group_dims=(1,)),
        error("group-twice", (la[0], draw(4, 3)), "group_dims", group_dims=(0, -2)),
        error("gamma-zero", (la, theta), "gamma", gamma=0.0),
        error("gamma-nan", (la, theta), "gamma", gamma=float("nan")),
        error("gamma-string", (la, theta), "gamma", gamma="0"),
        error("zeta-one", (la, theta), "zeta", zeta=1.0),
        error("zeta-inf", (la, theta), "zeta", zeta=float("inf")),
    ]


def _errors(device: torch.device) -> list[ErrorSample]:
    la = drawer(device, torch.float32, False)(4)
    seed = seed_of(device)
    bad = {
        "beta-zero": ("beta", 0.0),
        "beta-nan": ("beta", float("nan")),
        "beta-bool": ("beta", True),
        "count": ("count", "gates"),
        "seed-number": ("seed_offset", 7),
        "seed-float": ("seed_offset", seed.double()),
        "seed-size": ("seed_offset", seed[:1]),
        "seed-rank": ("seed_offset", seed[None]),
        "seed-meta": ("seed_offset", seed.to("meta")),
    }
    errors = [ErrorSample(name, (la, la), {arg: value}, arg) for name, (arg, value) in bad.items()]
    return _shared_errors(device) + errors


HARD_CONCRETE_SPECS = [
    OpSpec(
        name="hard_concrete",
        op=xfercore.hard_concrete,
        reference=reference.hard_concrete,
        samples=_samples,
        large_samples=_large,
        gradcheck_samples=_gradcheck,
        error_samples=_errors,
        autocast="none",
    ),
    OpSpec(
        name="hard_concrete_eval",
        op=xfercore.hard_concrete_eval,
        reference=reference.hard_concrete_eval,
        # The same kernel as above, without noise: every other call of it.
        samples=lambda device, dtype, grad: _calls(device, dtype, grad, {})[::2],
        large_samples=lambda device, dtype, grad: [
            Sample(s.name, s.args, {k: v for k, v in s.kwargs.items() if k != "seed_offset"})
            for s in _large(device, dtype, grad)
        ],
        gradcheck_samples=_eval_gradcheck,
        error_samples=_shared_errors,
        autocast="none",
    ),
]
