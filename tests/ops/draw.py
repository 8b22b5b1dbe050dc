"""Random arguments for the tables of op specifications."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[..., Tensor]


def drawer(device: torch.device, dtype: torch.dtype, requires_grad: bool, seed: int = 0) -> Draw:
    """Normal tensors, the same numbers (rounded to bfloat16) for every dtype and device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0, grad: bool = True) -> Tensor:
        values = (torch.randn(shape, generator=generator) * scale).bfloat16()
        return values.to(device, dtype).requires_grad_(requires_grad and grad)

    return draw


def groups_of(offsets: list[int] | None) -> int:
    return 1 if offsets is None else len(offsets) - 1


def group_weights(device: torch.device, offsets: list[int] | None, tasks: int) -> Tensor:
    return drawer(device, torch.float64, False, seed=1)(groups_of(offsets), tasks)


def gram_of(device: torch.device, groups: int, tasks: int, seed: int = 0) -> Tensor:
    """Gram matrices of random gradients, float64 ``[groups, tasks, tasks]``."""
    g = drawer(device, torch.float64, False, seed)(groups, tasks, 3 * tasks + 2)
    return g @ g.mT


_SEED_STEP = (2**61 + 12345, 2**33 + 7)


def seed_step_of(device: torch.device) -> Tensor:
    return torch.tensor(_SEED_STEP, device=device)
