"""CuPy and NumPy arrays in and out of the ops, through DLPack and without a copy."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
import torch.utils.dlpack
from torch import Tensor

__all__ = ["accept_arrays"]

P = ParamSpec("P")
R = TypeVar("R")


def _is_array(value: Any) -> bool:
    return not isinstance(value, Tensor) and hasattr(value, "__dlpack__")


def accept_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Lets ``function`` take arrays of another library (``cupy.ndarray``, ``numpy.ndarray``) wherever it takes tensors.

    Arrays become tensors over the same memory (DLPack); when any argument was such an array, tensor results become
    arrays of its library again. Arrays carry no gradient.
    """

    op = function.__name__
    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        library = _array_library([*args, *kwargs.values()])
        if library is None:
            return function(*args, **kwargs)
        new_args = [_to_tensor(op, name, value) for name, value in zip(names, args, strict=False)]
        new_args += args[len(names) :]  # too many: Python's own error says so
        new_kwargs = {name: _to_tensor(op, name, value) for name, value in kwargs.items()}
        with torch.no_grad():
            result = function(*new_args, **new_kwargs)
        return _from_tensor(result, importlib.import_module(library))

    return wrapper


def _array_library(values: Sequence[Any]) -> str | None:
    """The library of the first foreign array among the arguments, list arguments included."""
    for value in values:
        if isinstance(value, Tensor):  # first, because lists may hold thousands
            continue
        if isinstance(value, (list, tuple)):
            found = _array_library(value)
            if found:
                return found
        elif _is_array(value):
            return type(value).__module__.split(".")[0]
    return None


def _to_tensor(op: str, name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_tensor(op, f"{name}[{i}]", item) for i, item in enumerate(value)]
    if not _is_array(value):
        return value
    if any(stride < 0 for stride in getattr(value, "strides", None) or ()):  # torch would abort the process
        raise ValueError(f"{op}(): {name} has negative strides, which no tensor has; pass a copy of it")
    try:
        return torch.utils.dlpack.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{op}(): {name} cannot be taken as a tensor through DLPack: {error}") from error


def _from_tensor(value: Any, library: Any) -> Any:
    if isinstance(value, (tuple, list)):
        items = [_from_tensor(item, library) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return library.from_dlpack(value) if isinstance(value, Tensor) else value
