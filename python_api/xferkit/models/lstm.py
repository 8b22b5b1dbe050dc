"""One bidirectional LSTM layer over packed tokens, written for the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xferkit.models.layout import TokenLayout

__all__ = ["bilstm_layer"]


class _BiLSTMLayer(torch.autograd.Function):
    """Both directions walk their own order of the tokens, in which every step reads the same texts.

    So one set of element-wise calls serves both; what needs no recurrence (the products with the input, the
    factors of the derivatives, the gradients of the weights) is done for all tokens at once.
    Gates stand in PyTorch's order: input, forget, cell, output.
    """

    @staticmethod
    def forward(ctx: Any, layout: TokenLayout, *tensors: Tensor) -> Tensor:
        w_ih, w_hh, bias, parts = tensors[:2], tensors[2:4], tensors[4:6], tensors[6:]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        sizes, orders = layout.step_sizes, (layout.forward_order, layout.backward_order)
        num_tokens, units = x.shape[0], w_hh[0].shape[1]
        gates = x.new_empty(2, num_tokens, 4 * units)
        cells, squashed, hidden = (x.new_empty(2, num_tokens, units) for _ in range(3))
        read = [x.index_select(0, order) for order in orders]
        for direction in (0, 1):
            torch.addmm(bias[direction], read[direction], w_ih[direction].t(), out=gates[direction])
        recurrent = [w.t() for w in w_hh]
        per_direction = list(zip(*(g.split(sizes) for g in gates), strict=True))
        in_forget, cell_gate, out_gate = (
            gates[..., a * units : b * units].split(sizes, 1) for a, b in ((0, 2), (2, 3), (3, 4))
        )
        in_gate = gates[..., :units].split(sizes, 1)
        forget_gate = gates[..., units : 2 * units].split(sizes, 1)
        cell_steps, squashed_steps, hidden_steps = (t.split(sizes, 1) for t in (cells, squashed, hidden))
        for step, size in enumerate(sizes):
            if step:
                before = hidden_steps[step - 1][:, :size]
                for direction in (0, 1):
                    per_direction[step][direction].addmm_(before[direction], recurrent[direction])
            in_forget[step].sigmoid_()
            cell_gate[step].tanh_()
            out_gate[step].sigmoid_()
            cell = torch.mul(in_gate[step], cell_gate[step], out=cell_steps[step])
            if step:
                cell.addcmul_(forget_gate[step], cell_steps[step - 1][:, :size])
            torch.tanh(cell, out=squashed_steps[step])
            torch.mul(out_gate[step], squashed_steps[step], out=hidden_steps[step])
        ctx.layout, ctx.widths = layout, [part.shape[1] for part in parts]
        ctx.save_for_backward(*read, *w_ih, *w_hh, gates, cells, squashed, hidden)
        return torch.cat(
            [h.index_select(0, back) for h, back in zip(hidden, layout.inverse_orders, strict=True)], dim=1
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_f, x_b, w_ih_f, w_ih_b, w_hh_f, w_hh_b, gates, cells, squashed, hidden = ctx.saved_tensors
        layout: TokenLayout = ctx.layout
        sizes, units = layout.step_sizes, hidden.shape[2]
        i, f, g, o = gates.unflatten(2, (4, units)).unbind(2)
        before_cells, before_hidden = _one_step_before(cells, sizes), _one_step_before(hidden, sizes)
        # d gate = factor * d cell (input, forget, cell) or factor * d hidden (output): all factors at once.
        factors = torch.empty_like(gates)
        i_factor, f_factor, g_factor, o_factor = factors.unflatten(2, (4, units)).unbind(2)
        torch.ops.aten.sigmoid_backward.grad_input(g, i, grad_input=i_factor)
        torch.ops.aten.sigmoid_backward.grad_input(before_cells, f, grad_input=f_factor)
        torch.ops.aten.tanh_backward.grad_input(i, g, grad_input=g_factor)
        torch.ops.aten.sigmoid_backward.grad_input(squashed, o, grad_input=o_factor)
        through = torch.ops.aten.tanh_backward(o, squashed)
        orders = (layout.forward_order, layout.backward_order)
        d_hidden = torch.stack(
            [grad[:, d * units : (d + 1) * units].index_select(0, orders[d]) for d in (0, 1)]
        )
        hidden_steps, through_steps, forget_steps = (t.split(sizes, 1) for t in (d_hidden, through, f))
        cell_factors = factors[..., : 3 * units].unflatten(2, (3, units)).split(sizes, 1)
        out_factors = o_factor.split(sizes, 1)
        gate_steps = factors.split(sizes, 1)
        d_cell: Tensor | None = None
        for step in range(len(sizes) - 1, -1, -1):
            d_h = hidden_steps[step]
            if d_cell is not None:
                later, d_gates = d_h[:, : sizes[step + 1]], gate_steps[step + 1]
                for direction, weight in enumerate((w_hh_f, w_hh_b)):
                    later[direction].addmm_(d_gates[direction], weight)
            d_c = d_h * through_steps[step]
            if d_cell is not None:
                d_c[:, : sizes[step + 1]] += d_cell
            cell_factors[step].mul_(d_c.unsqueeze(2))
            out_factors[step].mul_(d_h)
            d_cell = d_c * forget_steps[step]
        wanted = ctx.needs_input_grad[1:]
        read, w_ih, back = (x_f, x_b), (w_ih_f, w_ih_b), layout.inverse_orders
        d_parts: list[Tensor | None] = []
        columns = zip(w_ih[0].split(ctx.widths, 1), w_ih[1].split(ctx.widths, 1), strict=True)
        for wants, weights in zip(wanted[6:], columns, strict=True):
            d_read = [(factors[d] @ weights[d]).index_select(0, back[d]) for d in (0, 1)] if wants else None
            d_parts.append(d_read[0].add_(d_read[1]) if d_read is not None else None)
        d_w_ih = [factors[d].t() @ read[d] if wanted[d] else None for d in (0, 1)]
        d_w_hh = [factors[d].t() @ before_hidden[d] if wanted[2 + d] else None for d in (0, 1)]
        d_bias = factors.sum(1).unbind(0)
        return (None, *d_w_ih, *d_w_hh, *d_bias, *d_parts)


def _one_step_before(states: Tensor, sizes: Sequence[int]) -> Tensor:
    """The state each step started from: that of the step before, 0 at the first."""
    if not sizes:
        return states
    first = states.new_zeros(2, sizes[0], states.shape[2])
    steps = states.split(list(sizes), 1)
    return torch.cat([first, *(s[:, :n] for s, n in zip(steps, sizes[1:], strict=False))], dim=1)


def bilstm_layer(
    parts: Sequence[Tensor],
    layout: TokenLayout,
    w_ih: tuple[Tensor, Tensor],
    w_hh: tuple[Tensor, Tensor],
    bias: tuple[Tensor, Tensor],
) -> Tensor:
    """A bidirectional LSTM layer from zero states, the function of ``torch.nn.LSTM``; differentiable once.

    Args:
        parts: ``float[num_tokens, dim]`` each, packed tokens whose vectors are ``torch.cat(parts, dim=1)``; a part
            that needs no gradient (fixed word vectors) costs none.
        layout: which token belongs to which text.
        w_ih: ``[4 units, in_dim]`` of either direction.
        w_hh: ``[4 units, units]``.
        bias: ``[4 units]``, the sum of PyTorch's two.

    Returns:
        ``float[num_tokens, 2 units]``, packed; the forward direction first.
    """
    features: Tensor = _BiLSTMLayer.apply(layout, *w_ih, *w_hh, *bias, *parts)
    return features
