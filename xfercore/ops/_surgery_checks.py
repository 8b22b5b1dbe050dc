"""Argument checks that the ops of gradient surgery share; every sentence names op, argument, expectation and value.

Shapes are compared here and not in fake kernels, because two public functions may share one torch op.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from xfercore.ops._autograd import under_functorch
from xfercore.ops._checks import check_integer_tensor, check_number, check_tensor, describe

__all__ = [
    "check_float64",
    "check_gram",
    "check_mask",
    "check_order",
    "check_share",
    "refuse_functorch",
    "refuse_grad",
]


def refuse_functorch(op: str) -> None:
    """Raises under ``torch.func`` transforms: there is no derivative to give, and no batching rule."""
    if under_functorch():
        raise RuntimeError(
            f"{op}(): not available under torch.func transforms (grad, vjp, jvp, vmap): it has no derivative"
        )


def refuse_grad(op: str, name: str, value: Tensor) -> None:
    """Raises where a derivative, backward or forward, would be lost without a word."""
    if value.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{op}(): {name} requires grad, and the op has no derivative; pass {name}.detach()"
        )
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if forward_ad.unpack_dual(value).tangent is not None:
        raise RuntimeError(
            f"{op}(): no forward-mode derivative (torch.autograd.forward_ad), and {name} is dual"
        )


def check_gram(op: str, gram: Any) -> None:
    """float64 ``[num_groups, num_tasks, num_tasks]`` of at least one task."""
    refuse_functorch(op)
    check_tensor(op, "gram", gram)
    refuse_grad(op, "gram", gram)
    if gram.dtype != torch.float64 or gram.dim() != 3 or gram.shape[1] != gram.shape[2]:
        raise ValueError(
            f"{op}(): gram must be float64 [num_groups, num_tasks, num_tasks], got {gram.dtype} {list(gram.shape)}"
        )
    if gram.shape[1] == 0:
        raise ValueError(f"{op}(): gram must have at least one task, got shape {list(gram.shape)}")


def check_float64(op: str, name: str, value: Any, gram: Tensor, shape: str) -> None:
    """None, or float64 of the shape told by the names in ``shape``, such as "[num_groups, num_tasks]"."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != torch.float64 or value.layout is not torch.strided:
        raise ValueError(f"{op}(): {name} must be a dense float64 tensor, got {describe(value)}")
    _check_place(op, name, value, gram, shape)
    refuse_grad(op, name, value)


def check_mask(op: str, name: str, value: Any, gram: Tensor) -> None:
    """None, or bool ``[num_tasks]``."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != torch.bool or value.layout is not torch.strided:
        raise ValueError(f"{op}(): {name} must be a dense bool tensor, got {describe(value)}")
    _check_place(op, name, value, gram, "[num_tasks]")


def _check_place(op: str, name: str, value: Tensor, gram: Tensor, shape: str) -> None:
    if value.device != gram.device:
        raise ValueError(f"{op}(): {name} must be on the device of gram ({gram.device}), got {value.device}")
    sizes = [gram.shape[0] if size == "num_groups" else gram.shape[1] for size in shape[1:-1].split(", ")]
    if list(value.shape) != sizes:
        raise ValueError(f"{op}(): {name} must have shape {shape} = {sizes}, got {list(value.shape)}")


def check_order(op: str, gram: Tensor, order: Any, seed_step: Any) -> None:
    """Exactly one of the two, of a shape that fits."""
    if (order is None) == (seed_step is None):
        given = "neither" if order is None else "both"
        raise ValueError(f"{op}(): exactly one of order and seed_step must be given, got {given}")
    if seed_step is not None:
        check_integer_tensor(op, "seed_step", seed_step, gram.device)
        if seed_step.dim() != 1 or seed_step.shape[0] != 2:
            raise ValueError(f"{op}(): seed_step must have shape [2], got {list(seed_step.shape)}")
        return
    check_integer_tensor(op, "order", order, gram.device)
    fits = 1 <= order.dim() <= 3 and order.shape[-1] == gram.shape[2]
    fits = fits and all(
        size == 1 or size == full
        for size, full in zip(reversed(order.shape[:-1]), (gram.shape[1], gram.shape[0]), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{op}(): order must be broadcastable to [num_groups, num_tasks, num_tasks] = {list(gram.shape)}, got "
            f"{list(order.shape)}"
        )


def check_share(op: str, name: str, value: Any, *, upper_open: bool = False) -> None:
    """A number in [0, 1], or in [0, 1)."""
    check_number(op, name, value)
    if not 0.0 <= value <= 1.0 or (upper_open and value == 1.0):
        raise ValueError(f"{op}(): {name} must be in [0, 1{')' if upper_open else ']'}, got {value}")
