"""Checks that come before the dispatcher, which takes some wrong arguments for a request to infer shapes.

A tensor on ``meta`` among tensors on the CPU runs the op's fake kernel, whose results are uninitialised
memory; a non-tensor or a sparse one meets messages of torch's own that do not name the argument. Sizes and
dtypes that have to agree are checked by the bindings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

__all__ = [
    "check_choice",
    "check_integer_tensor",
    "check_like",
    "check_number",
    "check_rank",
    "check_tensor",
    "check_tensors",
    "describe",
    "refuse_forward_ad",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def describe(value: Any) -> str:
    """A value in an error message: a tensor by its dtype, anything else by its type."""
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else f"{type(value).__name__}"


def check_tensor(op: str, name: str, value: Any) -> None:
    """A dense tensor of one of the four dtypes."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{op}(): {name} must be a tensor, got {describe(value)}")
    if value.is_nested or value.layout is not torch.strided:
        kind = "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}"
        raise ValueError(f"{op}(): {name} must be a dense tensor, got {kind}")
    if value.dtype not in _DTYPES:
        raise ValueError(
            f"{op}(): {name} must be float32, bfloat16, float16 or (CPU) float64, got {describe(value)}"
        )


def check_tensors(op: str, **named: Any) -> None:
    """:func:`check_tensor` for each, all on the device of the first."""
    first = ""
    for name, value in named.items():
        check_tensor(op, name, value)
        first = first or name
        if value.device != named[first].device:
            raise ValueError(
                f"{op}(): {name} must be on the device of {first} ({named[first].device}), got {value.device}"
            )


def check_integer_tensor(op: str, name: str, value: Any, device: torch.device) -> None:
    """A dense int64 tensor on ``device``."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{op}(): {name} must be an int64 tensor or None, got {describe(value)}")
    if value.is_nested or value.layout is not torch.strided or value.dtype != torch.int64:
        raise ValueError(
            f"{op}(): {name} must be a dense int64 tensor, got {describe(value)} of {value.layout}"
        )
    if value.device != device:
        raise ValueError(f"{op}(): {name} must be on {device}, got {value.device}")


def check_like(op: str, name: str, value: Tensor, model: Tensor, model_name: str, *sizes: Any) -> None:
    """What the bindings check, for fake kernels: shape ``sizes`` and the dtype of ``model``.

    Without it ``torch.compile`` and ``meta`` would take what the real op refuses. Sizes may be symbols.
    """

    def shape() -> str:
        return f"{op}(): {name} must have shape {list(sizes)}, got {list(value.shape)}"

    torch._check_value(value.dim() == len(sizes), shape)
    for actual, expected in zip(value.shape, sizes, strict=True):
        torch._check_value(actual == expected, shape)
    torch._check_value(
        value.dtype == model.dtype,
        lambda: f"{op}(): {name} must have the dtype of {model_name} ({model.dtype}), got {value.dtype}",
    )


def check_rank(op: str, name: str, value: Tensor, rank: int, shape: str) -> None:
    """For fake kernels: the number of dimensions, with the documented ``shape``."""
    torch._check_value(
        value.dim() == rank, lambda: f"{op}(): {name} must have shape {shape}, got {list(value.shape)}"
    )


def check_choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """For fake kernels: one of the strings."""
    if value not in choices:
        raise ValueError(f"{op}(): {name} must be one of {', '.join(choices)}, got {value!r}")


def check_number(op: str, name: str, value: Any) -> None:
    """A Python number, and no bool."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        raise ValueError(f"{op}(): {name} must be a number, got {describe(value)}")
    if isinstance(value, int) and not -1e308 < value < 1e308:
        raise ValueError(f"{op}(): {name} must fit a float, got an integer of {value.bit_length()} bits")


def refuse_forward_ad(op: str, *tensors: Tensor) -> None:
    """Raises for dual tensors, whose tangent torch would drop silently: there is no forward-mode derivative."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            f"{op}(): no forward-mode derivative (torch.autograd.forward_ad); xfercore.reference.{op} has one"
        )
