"""Other tensors in the place of a module's parameters, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn

__all__ = ["checkpointing_module", "swapped_parameters"]


@contextmanager
def swapped_parameters(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put `tensors` in the place of the parameters of those names, and of all others tied to them.

    The parameters themselves are back behind the block, whatever happens in it.
    """
    wanted = {id(module.get_parameter(name)): tensor for name, tensor in tensors.items()}
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    for owner in module.modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is not None and id(parameter) in wanted:
                places.append((owner, leaf, parameter))
    try:
        for owner, leaf, parameter in places:
            owner._parameters[leaf] = cast(nn.Parameter, wanted[id(parameter)])
        yield
    finally:
        for owner, leaf, parameter in places:
            owner._parameters[leaf] = parameter


def checkpointing_module(module: nn.Module) -> str | None:
    """A part that says of itself, as those of Hugging Face do, that it recomputes its forward pass in training."""
    for name, part in module.named_modules():
        if part.training and getattr(part, "gradient_checkpointing", False) is True:
            return repr(name) if name else f"the {type(part).__name__}"
    return None
