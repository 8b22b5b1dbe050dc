"""Valid calls with 0 to 3 arguments spoilt, for every op: what ``test_bad_arguments.py`` draws from.

As a program, ``python argument_fuzzer.py <op> <first seed> <count>`` runs so many calls in a process of its own, so
that a crash of the compiled code is one failed test and names its seeds.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import sys
from functools import cache
from typing import Any

import torch
from op_specs import OP_SPECS
from torch import Tensor
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
REFUSALS = (ValueError, TypeError, RuntimeError)
NOT_TENSORS: list[Any] = [None, 3, 0.5, "tensor", [1.0], (), {}, object(), torch.float32, True]
NOT_NUMBERS: list[Any] = [None, "0.5", [0.5], {}, object(), True, 1j]
NOT_STRINGS: list[Any] = ["", "gelu", "TANH", "x" * 1000, "\0", None, 3, ["tanh"], b"tanh"]
HUGE = 2**31 + 1
FREE_SIZES = (
    "x",
    "logits",
    "experts",
    "weight",
    "grads",
    "gram",
    "offsets",
    "u",
    "v",
    "hard_neg",
    "queries",
    "keys",
    "log_alpha",
    "theta",
)  # some size of theirs agrees with no other: valid, and too much memory


@cache
def valid_calls(op: str) -> list[dict[str, Any]]:
    """The table's small samples, as keyword arguments."""
    spec = OP_SPECS[op]
    calls = []
    for grad in (False, True):
        for sample in spec.samples(CPU, torch.float32, grad):
            bound = inspect.signature(spec.op).bind(*sample.args, **sample.kwargs)
            calls.append(dict(bound.arguments))
    return calls


