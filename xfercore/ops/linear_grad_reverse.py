"""``linear_grad_reverse``: a linear layer whose input's gradient comes back reversed, at no extra cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xfercore import reference
from xfercore.interop import accept_arrays
from xfercore.ops._autograd import second_order_grads, under_functorch
from xfercore.ops._checks import check_like, check_rank, check_tensors, refuse_forward_ad
from xfercore.ops.grad_reverse import check_lam

__all__ = ["linear_grad_reverse"]

_OP = "linear_grad_reverse"


@accept_arrays
def linear_grad_reverse(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, lam: float | Tensor = 1.0
) -> Tensor:
    r"""``linear(grad_reverse(x, lam), weight, bias)``, the reversal folded into the backward GEMM.

    .. math:: y = x W^\top + b, \qquad
        \frac{\partial L}{\partial x} = -\lambda\, G W, \quad
        \frac{\partial L}{\partial W} = G^\top x, \quad
        \frac{\partial L}{\partial b} = \textstyle\sum_n G_n, \qquad G = \frac{\partial L}{\partial y}

    The first layer of a discriminator: it learns from the plain gradient, the encoder below from the reversed one
    (Ganin et al., JMLR 2016, equation 10). The factor rides in the GEMM's alpha or on its smallest operand.

    Args:
        x: ``[..., in_dim]``, float32, bfloat16, float16 or (CPU) float64. Autocast casts ``x``, ``weight`` and
            ``bias`` to its dtype, as it does for ``linear``.
        weight: ``[out_dim, in_dim]``.
        bias: ``[out_dim]`` or None.
        lam: as in :func:`xfercore.grad_reverse`: a number, a 0-dim tensor, or ``[x.shape[0]]``.

    Returns:
        ``[..., out_dim]`` in the dtype of ``x``.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named with its argument.
    """
    check_lam(_OP, x, lam)
    if isinstance(lam, Tensor) and lam.dim() == 1 and x.dim() < 2:
        raise ValueError(f"{_OP}(): lam must be a number or a 0-dim tensor for x of shape {list(x.shape)}")
    biases = {} if bias is None else {"bias": bias}
    check_tensors(_OP, x=x, weight=weight, **biases)
    if under_functorch():
        return reference.linear_grad_reverse(x, weight, bias, lam)
    refuse_forward_ad(_OP, x, weight, *biases.values())
    if isinstance(lam, Tensor):
        return torch.ops.xfercore.linear_grad_reverse(x, weight, bias, lam, 1.0)
    return torch.ops.xfercore.linear_grad_reverse(x, weight, bias, None, float(lam))


@torch.library.register_fake("xfercore::linear_grad_reverse")
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, lam: Tensor | None, scale: float) -> Tensor:
    torch._check_value(x.dim() >= 1, lambda: f"{_OP}(): x must have shape [..., in_dim], got []")
    check_rank(_OP, "weight", weight, 2, "[out_dim, in_dim]")
    check_like(_OP, "weight", weight, x, "x", weight.shape[0], x.shape[-1])
    if bias is not None:
        check_like(_OP, "bias", bias, x, "x", weight.shape[0])
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("xfercore::linear_grad_reverse_backward")
def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, lam: Tensor | None, scale: float, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    none = (0,)
    return (
        grad.new_empty(x.shape if wanted[0] else none),
        grad.new_empty(weight.shape if wanted[1] else none),
        grad.new_empty((weight.shape[0],) if wanted[2] else none),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, lam, ctx.scale = inputs
    ctx.save_for_backward(x, weight, lam)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, lam = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    grads = torch.ops.xfercore.linear_grad_reverse_backward(grad, x, weight, lam, ctx.scale, wanted)
    return (*(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, x, weight, lam, ctx.scale, ctx.wanted = inputs
    ctx.save_for_backward(grad, x, weight, lam)


def _backward_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, x, weight, lam = ctx.saved_tensors
    coefficient = ctx.scale if lam is None else lam

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (reference.linear_grad_reverse(x, weight, bias, coefficient),)

    arriving = [g if want else None for g, want in zip(grad_grads, ctx.wanted, strict=True)]
    bias = weight.new_zeros(weight.shape[0])
    (for_x, for_weight, _), (for_grad,) = second_order_grads(function, (x, weight, bias), (grad,), arriving)
    return for_grad, for_x, for_weight, None, None, None


torch.library.register_autograd("xfercore::linear_grad_reverse", _backward, setup_context=_setup)
torch.library.register_autograd(
    "xfercore::linear_grad_reverse_backward", _backward_backward, setup_context=_setup_backward
)
