"""Convolutions as sums of looked-up rows, with their max-pool, over many short texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, pad

from xferkit.models.segments import running_max

__all__ = ["pooled_windows"]


class _PooledWindows(torch.autograd.Function):
    """Windows are computed step by step, longest text first, as the running maximum reads them.

    Only a window that won a maximum has a gradient, a fraction of all: the winners are kept, not the windows.
    A window is named by its last place: of width w, step t holds places t - w + 1 to t.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: Tensor, keep: bool, *tables: Tensor) -> Tensor:
        widest = max(table.shape[0] for table in tables)
        lengths, order = torch.sort(lengths, descending=True, stable=True)
        rows = rows.index_select(0, order)[:, : int(lengths[0])]
        padding = torch.arange(rows.shape[1], device=rows.device) >= lengths.unsqueeze(1)
        # Windows that hang over the ends read zeros there: row -1, one after the table's last.
        around = pad(rows.masked_fill(padding, -1), (widest - 1, widest - 1), value=-1)
        steps = torch.arange(rows.shape[1] + widest - 1, device=rows.device).unsqueeze(1)
        ctx.shapes, ctx.sizes, saved, pooled = [t.shape for t in tables], [], [], []
        for table in tables:
            width, num_rows, channels = table.shape
            taps = torch.arange(width, device=rows.device)
            alive = steps < lengths + (width - 1)
            sizes = [size for size in alive.sum(1).tolist() if size]
            step, rank = alive.nonzero(as_tuple=True)
            first = (rank * around.shape[1] + step).add_(widest - width).unsqueeze(1)
            places = around.flatten().index_select(0, (first + taps).flatten()).view(-1, width)
            index = torch.where(places >= 0, places + taps * num_rows, width * num_rows)
            flat = torch.cat([table.flatten(0, 1), table.new_zeros(1, channels)])
            # A step at a time: all windows of a batch's words would be larger than the cache.
            features = (embedding_bag(part, flat, mode="sum") for part in index.split(sizes))
            highest, winner = running_max(features, keep)
            pooled.append(highest)
            if winner is not None:
                ctx.sizes.append(sizes)
                saved += [index, winner]
        ctx.save_for_backward(order, *saved)
        together = torch.cat(pooled, dim=1)
        return torch.empty_like(together).index_copy_(0, order, together)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        order, *saved = ctx.saved_tensors
        grad = grad.index_select(0, order)
        rank = torch.arange(len(order), device=grad.device).unsqueeze(1)
        gradients: list[Tensor | None] = [None, None, None]
        parts = grad.split([shape[2] for shape in ctx.shapes], 1)
        for part, shape, sizes, index, winner in zip(
            parts, ctx.shapes, ctx.sizes, saved[::2], saved[1::2], strict=True
        ):
            width, num_rows, channels = shape
            first = torch.tensor([0, *sizes[:-1]], device=grad.device).cumsum(0)
            window = first.index_select(0, winner.long().flatten()).view_as(winner).add_(rank).flatten()
            column = torch.arange(channels, device=grad.device)
            flat, values = grad.new_zeros((width * num_rows + 1) * channels), part.flatten()
            for tap in range(width):
                row = index[:, tap].index_select(0, window).view_as(winner)
                flat.scatter_add_(0, row.mul_(channels).add_(column).flatten(), values)
            gradients.append(flat[:-channels].view(shape))
        return tuple(gradients)


def pooled_windows(tables: Sequence[Tensor], rows: Tensor, lengths: Tensor) -> Tensor:
    """``max_t sum_j table[j, rows[t + j]]`` over all windows that hold a token, for each table.

    Windows hang over both ends, where they read zeros. Of several that share a maximum the first has the
    gradient. Differentiable once.

    Args:
        tables: ``float[width, num_rows, channels]`` each, of any widths.
        rows: ``int64[n, length]`` in ``[0, num_rows)`` on real tokens.
        lengths: ``int64[n]``, each at least 1.

    Returns:
        ``float[n, sum of channels]``, a table after the other.
    """
    if not len(rows):
        return tables[0].new_zeros(0, sum(table.shape[2] for table in tables))
    keep = torch.is_grad_enabled() and any(table.requires_grad for table in tables)
    pooled: Tensor = _PooledWindows.apply(rows, lengths, keep, *tables)
    return pooled
