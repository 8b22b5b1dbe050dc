"""``linear_grad_reverse`` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from xfercore.reference.grad_reverse import grad_reverse

__all__ = ["linear_grad_reverse"]


def linear_grad_reverse(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, lam: float | Tensor = 1.0
) -> Tensor:
    """See :func:`xfercore.linear_grad_reverse`."""
    return linear(grad_reverse(x, lam), weight, bias)
