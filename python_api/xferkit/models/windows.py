"""Convolutions over packed tokens: the windows of real tokens alone, as matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xferkit.models.layout import TokenLayout

__all__ = ["packed_convolutions"]


class _PackedConvolutions(torch.autograd.Function):
    """Windows of the widest convolution are laid out once; the narrower ones read the front of each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: TokenLayout, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        num_tokens, dim = x.shape
        widest = max(w.shape[2] for w in weights)
        with_zero = torch.cat([x, x.new_zeros(1, dim)])
        windows = x.new_empty(num_tokens, widest, dim)
        windows[:, 0] = x
        for offset in range(1, widest):
            windows[:, offset] = with_zero.index_select(0, layout.neighbours(offset))
        windows = windows.flatten(1)
        flat = [w.transpose(1, 2).flatten(1) for w in weights]
        ctx.layout, ctx.dim, ctx.widest = layout, dim, widest
        ctx.save_for_backward(windows, *flat)
        channels = [w.shape[0] for w in flat]
        features = x.new_empty(num_tokens, sum(channels))
        for out, w, bias in zip(features.split(channels, 1), flat, biases, strict=True):
            torch.addmm(bias, windows[:, : w.shape[1]], w.t(), out=out)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        windows, *flat = ctx.saved_tensors
        grads = grad.split([w.shape[0] for w in flat], 1)
        layout: TokenLayout = ctx.layout
        wanted, dim = ctx.needs_input_grad, ctx.dim
        d_x: Tensor | None = None
        if wanted[0]:
            widest_first = sorted(range(len(flat)), key=lambda k: -flat[k].shape[1])
            d_windows = grads[widest_first[0]] @ flat[widest_first[0]]
            for k in widest_first[1:]:
                d_windows[:, : flat[k].shape[1]].addmm_(grads[k], flat[k])
            pieces = d_windows.unflatten(1, (ctx.widest, dim))
            d_x = pieces[:, 0].clone()
            for offset in range(1, ctx.widest):
                piece = torch.cat([pieces[:, offset], d_x.new_zeros(1, dim)])
                d_x += piece.index_select(0, layout.neighbours(-offset))
        d_parameters: list[Tensor | None] = []
        for k, part in enumerate(grads):
            weight = bias = None
            if wanted[2 + 2 * k]:
                product = part.t() @ windows[:, : flat[k].shape[1]]
                weight = product.unflatten(1, (-1, dim)).transpose(1, 2)
            if wanted[3 + 2 * k]:
                bias = part.sum(0)
            d_parameters += [weight, bias]
        return (d_x, None, *d_parameters)


def packed_convolutions(
    x: Tensor, layout: TokenLayout, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """``nn.Conv1d`` at every window that starts on a real token; what hangs over a text's end is 0.

    Args:
        x: ``float[num_tokens, in_dim]``, packed.
        layout: which token belongs to which text.
        weights: ``[channels, in_dim, width]`` of each convolution.
        biases: ``[channels]`` of each.

    Returns:
        ``float[num_tokens, channels]``, packed, the convolutions' channels one after the other; differentiable
        once.
    """
    parameters = [p for pair in zip(weights, biases, strict=True) for p in pair]
    features: Tensor = _PackedConvolutions.apply(x, layout, *parameters)
    return features
