"""``moe_mlp_mix``: a dense mixture of two-layer experts whose hidden states are never written out whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xfercore import reference
from xfercore.interop import accept_arrays
from xfercore.ops._autograd import refuse_functorch, second_order_grads
from xfercore.ops._checks import (
    check_choice,
    check_integer_tensor,
    check_like,
    check_number,
    check_rank,
    check_tensors,
    describe,
    refuse_forward_ad,
)

__all__ = ["moe_mlp_mix"]

_OP = "moe_mlp_mix"
_ACT1 = ("none", "relu", "tanh")
_ACT2 = (*_ACT1, "softmax", "log_softmax")
_RECOMPUTE = ("auto", "always", "never")


@accept_arrays
def moe_mlp_mix(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    act1: str = "relu",
    act2: str = "tanh",
    mix: str = "sum",
    dropout_p: float = 0.0,
    seed_offset: Tensor | None = None,
    detach_gate_input: bool = False,
    recompute: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Every expert for every token, mixed by a softmax gate, in one op.

    .. math::
        \ell = x W_g^\top + b_g, \quad \alpha = \mathrm{softmax}(\ell), \quad
        u_k = act_1(W_{1k}\, \tilde x_k + b_{1k}), \quad y_k = act_2(W_{2k}\, \tilde u_k + b_{2k})

    .. math::
        out = \sum_k \alpha_k y_k \quad (mix = \text{"sum"}) \qquad
        out = \log \sum_k \alpha_k e^{y_k} \quad (mix = \text{"logsumexp"})

    where the tilde is inverted dropout with a mask of its own for every (token, expert, layer, unit). This is the
    private mixture of MAN-MoE (``act2="tanh"``), and with ``act2="log_softmax", mix="logsumexp"`` its predictor, the
    log of mixed probabilities (Chen et al., ACL 2019, section 3.2, equations 3 and 4).

    Args:
        x: ``[..., in_dim]``, float32, bfloat16, float16 or (CPU) float64. Autocast casts every floating input to its
            dtype, as it does for ``linear``; the gate's softmax, the mix and all sums stay in float32.
        gate_weight: ``[num_experts, in_dim]``; gate_bias: ``[num_experts]``.
        w1: ``[num_experts, hidden_dim, in_dim]``; b1: ``[num_experts, hidden_dim]``.
        w2: ``[num_experts, out_dim, hidden_dim]``; b2: ``[num_experts, out_dim]``.
        act1: ``"relu"``, ``"tanh"`` or ``"none"``.
        act2: ``"tanh"``, ``"relu"``, ``"none"``, ``"softmax"`` or ``"log_softmax"`` (over ``out_dim``).
        mix: ``"sum"`` or ``"logsumexp"`` (then ``act2`` is ``"log_softmax"`` or ``"none"``).
        dropout_p: probability of dropping a unit, in [0, 1).
        seed_offset: int64 ``[2]`` on the device of ``x``: Philox seed and offset. The same pair gives the same masks on
            every device and thread count. None draws a pair from torch's generator where ``dropout_p > 0``.
        detach_gate_input: the gate's logits send no gradient into ``x`` (as in the authors' code of MAN-MoE).
        recompute: ``"never"`` keeps the hidden states for the backward pass, ``"always"`` computes them again,
            ``"auto"`` keeps them on the CPU, where arithmetic is the scarce thing, and recomputes on CUDA, where
            memory is.

    Returns:
        ``out [..., out_dim]`` and ``gate_logits [..., num_experts]``, both in the dtype of ``x``.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit, named with its argument.
        RuntimeError: under ``torch.func`` transforms.

    Differentiable twice in eager mode. On CUDA, dimensions too large for shared memory are composed from torch's ops.
    """
    refuse_functorch(_OP)
    if recompute not in _RECOMPUTE:
        raise ValueError(f"{_OP}(): recompute must be one of {', '.join(_RECOMPUTE)}, got {recompute!r}")
    check_tensors(_OP, x=x, gate_weight=gate_weight, gate_bias=gate_bias, w1=w1, b1=b1, w2=w2, b2=b2)
    refuse_forward_ad(_OP, x, gate_weight, gate_bias, w1, b1, w2, b2)
    for name, value in (("act1", act1), ("act2", act2), ("mix", mix)):
        if not isinstance(value, str):
            raise ValueError(f"{_OP}(): {name} must be a string, got {describe(value)}")
    if not isinstance(detach_gate_input, bool):
        raise ValueError(
            f"{_OP}(): detach_gate_input must be True or False, got {describe(detach_gate_input)}"
        )
    check_number(_OP, "dropout_p", dropout_p)
    if seed_offset is not None:
        check_integer_tensor(_OP, "seed_offset", seed_offset, x.device)
    if x.dim() == 0:
        raise ValueError(f"{_OP}(): x must have shape [..., in_dim], got a 0-dim tensor")
    if dropout_p > 0.0 and seed_offset is None:
        seed_offset = torch.randint(2**62, (2,), dtype=torch.int64, device=x.device)
    weights = (gate_weight, gate_bias, w1, b1, w2, b2)
    if x.is_cuda and w1.dim() == 3 and w2.dim() == 3:
        device = x.device.index or 0
        if not _fused_fits(device, x.dtype, w1.shape[0], w1.shape[2], w1.shape[1], w2.shape[1]):
            return reference.moe_mlp_mix(
                x,
                *weights,
                act1=act1,
                act2=act2,
                mix=mix,
                dropout_p=dropout_p,
                seed_offset=seed_offset,
                detach_gate_input=detach_gate_input,
            )
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
    keep = differentiable and (recompute == "never" or (recompute == "auto" and not x.is_cuda))
    tokens = x if x.dim() == 2 else x.flatten(0, -2) if x.dim() > 2 else x.unsqueeze(0)
    out, gate_logits, *_ = torch.ops.xfercore.moe_mlp_mix(
        tokens, *weights, seed_offset, dropout_p, act1, act2, mix, detach_gate_input, keep
    )
    if x.dim() == 2:
        return out, gate_logits
    return out.reshape(*x.shape[:-1], out.shape[-1]), gate_logits.reshape(
        *x.shape[:-1], gate_logits.shape[-1]
    )


