"""The table of op specifications: ``tests/ops/test_all_ops.py`` runs every generated check over each line of it.

A new op adds one ``OpSpec`` here, a family of ops a file of its own that is put in at the end;
``test_every_op_has_a_specification`` fails until it does.

long file: one table, so that an op's cases are compared with those of its neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from draw import Draw, drawer
from hard_concrete_specs import HARD_CONCRETE_SPECS
from ranking_specs import RANKING_SPECS
from surgery_specs import SURGERY_SPECS
from torch import Tensor

import xfercore
from xfercore import reference
from xfercore.testing import ErrorSample, OpSpec, Sample

# ---- gated_mix

_GATED_MIX_SIZES = [  # tokens, experts, dim
    (5, 3, 7),
    (1, 1, 1),
    (0, 3, 4),
    (4, 3, 0),
    (13, 8, 17),
    (3, 65, 2),
    (2, 257, 3),
    (11, 2, 131),
]


def _targets(tokens: int, experts: int, device: torch.device, ignore_index: int = -1) -> Tensor:
    targets = torch.arange(tokens, device=device) % experts
    targets[1::3] = ignore_index
    return targets


def _gated_mix_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    for tokens, experts, dim in _GATED_MIX_SIZES:
        draw = drawer(device, dtype, grad)
        size = f"{tokens}x{experts}x{dim}"
        targets = _targets(tokens, experts, device)
        stacked = (draw(tokens, experts, scale=2.0), draw(tokens, experts, dim))
        listed = (draw(tokens, experts), [draw(tokens, dim) for _ in range(experts)])
        samples.append(Sample(f"stacked-{size}", stacked, {"targets": targets}))
        samples.append(Sample(f"list-{size}", listed, {"targets": targets}))
    draw = drawer(device, dtype, grad)
    samples.append(Sample("no-targets", (draw(5, 3), draw(5, 3, 4))))
    samples.append(Sample("list-no-targets", (draw(5, 2), [draw(5, 4), draw(5, 4)])))
    targets = _targets(7, 4, device, ignore_index=2)
    samples.append(Sample("ignore-2", (draw(7, 4), draw(7, 4, 3)), {"targets": targets, "ignore_index": 2}))
    samples.append(Sample("one-expert-list", (draw(3, 1), [draw(3, 5)])))
    extreme = (draw(6, 4, scale=1e4), draw(6, 4, 5))
    samples.append(Sample("extreme-logits", extreme, {"targets": _targets(6, 4, device)}))
    constant = (draw(5, 3, grad=False), draw(5, 3, 4))
    samples.append(Sample("only-experts-need-grad", constant, {"targets": _targets(5, 3, device)}))
    constant = (draw(5, 3), draw(5, 3, 4, grad=False))
    samples.append(Sample("only-logits-need-grad", constant, {"targets": _targets(5, 3, device)}))
    return samples


def _gated_mix_large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    draw = drawer(device, dtype, grad)
    targets = _targets(1201, 7, device)
    stacked = (draw(1201, 7), draw(1201, 7, 61))
    listed = (draw(1201, 7), [draw(1201, 61) for _ in range(7)])
    return [
        Sample("stacked", stacked, {"targets": targets}),
        Sample("list", listed, {"targets": targets}),
    ]


def _gated_mix_gradcheck(device: torch.device) -> list[Sample]:
    draw = drawer(device, torch.float64, True)
    targets = _targets(4, 3, device)
    return [
        Sample("stacked", (draw(4, 3), draw(4, 3, 2)), {"targets": targets}),
        Sample("list", (draw(4, 3), [draw(4, 2) for _ in range(3)]), {"targets": targets}),
        Sample("no-targets", (draw(3, 2), draw(3, 2, 5))),
        Sample("one-expert", (draw(3, 1), draw(3, 1, 2)), {"targets": _targets(3, 1, device)}),
        Sample("empty", (draw(0, 3), draw(0, 3, 2))),
        Sample("no-columns", (draw(2, 3), draw(2, 3, 0)), {"targets": _targets(2, 3, device)}),
        Sample("list-of-67", (draw(1, 67), [draw(1, 1) for _ in range(67)])),
        Sample("only-experts", (draw(4, 3, grad=False), draw(4, 3, 2)), {"targets": targets}),
        Sample("only-logits", (draw(4, 3), draw(4, 3, 2, grad=False)), {"targets": targets}),
    ]


def _gated_mix_errors(device: torch.device) -> list[ErrorSample]:
    draw = drawer(device, torch.float32, False)
    logits, experts = draw(4, 3), draw(4, 3, 5)
    listed = [draw(4, 5) for _ in range(3)]

    def error(name: str, args: tuple[Any, ...], argument: str, **kwargs: Any) -> ErrorSample:
        return ErrorSample(name, args, kwargs, argument)

    return [
        error("rank", (logits[0], experts), "logits"),
        error("no-expert", (logits[:, :0], experts[:, :0]), "logits"),
        error("dtype", (logits.long(), experts), "logits"),
        error("integer-experts", (logits, experts.long()), "experts"),
        error("experts-rank", (logits, experts[0]), "experts"),
        error("experts-size", (logits, experts[:, :2]), "experts"),
        error("experts-dtype", (logits, experts.bfloat16()), "experts"),
        error("experts-none", (logits, None), "experts"),
        error("list-short", (logits, listed[:2]), "experts"),
        error("list-empty", (logits, []), "experts"),
        error("list-size", (logits, [*listed[:2], listed[2][:, :4]]), "experts[k]"),
        error("list-dtype", (logits, [*listed[:2], listed[2].double()]), "experts[k]"),
        error("targets-size", (logits, experts), "targets", targets=torch.zeros(3, dtype=torch.int64)),
        error("targets-dtype", (logits, experts), "targets", targets=torch.zeros(4, dtype=torch.int32)),
        error("targets-list", (logits, experts), "targets", targets=[0, 1, 2, 0]),
        error("ignore-index", (logits, experts), "ignore_index", ignore_index=0.5),
    ]


# ---- moe_mlp_mix


def _moe(draw: Draw, lead: tuple[int, ...], d: int, k: int, h: int, out: int) -> tuple[Tensor, ...]:
    """x, gate_weight, gate_bias, w1, b1, w2, b2."""
    weights = (draw(k, h, d, scale=0.6), draw(k, h), draw(k, out, h, scale=0.6), draw(k, out))
    return (draw(*lead, d), draw(k, d, scale=0.6), draw(k), *weights)


_MOE_SIZES: list[tuple[tuple[int, ...], int, int, int, int]] = [  # leading, in, experts, hidden, out
    ((5,), 7, 3, 4, 6),
    ((2, 3), 5, 2, 3, 4),
    ((), 4, 2, 3, 2),
    ((1,), 1, 1, 1, 1),
    ((0,), 3, 2, 4, 5),
    ((2, 0, 3), 3, 2, 4, 5),
    ((3,), 0, 2, 3, 2),
    ((2, 3), 0, 2, 3, 2),
    ((3,), 4, 2, 0, 3),
    ((3,), 4, 2, 3, 0),
    ((37,), 13, 5, 17, 11),
    ((3,), 5, 67, 2, 3),
]

_MOE_OPTIONS: list[dict[str, Any]] = [
    {"act1": "tanh"},
    {"act1": "none", "act2": "none"},
    {"act2": "relu"},
    {"act2": "softmax"},
    {"act2": "log_softmax"},
    {"act2": "log_softmax", "mix": "logsumexp"},
    {"act2": "none", "mix": "logsumexp", "act1": "tanh"},
    {"detach_gate_input": True},
    {"recompute": "always"},
    {"recompute": "never"},
    {"recompute": "always", "act2": "log_softmax", "mix": "logsumexp", "dropout_p": 0.5},
    {"dropout_p": 0.5},
    {"dropout_p": 0.1, "act1": "tanh", "detach_gate_input": True},
    {"dropout_p": 0.9, "act2": "log_softmax", "mix": "logsumexp"},
]


def _options(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    if options.get("dropout_p", 0.0) == 0.0:
        return options
    return options | {"seed_offset": torch.tensor([2**61 + 12345, 2**33 + 7], device=device)}


def _option_name(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items())


def _moe_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    for lead, d, k, h, out in _MOE_SIZES:
        draw = drawer(device, dtype, grad)
        name = "x".join(str(size) for size in (*lead, d, k, h, out))
        samples.append(Sample(name, _moe(draw, lead, d, k, h, out)))
    for options in _MOE_OPTIONS:
        draw = drawer(device, dtype, grad, seed=1)
        args = _moe(draw, (6,), 7, 3, 5, 4)
        samples.append(Sample(_option_name(options), args, _options(options, device)))
    draw = drawer(device, dtype, grad, seed=2)
    x, *weights = _moe(draw, (6,), 7, 3, 5, 4)
    samples.append(Sample("constant-x", (x.detach(), *weights)))
    frozen = [w.detach() for w in weights]
    samples.append(Sample("constant-weights", (x, *frozen)))
    some = [w.detach() if i % 2 else w for i, w in enumerate(weights)]
    samples.append(Sample("some-weights", (x, *some), _options({"dropout_p": 0.5}, device)))
    return samples


def _moe_large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    for options in (
        {},
        {"dropout_p": 0.5, "recompute": "always"},
        {"dropout_p": 0.5, "act2": "log_softmax", "mix": "logsumexp"},
    ):
        args = _moe(drawer(device, dtype, grad), (1361,), 17, 5, 23, 9)  # blocks of at most 512 tokens
        samples.append(Sample(_option_name(options) or "plain", args, _options(options, device)))
    return samples


def _moe_gradcheck(device: torch.device) -> list[Sample]:
    samples = []
    for options in ({}, *_MOE_OPTIONS):
        args = _moe(drawer(device, torch.float64, True, seed=3), (3,), 3, 2, 2, 2)
        samples.append(Sample(_option_name(options) or "plain", args, _options(options, device)))
    for lead, d, k, h, out in [((2, 2), 2, 1, 3, 1), ((0,), 2, 2, 2, 2), ((), 2, 3, 1, 2)]:
        args = _moe(drawer(device, torch.float64, True, seed=4), lead, d, k, h, out)
        samples.append(Sample("x".join(str(s) for s in (*lead, d, k, h, out)), args, {"act1": "tanh"}))
    # Where the gate input is detached, the numerical derivative by x would still see it: weights alone.
    return [_without_x(s) if s.kwargs.get("detach_gate_input") else s for s in samples]


def _without_x(sample: Sample) -> Sample:
    return Sample(sample.name, (sample.args[0].detach(), *sample.args[1:]), sample.kwargs)


def _moe_errors(device: torch.device) -> list[ErrorSample]:
    draw = drawer(device, torch.float32, False)
    names = ("x", "gate_weight", "gate_bias", "w1", "b1", "w2", "b2")
    good = dict(zip(names, _moe(draw, (4,), 5, 3, 6, 2), strict=True))

    def error(name: str, argument: str, **changed: Any) -> ErrorSample:
        return ErrorSample(name, (), good | changed, argument)

    errors = [error(f"{name}-none", name, **{name: None}) for name in names]
    errors += [error(f"{name}-integer", name, **{name: good[name].long()}) for name in names]
    errors += [error(f"{name}-dtype", name, **{name: good[name].bfloat16()}) for name in names[1:]]
    errors += [error(f"{name}-rank", name, **{name: good[name][0]}) for name in names[1:]]
    errors += [error(f"{name}-size", name, **{name: good[name][..., :1]}) for name in names[2:]]
    errors += [error(f"{name}-meta", name, **{name: good[name].to("meta")}) for name in names[1:]]
    seed = torch.tensor([1, 2], device=device)
    return [
        *errors,
        error("x-scalar", "x", x=torch.tensor(1.0, device=device)),
        error("act1", "act1", act1="gelu"),
        error("act1-softmax", "act1", act1="softmax"),
        error("act2", "act2", act2="gelu"),
        error("act2-type", "act2", act2=None),
        error("mix", "mix", mix="mean"),
        error("logsumexp-tanh", "act2", mix="logsumexp", act2="tanh"),
        error("recompute", "recompute", recompute="sometimes"),
        error("detach", "detach_gate_input", detach_gate_input="yes"),
        error("p-one", "dropout_p", dropout_p=1.0, seed_offset=seed),
        error("p-negative", "dropout_p", dropout_p=-0.5),
        error("p-nan", "dropout_p", dropout_p=float("nan")),
        error("p-string", "dropout_p", dropout_p="0.5"),
        error("seed-float", "seed_offset", dropout_p=0.5, seed_offset=seed.float()),
        error("seed-size", "seed_offset", dropout_p=0.5, seed_offset=seed[:1]),
        error("seed-number", "seed_offset", dropout_p=0.5, seed_offset=7),
    ]


# ---- grad_reverse, linear_grad_reverse


def _lams(rows: int | None, dtype: torch.dtype, device: torch.device) -> list[tuple[str, Any]]:
    lams: list[tuple[str, Any]] = [
        ("default", 1.0),
        ("0.5", 0.5),
        ("zero", 0.0),
        ("negative", -2),
        ("tensor", torch.tensor(0.3, device=device)),
        ("tensor-of-x", torch.tensor(0.75, device=device, dtype=dtype)),
        ("tensor-f64", torch.tensor(0.25, device=device, dtype=torch.float64)),
    ]
    if rows is not None:
        lams.append(("rows", torch.linspace(-1, 1, rows, device=device)))
        lams.append(("rows-of-x", torch.linspace(0, 2, rows, device=device).to(dtype)))
    return lams


_REVERSE_SHAPES: list[tuple[int, ...]] = [(5, 7), (), (1,), (0, 3), (3, 0), (2, 3, 5), (13, 17, 3)]


def _grad_reverse_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    for shape in _REVERSE_SHAPES:
        for name, lam in _lams(shape[0] if shape else None, dtype, device):
            x = drawer(device, dtype, grad)(*shape)
            samples.append(Sample(f"{'x'.join(map(str, shape)) or '0-dim'}-{name}", (x, lam)))
    return samples


def _grad_reverse_large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    rows = torch.linspace(-1, 1, 1201, device=device)
    draw = drawer(device, dtype, grad)
    return [Sample("number", (draw(1201, 257), 0.7)), Sample("rows", (draw(1201, 257), rows))]


def _minus_ones(rows: int | None, device: torch.device) -> list[tuple[str, Any]]:
    """lam = -1 in every form: the reversal is then the identity's own derivative."""
    lams: list[tuple[str, Any]] = [("number", -1.0)]
    lams.append(("tensor", torch.tensor(-1.0, device=device, dtype=torch.float64)))
    if rows is not None:
        lams.append(("rows", torch.full((rows,), -1.0, device=device)))
    return lams


