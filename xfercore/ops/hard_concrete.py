"""``hard_concrete``: L0 masks whose noise is never stored, and ``hard_concrete_eval``, their gates without noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from xfercore import reference
from xfercore.interop import accept_arrays
from xfercore.ops._autograd import refuse_functorch, second_order_grads
from xfercore.ops._checks import (
    check_choice,
    check_integer_tensor,
    check_number,
    check_tensor,
    check_tensors,
    describe,
    refuse_forward_ad,
)
from xfercore.reference.philox import draw_seed_offset

__all__ = ["hard_concrete", "hard_concrete_eval"]

_OP, _EVAL = "hard_concrete", "hard_concrete_eval"


@accept_arrays
def hard_concrete(
    log_alpha: Tensor,
    theta: Tensor | None = None,
    *,
    beta: float = 2 / 3,
    gamma: float = -0.1,
    zeta: float = 1.1,
    seed_offset: Tensor | torch.Generator | None = None,
    group_dims: tuple[int, ...] | None = None,
    count: str = "elements",
) -> tuple[Tensor, Tensor]:
    r"""Random gates in [0, 1] that are exactly 0 or 1 with positive probability, times ``theta``, and their L0 penalty.

    .. math::
        s = \sigma\big((\log u - \log(1 - u) + \log\alpha) / \beta\big), \qquad
        z = \min(1, \max(0, s (\zeta - \gamma) + \gamma)), \qquad
        \text{penalty} = \sum_i n_i\, \sigma(\log\alpha_i - \beta \log(-\gamma / \zeta))

    with u uniform in (0, 1) and n the number of elements that a gate stands for: the penalty is the expected number of
    parameters that are kept, :math:`\sum_i n_i P(z_i > 0)`. Hard-Concrete distribution of Louizos, Welling and
    Kingma, "Learning Sparse Neural Networks through L0 Regularization" (ICLR 2018), equations 10 to 12.

    The noise comes from a counter (Philox4x32-10, counter i // 4, 23 bits): it depends on the pair (seed, offset) and
    on the gate's number alone, is drawn again in the backward pass and never stored; gates have the same bits on every
    device and for any number of threads. One pass reads log alpha and theta and writes the product.

    Args:
        log_alpha: logits of the gates, float32, bfloat16, float16 or (CPU) float64; computed in float32 or float64.
            Without theta any shape. With theta its shape, less the dimensions in ``group_dims`` (or with size 1 there).
        theta: the parameters to mask, same device; float64 where log_alpha is. None: the gates themselves come back.
        beta: temperature, above 0.
        gamma: lower end of the stretched interval, below 0.
        zeta: upper end, above 1.
        seed_offset: int64 ``[2]`` on the device of log_alpha: Philox seed and offset; equal pairs give equal masks, so
            several tensors of one group share a gate by sharing log_alpha and the pair. A ``torch.Generator`` or None
            (torch's own, which activation checkpointing replays) draws a pair.
        group_dims: dimensions of theta over which one gate is shared, as ``(1, 2)`` for heads of
            ``[num_heads, head_dim, dim]``. None: each element has its own gate.
        count: ``"elements"``: a gate counts in the penalty as often as it has elements of theta; ``"groups"``: once.

    Returns:
        ``theta * z`` in the shape and dtype of theta (without theta: z, as log_alpha), and the penalty, a scalar in
        float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype, device or option that does not fit, named with its argument.
        RuntimeError: under ``torch.func`` transforms.

    Differentiable twice by log_alpha and theta, and the penalty by log_alpha, in eager mode. Where a gate is 0 or 1 its
    own derivative is 0. Autocast changes nothing: masks and penalties never run below float32.
    """
    refuse_functorch(_OP)
    outer, inner, order = _layout(_OP, log_alpha, theta, group_dims)
    for name, value in (("beta", beta), ("gamma", gamma), ("zeta", zeta)):
        check_number(_OP, name, value)
    if not 0 < beta < math.inf:
        raise ValueError(f"{_OP}(): beta must be positive, got {beta}")
    _check_interval(_OP, gamma, zeta)
    check_choice(_OP, "count", count, ("elements", "groups"))
    if isinstance(seed_offset, Tensor):
        check_integer_tensor(_OP, "seed_offset", seed_offset, log_alpha.device)
        if seed_offset.shape != (2,):
            raise ValueError(f"{_OP}(): seed_offset must have shape [2], got {list(seed_offset.shape)}")
    elif seed_offset is None or isinstance(seed_offset, torch.Generator):
        seed_offset = draw_seed_offset(log_alpha.device, seed_offset)
    else:
        raise ValueError(
            f"{_OP}(): seed_offset must be an int64 tensor [2], a torch.Generator or None, got {describe(seed_offset)}"
        )
    options = (float(beta), float(gamma), float(zeta), outer, inner, count == "elements")
    out, penalty = _gates(log_alpha, theta, seed_offset, order, options)
    return out, penalty


@accept_arrays
def hard_concrete_eval(
    log_alpha: Tensor,
    theta: Tensor | None = None,
    *,
    gamma: float = -0.1,
    zeta: float = 1.1,
    group_dims: tuple[int, ...] | None = None,
) -> Tensor:
    r"""The gates of evaluation, without noise, times ``theta``.

    .. math:: z = \min(1, \max(0, \sigma(\log\alpha) (\zeta - \gamma) + \gamma))

    Louizos et al. (ICLR 2018), equation 13: log alpha is not divided by beta here.

    Args:
        log_alpha: as in :func:`hard_concrete`.
        theta: as in :func:`hard_concrete`.
        gamma: lower end of the stretched interval, below 0.
        zeta: upper end, above 1.
        group_dims: as in :func:`hard_concrete`.

    Returns:
        ``theta * z`` in the shape and dtype of theta; without theta z, as log_alpha.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit, named with its argument.
        RuntimeError: under ``torch.func`` transforms.

    Differentiable twice in eager mode; computed in float32 or float64.
    """
    refuse_functorch(_EVAL)
    outer, inner, order = _layout(_EVAL, log_alpha, theta, group_dims)
    for name, value in (("gamma", gamma), ("zeta", zeta)):
        check_number(_EVAL, name, value)
    _check_interval(_EVAL, gamma, zeta)
    return _gates(log_alpha, theta, None, order, (1.0, float(gamma), float(zeta), outer, inner, False))[0]


def _check_interval(op: str, gamma: float, zeta: float) -> None:
    if not -math.inf < gamma < 0:
        raise ValueError(f"{op}(): gamma must be negative, got {gamma}")
    if not 1 < zeta < math.inf:
        raise ValueError(f"{op}(): zeta must be above 1, got {zeta}")


def _layout(
    op: str, log_alpha: Tensor, theta: Tensor | None, group_dims: tuple[int, ...] | None
) -> tuple[int, int, list[int] | None]:
    """Checks shapes; theta is [outer, gates, inner] in memory, where need be after a permutation ``order``."""
    if theta is None:
        check_tensor(op, "log_alpha", log_alpha)
        refuse_forward_ad(op, log_alpha)
        if group_dims is not None:
            raise ValueError(f"{op}(): group_dims must be None without theta, got {group_dims!r}")
        return 1, 1, None
    check_tensors(op, log_alpha=log_alpha, theta=theta)
    refuse_forward_ad(op, log_alpha, theta)
    if (log_alpha.dtype == torch.float64) != (theta.dtype == torch.float64):
        raise ValueError(
            f"{op}(): log_alpha must be float64 where theta is, and only there, got {log_alpha.dtype} "
            f"with {theta.dtype}"
        )
    grouped = _grouped(op, theta.dim(), group_dims)
    kept = [dim for dim in range(theta.dim()) if dim not in grouped]
    shape = [theta.shape[dim] for dim in kept]
    padded = [1 if dim in grouped else size for dim, size in enumerate(theta.shape)]
    if list(log_alpha.shape) not in (shape, padded):
        raise ValueError(
            f"{op}(): log_alpha must have shape {shape}, that of theta without group_dims {tuple(grouped)}, "
            f"got {list(log_alpha.shape)}"
        )
    outer = inner = 1
    if not grouped:
        return outer, inner, None
    first, last = (kept[0], kept[-1]) if kept else (0, -1)
    order = None if kept == list(range(first, last + 1)) else kept + grouped
    for dim in grouped:
        if order is None and dim < first:
            outer *= theta.shape[dim]
        else:
            inner *= theta.shape[dim]
    return outer, inner, order


def _grouped(op: str, rank: int, group_dims: tuple[int, ...] | None) -> list[int]:
    if group_dims is None:
        return []
    if not isinstance(group_dims, (tuple, list)) or any(
        isinstance(dim, bool) or not isinstance(dim, int) or not -rank <= dim < rank for dim in group_dims
    ):
        raise ValueError(
            f"{op}(): group_dims must be dimensions of theta, integers between {-rank} and {rank - 1}, "
            f"got {group_dims!r}"
        )
    found = sorted({dim % rank for dim in group_dims})
    if len(found) < len(group_dims):
        raise ValueError(f"{op}(): group_dims must name each dimension of theta once, got {group_dims!r}")
    return found


def _gates(
    log_alpha: Tensor,
    theta: Tensor | None,
    seed_offset: Tensor | None,
    order: list[int] | None,
    options: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:
    given = log_alpha.dtype
    if given in (torch.bfloat16, torch.float16):
        log_alpha = log_alpha.float()
    if order is not None and theta is not None:
        theta = theta.permute(order)
    inputs = (log_alpha, theta, seed_offset, *options)
    recording = torch.is_grad_enabled() and (
        log_alpha.requires_grad or (theta is not None and theta.requires_grad)
    )
    if recording and not torch.compiler.is_compiling():
        out, penalty = _Eager.apply(*inputs)
    else:
        out, penalty = torch.ops.xfercore.hard_concrete(*inputs)
    if order is not None:
        out = out.permute([order.index(dim) for dim in range(len(order))])
    return (out.to(given) if theta is None else out), penalty


@torch.library.register_fake("xfercore::hard_concrete")
def _fake(
    log_alpha: Tensor, theta: Tensor | None, seed_offset: Tensor | None, beta: float, gamma: float, zeta: float,
    outer: int, inner: int, per_element: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    model = log_alpha if theta is None else theta
    if theta is not None:
        torch._check_value(
            theta.numel() == outer * log_alpha.numel() * inner,
            lambda: f"{_OP}(): theta must have outer * num_gates * inner elements, got {list(theta.shape)}",
        )
    return torch.empty_like(model, memory_format=torch.contiguous_format), log_alpha.new_empty(())


@torch.library.register_fake("xfercore::hard_concrete_backward")
def _fake_backward(
    grad_out: Tensor | None, grad_penalty: Tensor | None, log_alpha: Tensor, theta: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    need_log_alpha, need_theta = rest[-2:]
    model = log_alpha if theta is None else theta
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(log_alpha, memory_format=contiguous) if need_log_alpha else log_alpha.new_empty(0),
        torch.empty_like(model, memory_format=contiguous)
        if need_theta and theta is not None
        else model.new_empty(0),
    )


@torch.library.register_fake("xfercore::hard_concrete_curves")
def _fake_curves(
    log_alpha: Tensor, seed_offset: Tensor | None, beta: float, gamma: float, zeta: float
) -> Tensor:
    return log_alpha.new_empty((6, *log_alpha.shape))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad_out: Tensor | None, grad_penalty: Tensor | None) -> tuple[Any, ...]:
    needs = tuple(ctx.needs_input_grad[:2])
    inputs = (grad_out, grad_penalty, *ctx.saved_tensors, *ctx.options, *needs)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        grads = torch.ops.xfercore.hard_concrete_backward(*inputs)
    else:  # nothing to record: past the registration, which costs more than a small mask
        with torch._C._AutoDispatchBelowAutograd():
            grads = torch.ops.xfercore.hard_concrete_backward(*inputs)
    found = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return *found, *[None] * (1 + len(ctx.options))


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.options, ctx.needs = inputs[5:11], inputs[11:]


def _backward_backward(ctx: Any, into_alpha: Tensor | None, into_theta: Tensor | None) -> tuple[Any, ...]:
    grad_out, grad_penalty, log_alpha, theta, seed_offset = ctx.saved_tensors
    arriving = [
        grad if need else None for grad, need in zip((into_alpha, into_theta), ctx.needs, strict=True)
    ]
    second = _by_reference if torch.is_grad_enabled() else _by_curves
    found = second((grad_out, grad_penalty), (log_alpha, theta), seed_offset, ctx.options, arriving)
    return *found, *[None] * 9


def _by_curves(
    grads: tuple[Tensor | None, Tensor | None],
    inputs: tuple[Tensor, Tensor | None],
    seed_offset: Tensor | None,
    options: tuple[Any, ...],
    arriving: list[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients for grad_out, grad_penalty, log_alpha and theta from z, z', z'' and the penalty's q', q''.

    The first derivatives are g z and sum(g theta) z' + gp n q', with the sum over a gate's group of n elements.
    """
    (grad_out, grad_penalty), (log_alpha, theta) = grads, inputs
    (into_alpha, into_theta), (beta, gamma, zeta, outer, inner, per_element) = arriving, options
    curves = torch.ops.xfercore.hard_concrete_curves(log_alpha, seed_offset, beta, gamma, zeta)
    compute, size = log_alpha.dtype, (outer * inner if per_element else 1)

    def grouped(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(compute).reshape(outer, log_alpha.numel(), inner)

    def gates(t: Tensor) -> Tensor:
        return t.reshape(1, -1, 1)

    z, slope, bend, _, keep_slope, keep_bend = (gates(row) for row in curves)
    g, t, v_theta = grouped(grad_out), grouped(theta), grouped(into_theta)
    v_alpha = None if into_alpha is None else gates(into_alpha.to(compute))
    for_out: Any = None
    for_penalty: Any = None
    for_alpha: Any = torch.zeros_like(z)
    for_theta: Any = None
    if v_theta is not None:
        for_out = v_theta * z
        if g is not None:
            for_alpha = for_alpha + (v_theta * g).sum((0, 2), keepdim=True) * slope
    if v_alpha is not None:
        through = v_alpha * slope if t is None else v_alpha * slope * t
        for_out = through if for_out is None else for_out + through
        for_penalty = (v_alpha * keep_slope).sum() * size
        if g is not None:
            pulled = g if t is None else (g * t).sum((0, 2), keepdim=True)
            for_alpha = for_alpha + v_alpha * pulled * bend
            for_theta = None if t is None else v_alpha * slope * g
        if grad_penalty is not None:
            for_alpha = for_alpha + v_alpha * grad_penalty * size * keep_bend
    return (
        None if for_out is None or grad_out is None else for_out.reshape(grad_out.shape).to(grad_out.dtype),
        None if grad_penalty is None else for_penalty,
        for_alpha.reshape(log_alpha.shape),
        None if for_theta is None or theta is None else for_theta.reshape(theta.shape).to(theta.dtype),
    )


def _by_reference(
    grads: tuple[Tensor | None, Tensor | None],
    inputs: tuple[Tensor, Tensor | None],
    seed_offset: Tensor | None,
    options: tuple[Any, ...],
    arriving: list[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The same with a graph through the reference, for derivatives above the second."""
    beta, gamma, zeta, outer, inner, per_element = options

    def function(log_alpha: Tensor, theta: Tensor | None) -> tuple[Tensor, ...]:
        shape = log_alpha.shape if theta is None else theta.shape
        t = None if theta is None else theta.reshape(outer, log_alpha.numel(), inner)
        shared: dict[str, Any] = {"gamma": gamma, "zeta": zeta, "group_dims": None if t is None else (0, 2)}
        if seed_offset is None:
            out = reference.hard_concrete_eval(log_alpha.flatten(), t, **shared)
            return out.reshape(shape), log_alpha.new_zeros(())
        shared |= {
            "beta": beta,
            "seed_offset": seed_offset,
            "count": "elements" if per_element else "groups",
        }
        out, penalty = reference.hard_concrete(log_alpha.flatten(), t, **shared)
        return out.reshape(shape), penalty

    for_inputs, for_grads = second_order_grads(function, inputs, grads, arriving)
    return *for_grads, *for_inputs


class _Eager(torch.autograd.Function):
    """The derivative registered below, without the tens of µs that its registration costs every call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.xfercore.hard_concrete(*inputs)
        _setup(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return _backward(ctx, *grads)


torch.library.register_autograd("xfercore::hard_concrete", _backward, setup_context=_setup)
torch.library.register_autograd(
    "xfercore::hard_concrete_backward", _backward_backward, setup_context=_setup_backward
)
