"""Maximum over segments of rows: the max-pool of packed (unpadded) sequences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["segment_max"]


class _SegmentMax(torch.autograd.Function):
    # torch.segment_reduce is fast, but where several rows share a maximum its derivative (torch 2.13) splits
    # positive gradients among them and gives negative ones to each in full.

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, lengths: Tensor) -> Tensor:
        highest: Tensor = torch.segment_reduce(rows, "max", lengths=lengths, axis=0)
        ctx.save_for_backward(rows, highest, lengths)
        return highest

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        rows, highest, lengths = ctx.saved_tensors  # type: ignore[attr-defined]
        segment = torch.repeat_interleave(lengths, output_size=rows.shape[0])
        is_highest = (rows == highest.index_select(0, segment)).to(rows.dtype)
        ties = torch.segment_reduce(is_highest, "sum", lengths=lengths, axis=0)
        return is_highest.mul_((grad / ties).index_select(0, segment)), None


def segment_max(rows: Tensor, lengths: Tensor) -> Tensor:
    """Maximum over consecutive rows, by segment and column; differentiable once.

    Rows that tie share the gradient evenly, as in :func:`torch.amax`.

    Args:
        rows: ``float[num_rows, dim]``.
        lengths: ``int64[num_segments]``, rows of each segment, each at least 1, together ``num_rows``.

    Returns:
        ``float[num_segments, dim]``.
    """
    pooled: Tensor = _SegmentMax.apply(rows, lengths)
    return pooled