def _grad_reverse_gradcheck(device: torch.device) -> list[Sample]:
    return [
        Sample(f"{shape}-{name}", (drawer(device, torch.float64, True)(*shape), lam))
        for shape in [(3, 4), (), (0, 2), (2, 3, 2)]
        for name, lam in _minus_ones(shape[0] if shape else None, device)
    ]


def _lam_errors(args: tuple[Any, ...], device: torch.device) -> list[ErrorSample]:
    rows = args[0].shape[0]
    bad = {
        "lam-string": "0.5",
        "lam-none": None,
        "lam-bool": True,
        "lam-list": [0.5],
        "lam-integer": torch.tensor(1, device=device),
        "lam-rows": torch.ones(rows + 1, device=device),
        "lam-one-row": torch.ones(1, device=device),
        "lam-2d": torch.ones(rows, 1, device=device),
        "lam-grad": torch.ones((), device=device, requires_grad=True),
        "lam-meta": torch.ones((), device="meta"),
        "lam-sparse": torch.ones(rows, device=device).to_sparse(),
    }
    return [ErrorSample(name, args, {"lam": lam}, "lam") for name, lam in bad.items()]


def _grad_reverse_errors(device: torch.device) -> list[ErrorSample]:
    x = drawer(device, torch.float32, False)(4, 3)
    bad = {
        "none": None,
        "number": 1.0,
        "integer": torch.ones(3, dtype=torch.int64, device=device),
        "complex": torch.ones(3, dtype=torch.complex64, device=device),
        "sparse": torch.ones(3, device=device).to_sparse(),
    }
    errors = [ErrorSample(f"x-{name}", (value,), {}, "x") for name, value in bad.items()]
    scalar = ErrorSample("lam-of-scalar", (x[0, 0],), {"lam": torch.ones(1, device=device)}, "lam")
    return [*errors, scalar, *_lam_errors((x,), device)]


