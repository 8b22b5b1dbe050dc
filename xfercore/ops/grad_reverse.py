"""``grad_reverse``: the identity whose gradient comes back scaled by -lam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xfercore import reference
from xfercore.interop import accept_arrays
from xfercore.ops._autograd import under_functorch
from xfercore.ops._checks import check_number, check_tensor, describe, refuse_forward_ad

__all__ = ["grad_reverse"]

_OP = "grad_reverse"


@accept_arrays
def grad_reverse(x: Tensor, lam: float | Tensor = 1.0) -> Tensor:
    r"""The identity in the forward pass; in the backward pass the gradient times :math:`-\lambda`.

    .. math:: y = x, \qquad \frac{\partial L}{\partial x} = -\lambda \, \frac{\partial L}{\partial y}

    Placed before a discriminator, it lets one backward pass train the discriminator and train the encoder against it
    (Ganin et al., JMLR 2016, section 4.2, equation 10).

    The forward pass copies nothing: the result is a view of ``x``; where a gradient is recorded, changing either of
    them in place raises (elsewhere it changes both, as with any view). The backward pass
    is one scaled pass, and differentiable: two reversals in a second derivative multiply to :math:`\lambda^2`.
    ``lam = 0`` gives exactly 0 for finite gradients.

    Args:
        x: tensor of any shape, float32, bfloat16, float16 or (CPU) float64. Autocast leaves it alone.
        lam: a number, a 0-dim tensor, or one value a row, ``[x.shape[0]]``. As a tensor it may change from step to
            step without synchronising or recompiling (see :class:`xfercore.GradReverseSchedule`). It gets no gradient.
            A 0-dim tensor on the CPU for ``x`` on CUDA is read on the host, so a CUDA graph would freeze it.

    Returns:
        A view of ``x``, shape and dtype unchanged.

    Raises:
        ValueError: ``lam`` of another shape, of an integer dtype, or one that requires grad.

    Under ``torch.func`` transforms the composition ``d - lam * (x - d)`` with ``d = x.detach()`` takes its place,
    whose value is NaN where ``x`` is infinite.
    """
    check_lam(_OP, x, lam)
    if under_functorch():
        return reference.grad_reverse(x, lam)
    refuse_forward_ad(_OP, x)
    if isinstance(lam, Tensor):
        return _GradReverse.apply(x, lam, 1.0)
    return _GradReverse.apply(x, None, float(lam))


def check_lam(op: str, x: Tensor, lam: float | Tensor) -> None:
    """What both reversals ask of their coefficient."""
    check_tensor(op, "x", x)
    if not isinstance(lam, Tensor):
        check_number(op, "lam", lam)
        return
    if lam.is_nested or lam.layout is not torch.strided:
        raise ValueError(f"{op}(): lam must be a number or a dense tensor, got layout {lam.layout}")
    if lam.device != x.device and not (
        lam.dim() == 0 and lam.device.type == "cpu" and x.device.type == "cuda"
    ):
        raise ValueError(f"{op}(): lam must be a number or on the device of x ({x.device}), got {lam.device}")
    if lam.requires_grad:
        raise ValueError(f"{op}(): lam gets no gradient, but it requires grad; pass lam.detach()")
    if not lam.is_floating_point():
        raise ValueError(f"{op}(): lam must be floating point, got {describe(lam)}")
    if lam.dim() > 1 or (lam.dim() == 1 and (x.dim() == 0 or lam.shape[0] != x.shape[0])):
        rows = x.shape[0] if x.dim() else 1
        raise ValueError(
            f"{op}(): lam must be a number, a 0-dim tensor or of shape [num_rows] = [{rows}], got {list(lam.shape)}"
        )


class _GradReverse(torch.autograd.Function):
    """A view forward, ``xfercore::grad_reverse_backward`` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lam: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(lam)
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (lam,) = ctx.saved_tensors
        return torch.ops.xfercore.grad_reverse_backward(grad, lam, ctx.scale), None, None


@torch.library.register_fake("xfercore::grad_reverse_backward")
def _fake(grad: Tensor, lam: Tensor | None, scale: float) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, lam, ctx.scale = inputs
    ctx.save_for_backward(lam)


def _backward_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor, None, None]:
    (lam,) = ctx.saved_tensors  # linear in the gradient: its derivative is itself
    return torch.ops.xfercore.grad_reverse_backward(grad_grad, lam, ctx.scale), None, None


torch.library.register_autograd(
    "xfercore::grad_reverse_backward", _backward_backward, setup_context=_setup_backward
)