def draw_call(op: str, rng: random.Random) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Arguments, and what was spoilt: (argument, how). Every third call stays valid."""
    calls = valid_calls(op)
    call = dict(calls[rng.randrange(len(calls))])
    parameters = inspect.signature(OP_SPECS[op].op).parameters
    for name, parameter in parameters.items():  # options at their default can be spoilt as well
        if parameter.default is not inspect.Parameter.empty:
            call.setdefault(name, parameter.default)
    spoilt: list[tuple[str, str]] = []
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        name = rng.choice([name for name in call if all(name != done for done, _ in spoilt)] or [""])
        if not name:
            break
        allow_huge = name not in FREE_SIZES and not any("huge" in how for _, how in spoilt)
        value, how = _spoil(call[name], rng, call, allow_huge)
        if how == "missing":
            del call[name]
        else:
            call[name] = value
        spoilt.append((name, how))
    return call, spoilt


def _spoil(value: Any, rng: random.Random, call: dict[str, Any], allow_huge: bool) -> tuple[Any, str]:
    if isinstance(value, Tensor):
        return _spoil_tensor(value, rng, call, allow_huge)
    if isinstance(value, list):
        return _spoil_list(value, rng, call, allow_huge)
    if isinstance(value, str):
        return rng.choice(NOT_STRINGS), "not a choice"
    if isinstance(value, bool):
        return rng.choice([not value, *(v for v in NOT_NUMBERS if not isinstance(v, bool))]), "other"
    if isinstance(value, int):
        return rng.choice(
            [-5, 0, 2**40, -(2**63), 2**63, 10**30, 10**400, 1.5, float("nan"), *NOT_NUMBERS]
        ), "other"
    if isinstance(value, float):
        numbers = [float("nan"), float("inf"), -float("inf"), -1.0, 1.0, 0.5, 1e-300, 2, 1e300]
        return rng.choice([*numbers, *NOT_NUMBERS]), "other"
    tensors = [v for v in call.values() if isinstance(v, Tensor)]  # None: an optional argument
    return rng.choice([*tensors[:1], *NOT_TENSORS]), "other"


def _spoil_tensor(t: Tensor, rng: random.Random, call: dict[str, Any], allow_huge: bool) -> tuple[Any, str]:
    dims = t.dim()
    axis = rng.randrange(dims) if dims else 0
    options: list[str] = ["dtype", "not a tensor", "unsqueeze", "meta", "sparse", "missing", "nan", "alias"]
    options += ["strided", "offset", "non-leaf", "negated"]
    if dims:
        options += ["select", "shorter", "empty", "longer", "transposed", "expanded", "flat"]
        options += ["huge"] if allow_huge else []
    how = rng.choice(options)
    if how == "dtype":
        names = ["int64", "int32", "bool", "complex64", "float64", "float16", "bfloat16", "uint8"]
        return t.detach().to(getattr(torch, rng.choice(names))), how
    if how == "not a tensor":
        return rng.choice(NOT_TENSORS), how
    if how == "alias":
        return rng.choice([t, *(v for v in call.values() if isinstance(v, Tensor) and v.numel() < HUGE)]), how
    if how in ("missing", "meta"):
        return (None if how == "missing" else t.detach().to("meta")), how
    if how == "sparse":
        return t.detach().to_sparse(), how
    if how == "nan":
        return (torch.full_like(t, float("nan")) if t.is_floating_point() else t), how
    if how == "unsqueeze":
        return t.unsqueeze(rng.randrange(dims + 1)), how
    if how == "strided":
        return torch.stack([t, t], -1)[..., 0], how
    if how == "offset":
        return torch.cat([t.detach().reshape(-1)[:1], t.detach().reshape(-1)])[
            -t.numel() or t.numel() :
        ].view_as(t), how
    if how == "non-leaf":
        return (t.detach().clone().requires_grad_() * 1 if t.is_floating_point() else t), how
    if how == "negated":
        return (torch._neg_view(t.detach()) if t.is_floating_point() else t), how
    if how == "select":
        return (t.select(axis, 0) if t.shape[axis] else t), how
    if how == "shorter":
        return t.narrow(axis, 0, max(0, t.shape[axis] - 1)), how
    if how == "empty":
        return t.narrow(axis, 0, 0), how
    if how == "longer":
        return torch.cat([t, t], axis), how
    if how == "transposed":
        return t.transpose(0, axis), how
    if how == "expanded":
        return (t.narrow(axis, 0, 1).expand_as(t) if t.shape[axis] else t), how
    if how == "flat":
        return t.reshape(-1), how
    shape = list(t.shape)
    shape[axis] = HUGE
    return t.new_zeros(()).expand(shape), how


def _spoil_list(
    value: list[Any], rng: random.Random, call: dict[str, Any], allow_huge: bool
) -> tuple[Any, str]:
    if not value:
        return rng.choice(NOT_TENSORS), "not a list"
    how = rng.choice(["emptied", "shortened", "lengthened", "item", "tuple", "doubled", "not a list"])
    if how == "emptied":
        return [], how
    if how == "shortened":
        return value[:-1], how
    if how == "lengthened":
        return [*value, value[0]], how
    if how == "tuple":
        return tuple(value), how
    if how == "doubled":
        return [value], how
    if how == "not a list":
        return rng.choice([None, 5, "abc", {}, object(), value[0]]), how
    place = rng.randrange(len(value))
    spoilt, how = _spoil(
        value[place], rng, call, allow_huge
    )  # an item may be a list, a tensor, a number or None
    return [*value[:place], spoilt, *value[place + 1 :]], f"item {how}"


def run_call(op: str, call: dict[str, Any], spoilt: list[tuple[str, str]]) -> bool:
    """Whether the call was accepted. Raises AssertionError where a refusal names too little or is of another type."""
    try:
        out = OP_SPECS[op].op(**call)
        outputs = [o for o in out if o is not None] if isinstance(out, (tuple, list)) else [out]
        assert all(isinstance(o, Tensor) for o in outputs)
        used = [o for o in outputs if o.requires_grad and o.device.type == "cpu" and o.numel() < 10**6]
        if used:
            torch.autograd.backward(used, [torch.ones_like(o) for o in used])
    except REFUSALS as error:
        text = str(error)
        assert spoilt, f"a valid call of {op} raised {type(error).__name__}: {text}"
        assert op in text, f"{spoilt}: the message does not name {op}: {text}"
        names = inspect.signature(OP_SPECS[op].op).parameters
        assert any(re.search(rf"\b{name}\b", text) for name in names), f"{spoilt}: no argument named: {text}"
        local = ("not a tensor", "missing", "sparse", "not a choice", "not a list", "emptied")
        default = len(spoilt) == 1 and call.get(spoilt[0][0], ...) is None and _takes_none(op, spoilt[0][0])
        if len(spoilt) == 1 and spoilt[0][1] in local and not default:
            assert re.search(rf"\b{spoilt[0][0]}\b", text), f"{spoilt}: another argument is named: {text}"
        return False
    except Exception as error:
        raise AssertionError(
            f"{op}, {spoilt}: {type(error).__name__} instead of a refusal: {error}"
        ) from error
    finally:
        for leaf in tree_leaves(list(call.values())):
            if isinstance(leaf, Tensor) and leaf.is_leaf:
                leaf.grad = None
    return True


def _takes_none(op: str, name: str) -> bool:
    return "None" in str(inspect.signature(OP_SPECS[op].op).parameters[name].annotation)


def main(op: str, first_seed: int, count: int) -> None:
    torch.set_num_threads(1)
    accepted = 0
    for seed in range(first_seed, first_seed + count):
        if seed % 100 == 0:
            print(f"{op}: seeds from {seed}", file=sys.stderr, flush=True)
        call, spoilt = draw_call(op, random.Random(seed))
        try:
            accepted += run_call(op, call, spoilt)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    print(json.dumps({"calls": count, "accepted": accepted}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
