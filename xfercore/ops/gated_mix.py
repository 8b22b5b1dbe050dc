"""``gated_mix``: the convex mixture of expert outputs and the gate's loss, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xfercore import reference
from xfercore.interop import accept_arrays
from xfercore.ops._autograd import refuse_functorch, second_order_grads
from xfercore.ops._checks import (
    check_integer_tensor,
    check_like,
    check_rank,
    check_tensors,
    describe,
    refuse_forward_ad,
)

__all__ = ["gated_mix"]

_OP = "gated_mix"


@accept_arrays
def gated_mix(
    logits: Tensor,
    experts: Tensor | Sequence[Tensor],
    *,
    targets: Tensor | None = None,
    ignore_index: int = -1,
) -> tuple[Tensor, Tensor]:
    r"""Mixes expert outputs with softmax weights; the gate's negative log-likelihood comes from the same pass.

    .. math:: \alpha_n = \mathrm{softmax}(\ell_n), \qquad
        m_n = \sum_k \alpha_{nk}\, e_{nk}, \qquad
        g_n = -\log \alpha_{n, t_n}

    The gate of MAN-MoE (Chen et al., ACL 2019, equations 3 to 5) and of TARS (Park et al., ACL 2019, equation 4).

    Args:
        logits: ``[num_tokens, num_experts]``, float32, bfloat16, float16 or (CPU) float64.
        experts: ``[num_tokens, num_experts, dim]``, or a list of ``num_experts`` tensors ``[num_tokens, dim]``, which
            are read where they lie (above 64 they are stacked first). Same dtype as ``logits``.
        targets: int64 ``[num_tokens]``, the right expert of each token, or None.
        ignore_index: the target that does not count.

    Returns:
        ``mixed [num_tokens, dim]`` in the dtype of the inputs, and ``gate_nll [num_tokens]`` in float32 (float64 for
        float64), in nats, 0 where the target is ignored or ``targets`` is None. No reduction: take the mean you need.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named with its argument; on the CPU a target out of
            range. On CUDA such a target gives NaN and sets a flag (see :func:`xfercore.device_status`).
        RuntimeError: under ``torch.func`` transforms.

    Softmax and sums run in float32 for half types. Autocast casts both inputs to the wider of their dtypes.
    Differentiable twice in eager mode.
    """
    refuse_functorch(_OP)
    if not isinstance(experts, (Tensor, list, tuple)):
        raise ValueError(f"{_OP}(): experts must be a tensor or a list of tensors, got {describe(experts)}")
    expert_list = [experts] if isinstance(experts, Tensor) else list(experts)
    if isinstance(experts, Tensor) and experts.dim() != 3:
        raise ValueError(
            f"{_OP}(): experts must have shape [num_tokens, num_experts, dim] or be a list, got {list(experts.shape)}"
        )
    if not expert_list:
        raise ValueError(
            f"{_OP}(): experts must be a tensor or a list of num_experts tensors, got an empty list"
        )
    check_tensors(_OP, logits=logits, **{f"experts[{k}]": expert for k, expert in enumerate(expert_list)})
    refuse_forward_ad(_OP, logits, *expert_list)
    if targets is not None:
        check_integer_tensor(_OP, "targets", targets, logits.device)
    if not isinstance(ignore_index, (int, torch.SymInt)) or not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"{_OP}(): ignore_index must be an integer of 64 bits, got {ignore_index!r}")
    return torch.ops.xfercore.gated_mix(logits, expert_list, targets, ignore_index)


def _compute_dtype(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


@torch.library.register_fake("xfercore::gated_mix")
def _fake(
    logits: Tensor, experts: list[Tensor], targets: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    check_rank(_OP, "logits", logits, 2, "[num_tokens, num_experts]")
    num_tokens, num_experts = logits.shape
    torch._check_value(num_experts > 0, lambda: f"{_OP}(): logits must have at least one expert, got none")
    dim = experts[0].shape[-1] if experts[0].dim() else 0
    if len(experts) == 1 and experts[0].dim() == 3:
        check_like(_OP, "experts", experts[0], logits, "logits", num_tokens, num_experts, dim)
    else:
        torch._check_value(
            num_experts == len(experts),
            lambda: f"{_OP}(): experts must be a list of {num_experts} tensors, got {len(experts)}",
        )
        for expert in experts:
            check_like(_OP, "experts[k]", expert, logits, "logits", num_tokens, dim)
    if targets is not None:
        check_like(_OP, "targets", targets, targets, "targets", num_tokens)
    mixed = logits.new_empty((num_tokens, dim))
    return mixed, logits.new_empty((logits.shape[0],), dtype=_compute_dtype(logits))


@torch.library.register_fake("xfercore::gated_mix_backward")
def _fake_backward(
    grad_mixed: Tensor,
    grad_nll: Tensor | None,
    logits: Tensor,
    experts: list[Tensor],
    targets: Tensor | None,
    ignore_index: int,
    need_grad_experts: bool,
) -> tuple[Tensor, list[Tensor]]:
    grad_experts: list[Tensor] = []
    if need_grad_experts:
        grad_experts = [logits.new_empty(expert.shape) for expert in experts]
    return logits.new_empty(logits.shape), grad_experts


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    logits, experts, targets, ctx.ignore_index = inputs
    ctx.num_experts = len(experts)
    ctx.save_for_backward(logits, targets, *experts)


def _backward(ctx: Any, grad_mixed: Tensor | None, grad_nll: Tensor | None) -> tuple[Any, ...]:
    logits, targets, *experts = ctx.saved_tensors
    if grad_mixed is None:
        grad_mixed = logits.new_zeros((logits.shape[0], experts[0].shape[-1]))
    need_experts = any(ctx.needs_input_grad[1])
    grad_logits, grad_experts = torch.ops.xfercore.gated_mix_backward(
        grad_mixed, grad_nll, logits, experts, targets, ctx.ignore_index, need_experts
    )
    return grad_logits, grad_experts if need_experts else [None] * ctx.num_experts, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.set_materialize_grads(False)
    grad_mixed, grad_nll, logits, experts, targets, ctx.ignore_index, ctx.need_experts = inputs
    ctx.num_experts = len(experts)
    ctx.save_for_backward(grad_mixed, grad_nll, logits, targets, *experts)


def _backward_backward(
    ctx: Any, grad_grad_logits: Tensor | None, grad_grad_experts: list[Tensor | None] | None
) -> tuple[Any, ...]:
    grad_mixed, grad_nll, logits, targets, *experts = ctx.saved_tensors

    def function(logits: Tensor, *experts: Tensor) -> tuple[Tensor, Tensor]:
        stacked = experts[0] if experts[0].dim() == 3 else list(experts)
        return reference.gated_mix(logits, stacked, targets=targets, ignore_index=ctx.ignore_index)

    arriving = [grad_grad_logits, *(grad_grad_experts or [None] * ctx.num_experts)]
    for_inputs, for_grads = second_order_grads(function, (logits, *experts), (grad_mixed, grad_nll), arriving)
    return for_grads[0], for_grads[1], for_inputs[0], for_inputs[1:], None, None, None


torch.library.register_autograd("xfercore::gated_mix", _backward, setup_context=_setup)
torch.library.register_autograd(
    "xfercore::gated_mix_backward", _backward_backward, setup_context=_setup_backward
)