def _linear_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    shapes: list[tuple[tuple[int, ...], int]] = [
        ((5, 7), 4),
        ((5, 3), 11),
        ((2, 3, 7), 4),
        ((7,), 2),
        ((1, 1), 1),
        ((0, 7), 3),
        ((2, 0, 7), 3),
        ((3, 0), 4),
        ((2, 3, 0), 4),
        ((3, 4), 0),
        ((2, 3, 4), 0),
    ]
    for shape, out_dim in shapes:
        for i, (name, lam) in enumerate(_lams(shape[0] if len(shape) > 1 else None, dtype, device)):
            draw = drawer(device, dtype, grad)
            bias = draw(out_dim) if i % 2 else None
            sizes = "x".join(map(str, (*shape, out_dim)))
            samples.append(Sample(f"{sizes}-{name}", (draw(*shape), draw(out_dim, shape[-1]), bias, lam)))
    draw = drawer(device, dtype, grad)
    samples.append(Sample("constant-x", (draw(5, 7, grad=False), draw(3, 7), draw(3), 0.5)))
    samples.append(Sample("constant-weight", (draw(5, 7), draw(3, 7, grad=False), draw(3), 0.5)))
    samples.append(Sample("constant-bias", (draw(5, 7), draw(3, 7), draw(3, grad=False), 0.5)))
    return samples


