"""Schedules of op coefficients whose position survives a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["GradReverseSchedule"]


class GradReverseSchedule(nn.Module):
    r"""Coefficient of :func:`xfercore.grad_reverse` that grows from ``lo`` to ``hi``.

    .. math:: \lambda(p) = lo + (hi - lo) \left(\frac{2}{1 + e^{-\alpha p}} - 1\right), \quad p = step / max\_iters

    the schedule of DANN (Ganin et al., JMLR 2016, section 5.2.2: ``lo=0, hi=1, alpha=10``). The step is an int64
    buffer: it is saved with ``state_dict``, moves with the module, and the coefficient is a 0-dim float32 tensor on
    the same device, so a schedule neither synchronises nor recompiles.

    Args:
        lo: coefficient at step 0.
        hi: coefficient approached as the step grows; ``p`` stops at 1.
        alpha: steepness, > 0.
        max_iters: number of steps after which ``p = 1``, > 0.

    Example:
        >>> schedule = GradReverseSchedule(max_iters=100)
        >>> float(schedule())
        0.0
        >>> schedule.step()
        >>> float(schedule()) > 0
        True
    """

    step_count: Tensor

    def __init__(self, lo: float = 0.0, hi: float = 1.0, alpha: float = 10.0, max_iters: int = 1000) -> None:
        """Starts at step 0."""
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"GradReverseSchedule(): alpha must be > 0, got {alpha}")
        if not max_iters > 0:
            raise ValueError(f"GradReverseSchedule(): max_iters must be > 0, got {max_iters}")
        self.lo, self.hi, self.alpha, self.max_iters = float(lo), float(hi), float(alpha), int(max_iters)
        self.register_buffer("step_count", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor:
        """The coefficient at the current step, float32, 0-dim."""
        progress = (self.step_count / self.max_iters).clamp(max=1.0)
        return self.lo + (self.hi - self.lo) * (2.0 / (1.0 + torch.exp(-self.alpha * progress)) - 1.0)

    def step(self) -> None:
        """Advances by one, in place: safe inside a CUDA graph."""
        self.step_count += 1

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"lo={self.lo}, hi={self.hi}, alpha={self.alpha}, max_iters={self.max_iters}"
