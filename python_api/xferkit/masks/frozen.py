"""A module whose parameters stay as they are, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["frozen"]


@contextmanager
def frozen(module: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Inside, no parameter requires grad and every part is in evaluation (or, with `training`, in training) mode.

    Behind it, parameters require grad as before, parts have their mode back, and buffers (such as the running
    statistics of BatchNorm) their values, whatever happens in the block.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()] if training else []
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        module.train(training)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