def _linear_large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    draw = drawer(device, dtype, grad)
    rows = torch.linspace(-1, 1, 701, device=device)
    args = (draw(701, 67), draw(61, 67), draw(61))
    return [Sample("number", (*args, 0.7)), Sample("rows", (*args, rows))]


def _linear_gradcheck(device: torch.device) -> list[Sample]:
    samples = []
    for shape, out_dim in [((3, 4), 2), ((2, 2, 3), 2), ((3,), 2), ((0, 3), 2)]:
        for name, lam in _minus_ones(shape[0] if len(shape) > 1 else None, device):
            draw = drawer(device, torch.float64, True)
            args = (draw(*shape), draw(out_dim, shape[-1]), draw(out_dim), lam)
            samples.append(Sample(f"{shape}-{name}", args))
    draw = drawer(device, torch.float64, True)
    samples.append(Sample("no-bias", (draw(3, 2), draw(2, 2), None, -1.0)))
    return samples


def _linear_errors(device: torch.device) -> list[ErrorSample]:
    draw = drawer(device, torch.float32, False)
    x, weight, bias = draw(4, 3), draw(5, 3), draw(5)

    def error(name: str, args: tuple[Any, ...], argument: str) -> ErrorSample:
        return ErrorSample(name, args, {}, argument)

    return [
        error("x-none", (None, weight), "x"),
        error("x-integer", (x.long(), weight), "x"),
        error("x-scalar", (x[0, 0], weight), "x"),
        error("weight-none", (x, None), "weight"),
        error("weight-rank", (x, weight[0]), "weight"),
        error("weight-size", (x, weight[:, :2]), "weight"),
        error("weight-dtype", (x, weight.double()), "weight"),
        error("weight-meta", (x, weight.to("meta")), "weight"),
        error("bias-size", (x, weight, bias[:4]), "bias"),
        error("bias-rank", (x, weight, bias[:, None]), "bias"),
        error("bias-dtype", (x, weight, bias.bfloat16()), "bias"),
        error("bias-number", (x, weight, 1.0), "bias"),
        error("lam-for-one-row", (x[0], weight, bias, torch.ones(3, device=device)), "lam"),
        *_lam_errors((x, weight, bias), device),
    ]


