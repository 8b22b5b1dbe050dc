"""Functions that torch.compile is to call, not to look into."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

__all__ = ["eager"]

F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """Under ``torch.compile`` the function runs as it stands: for loops over lengths that every batch has anew.

    ``torch.compiler.disable`` does the same but imports the compiler, two seconds, when the function is defined.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return cast(F, call)
