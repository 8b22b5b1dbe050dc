"""Maximum over segments of rows: the max-pool of packed (unpadded) sequences."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from xferkit.models.layout import TokenLayout

__all__ = ["running_max", "segment_max", "text_max"]


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


def running_max(steps: Iterable[Tensor], winners: bool = True) -> tuple[Tensor, Tensor | None]:
    """Maximum over steps whose rows grow fewer: row r of every step belongs to the same segment.

    Args:
        steps: ``float[size, dim]`` each, sizes falling, at least one step; each is looked at once, in order.
        winners: whether to find the steps of the maxima as well.

    Returns:
        The maxima ``float[n, dim]``, and for each the first step that has it, as a floating-point number, or None.
    """
    steps = iter(steps)
    highest = next(steps).clone()
    if not winners:
        for rows in steps:
            so_far = highest[: len(rows)]
            torch.maximum(so_far, rows, out=so_far)
        return highest, None
    # Numbers as floats: a comparison written to booleans is five times slower than one written to floats.
    dtype = highest.dtype if highest.dtype == torch.float64 else torch.float32
    winner = torch.zeros(highest.shape, dtype=dtype, device=highest.device)
    buffer = torch.empty_like(winner)
    for number, rows in enumerate(steps, 1):
        so_far, found, improved = highest[: len(rows)], winner[: len(rows)], buffer[: len(rows)]
        # Later steps have larger numbers, so that the latest improvement is the largest of them.
        torch.gt(rows, so_far, out=improved).mul_(number)
        torch.maximum(found, improved, out=found)
        torch.maximum(so_far, rows, out=so_far)
    return highest, winner


class _TextMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layout: TokenLayout, differentiable: bool) -> Tensor:
        steps = x.index_select(0, layout.forward_order).split(layout.step_sizes)
        highest, winner = running_max(steps, differentiable)
        ctx.layout, ctx.num_tokens = layout, x.shape[0]  # type: ignore[attr-defined]
        ctx.save_for_backward(*(() if winner is None else (winner,)))
        return torch.empty_like(highest).index_copy_(0, layout.by_length, highest)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (winner,) = ctx.saved_tensors  # type: ignore[attr-defined]
        layout: TokenLayout = ctx.layout  # type: ignore[attr-defined]
        rows = layout.by_length
        token = layout.starts[rows].unsqueeze(1) + winner.long()
        gradient = grad.new_zeros(ctx.num_tokens, grad.shape[1])  # type: ignore[attr-defined]
        return gradient.scatter_(0, token, grad.index_select(0, rows)), None, None


def text_max(x: Tensor, layout: TokenLayout) -> Tensor:
    """Maximum over each text's tokens, by column; differentiable once.

    Of several tokens that share a maximum the first has the gradient, where :func:`segment_max` shares it out.

    Args:
        x: ``float[num_tokens, dim]``, packed.
        layout: which token belongs to which text; every text has one at least.

    Returns:
        ``float[n, dim]``.
    """
    if not len(layout):
        return x.new_zeros(0, x.shape[1])
    pooled: Tensor = _TextMax.apply(x, layout, torch.is_grad_enabled() and x.requires_grad)
    return pooled