OP_SPECS = {
    spec.name: spec
    for spec in [
        OpSpec(
            name="gated_mix",
            op=xfercore.gated_mix,
            reference=reference.gated_mix,
            samples=_gated_mix_samples,
            large_samples=_gated_mix_large,
            gradcheck_samples=_gated_mix_gradcheck,
            error_samples=_gated_mix_errors,
            autocast="widest",
        ),
        OpSpec(
            name="moe_mlp_mix",
            op=xfercore.moe_mlp_mix,
            reference=reference.moe_mlp_mix,
            samples=_moe_samples,
            large_samples=_moe_large,
            gradcheck_samples=_moe_gradcheck,
            error_samples=_moe_errors,
        ),
        OpSpec(
            name="grad_reverse",
            op=xfercore.grad_reverse,
            reference=reference.grad_reverse,
            samples=_grad_reverse_samples,
            large_samples=_grad_reverse_large,
            gradcheck_samples=_grad_reverse_gradcheck,
            error_samples=_grad_reverse_errors,
            functorch=True,
            returns_view=True,
            autocast="none",
        ),
        OpSpec(
            name="linear_grad_reverse",
            op=xfercore.linear_grad_reverse,
            reference=reference.linear_grad_reverse,
            samples=_linear_samples,
            large_samples=_linear_large,
            gradcheck_samples=_linear_gradcheck,
            error_samples=_linear_errors,
            functorch=True,
            autocast_keeps=(3,),  # lam
            thread_invariant=False,  # the GEMMs are ATen's
        ),
        *SURGERY_SPECS,
        *RANKING_SPECS,
        *HARD_CONCRETE_SPECS,
    ]
}
