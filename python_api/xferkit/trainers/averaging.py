"""Copies of a module's weights: kept aside, put in place, averaged over steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from xferkit.trainers.replicas import local_tensor

__all__ = ["EMA", "copy_weights", "put_weights"]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


@torch.no_grad()
def copy_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers by name (of this process's part, where they are cut)."""
    return {name: value.detach().clone() for name, value in _tensors(module).items()}


@torch.no_grad()
def put_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write copies back into the module."""
    for name, value in _tensors(module).items():
        local_tensor(value).copy_(local_tensor(weights[name]))


class EMA:
    """``average <- decay * average + (1 - decay) * parameters`` after each step, buffers as they are.

    Args:
        module: whose parameters are averaged.
        decay: in (0, 1). The average starts at the first parameters and is not corrected for that.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.average = copy_weights(module)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after a step."""
        trained = {name for name, p in self.module.named_parameters() if p.requires_grad}
        for name, value in _tensors(self.module).items():
            average, current = local_tensor(self.average[name]), local_tensor(value)
            if name in trained and current.is_floating_point():
                average.lerp_(current, 1.0 - self.decay)
            else:
                average.copy_(current)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module holds the average inside."""
        current = copy_weights(self.module)
        put_weights(self.module, self.average)
        try:
            yield
        finally:
            put_weights(self.module, current)