def _fused_fits(
    device_index: int, dtype: torch.dtype, num_experts: int, in_dim: int, hidden_dim: int, out_dim: int
) -> bool:
    """Whether the CUDA kernels take this shape; asked while tracing, not in the graph."""
    from xfercore import _C

    name = str(dtype).removeprefix("torch.")
    return name == "float64" or _C.moe_mlp_mix_supported(
        device_index, name, num_experts, in_dim, hidden_dim, out_dim
    )


# What torch.compiler.assume_constant_result does; the decorator itself would import all of torch._dynamo with xfercore.
_fused_fits._dynamo_marked_constant = True  # type: ignore[attr-defined]


@torch.library.register_fake("xfercore::moe_mlp_mix")
def _fake(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    seed_offset: Tensor | None,
    dropout_p: float,
    act1: str,
    act2: str,
    mix: str,
    detach_gate_input: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_rank(_OP, "x", x, 2, "[num_tokens, in_dim]")
    check_rank(_OP, "w1", w1, 3, "[num_experts, hidden_dim, in_dim]")
    check_rank(_OP, "w2", w2, 3, "[num_experts, out_dim, hidden_dim]")
    (tokens, in_dim), (experts, hidden_dim, _), out_dim = x.shape, w1.shape, w2.shape[1]
    check_like(_OP, "w1", w1, x, "x", experts, hidden_dim, in_dim)
    check_like(_OP, "w2", w2, x, "x", experts, out_dim, hidden_dim)
    check_like(_OP, "gate_weight", gate_weight, x, "x", experts, in_dim)
    check_like(_OP, "gate_bias", gate_bias, x, "x", experts)
    check_like(_OP, "b1", b1, x, "x", experts, hidden_dim)
    check_like(_OP, "b2", b2, x, "x", experts, out_dim)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{_OP}(): dropout_p must be in [0, 1), got {dropout_p}")
    if dropout_p > 0.0 and seed_offset is not None:
        check_like(_OP, "seed_offset", seed_offset, seed_offset, "seed_offset", 2)
    check_choice(_OP, "act1", act1, _ACT1)
    check_choice(_OP, "act2", act2, _ACT2)
    check_choice(_OP, "mix", mix, ("sum", "logsumexp"))
    if mix == "logsumexp" and act2 not in ("log_softmax", "none"):
        raise ValueError(f"{_OP}(): mix='logsumexp' needs act2 to be log_softmax or none, got {act2!r}")
    return (
        x.new_empty((tokens, out_dim)),
        x.new_empty((tokens, experts)),
        x.new_empty((tokens, experts, hidden_dim) if keep else (0,)),
        x.new_empty((tokens, experts, out_dim) if keep else (0,)),
        x.new_empty((tokens, out_dim) if x.is_cuda and mix == "logsumexp" else (0,), dtype=torch.float32),
    )


@torch.library.register_fake("xfercore::moe_mlp_mix_backward")
def _fake_backward(
    grad_out: Tensor, grad_gate_logits: Tensor | None, x: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    inputs, wanted = (x, *rest[:6]), rest[-1]
    return tuple(x.new_empty(t.shape if want else (0,)) for t, want in zip(inputs, wanted, strict=True))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # zeros for the kept states would be as large as the states
    tensors, seed_offset, ctx.options = inputs[:7], inputs[7], inputs[8:13]
    _, gate_logits, hidden, expert_out, lse = output
    ctx.save_for_backward(*tensors, lse, gate_logits, hidden, expert_out, seed_offset)
    ctx.mark_non_differentiable(hidden, expert_out, lse)


def _backward(ctx: Any, grad_out: Tensor | None, grad_gate_logits: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *saved, seed_offset = ctx.saved_tensors
    dropout_p, act1, act2, mix, detach_gate_input = ctx.options
    if grad_out is None:
        x, w2 = saved[0], saved[5]
        grad_out = x.new_zeros((x.shape[0], w2.shape[1]))
    wanted = list(ctx.needs_input_grad[:7])
    grads = torch.ops.xfercore.moe_mlp_mix_backward(
        grad_out, grad_gate_logits, *saved, seed_offset, dropout_p, act1, act2, mix, detach_gate_input, wanted
    )
    return (*(g if want else None for g, want in zip(grads, wanted, strict=True)), *[None] * 7)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    grad_out, grad_gate_logits, *rest = inputs
    ctx.options, ctx.wanted = rest[12:17], rest[17]
    ctx.save_for_backward(grad_out, grad_gate_logits, *rest[:7], rest[11])


def _backward_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Any, ...]:
    grad_out, grad_gate_logits, *tensors, seed_offset = ctx.saved_tensors
    dropout_p, act1, act2, mix, detach_gate_input = ctx.options

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return reference.moe_mlp_mix(
            *tensors,
            act1=act1,
            act2=act2,
            mix=mix,
            dropout_p=dropout_p,
            seed_offset=seed_offset,
            detach_gate_input=detach_gate_input,
        )

    arriving = [g if want else None for g, want in zip(grad_grads, ctx.wanted, strict=True)]
    for_inputs, for_grads = second_order_grads(function, tensors, (grad_out, grad_gate_logits), arriving)
    return (*for_grads, *for_inputs, *[None] * 11)


torch.library.register_autograd("xfercore::moe_mlp_mix", _backward, setup_context=_setup)
torch.library.register_autograd(
    "xfercore::moe_mlp_mix_backward", _backward_backward, setup_context=_setup_backward
)
