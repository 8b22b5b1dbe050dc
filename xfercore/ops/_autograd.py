"""What the ops' derivatives share: refusal under torch.func, and exact second derivatives through the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["refuse_functorch", "second_order_grads", "under_functorch"]


def under_functorch() -> bool:
    """Whether a ``torch.func`` transform (grad, vjp, jvp, vmap, ...) is being traced or run."""
    return bool(torch._C._are_functorch_transforms_active())


def refuse_functorch(op: str) -> None:
    """Raises under ``torch.func`` transforms, where a custom op would give a wrong or zero gradient."""
    if under_functorch():
        raise RuntimeError(
            f"{op}(): not available under torch.func transforms (grad, vjp, jvp, vmap); use torch.autograd, or "
            f"xfercore.reference.{op}, which supports them"
        )


def second_order_grads(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Any],
    grad_outputs: Sequence[Tensor | None],
    grad_grads: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of a backward pass, by differentiating ``function``'s reference twice.

    The backward pass maps ``(inputs, grad_outputs)`` to one gradient per floating input. Given ``grad_grads``, the
    gradients arriving at those, returns the gradients for ``inputs`` and for ``grad_outputs``. Where a graph is
    being recorded (``create_graph=True``) they carry one through the reference, so higher orders are exact too.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(_device_type(inputs), enabled=False):
        leaves = [_variable(value, create_graph) for value in inputs]
        differentiable = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        outputs = function(*leaves)
        given = [(out, grad) for out, grad in zip(outputs, grad_outputs, strict=True) if grad is not None]
        pairs = [(out, _variable(grad, create_graph)) for out, grad in given]
        pairs = [(out, grad) for out, grad in pairs if out.requires_grad]
        first = torch.autograd.grad(
            [out for out, _ in pairs],
            differentiable,
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
        arriving = [
            grad_grads[i] for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        used = [(g, v) for g, v in zip(first, arriving, strict=True) if g is not None and v is not None]
        used = [(g, v) for g, v in used if g.requires_grad]
        wanted = [*differentiable, *(grad for _, grad in pairs)]
        second: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if used:
            second = torch.autograd.grad(
                [g for g, _ in used],
                wanted,
                [v for _, v in used],
                create_graph=create_graph,
                allow_unused=True,
            )
    by_leaf = {id(leaf): grad for leaf, grad in zip(wanted, second, strict=True)}
    grad_leaves = {id(out): grad for out, grad in pairs}
    for_inputs = [by_leaf.get(id(leaf)) if isinstance(leaf, Tensor) else None for leaf in leaves]
    for_outputs = [
        by_leaf.get(id(grad_leaves[id(out)])) if id(out) in grad_leaves else None for out in outputs
    ]
    return for_inputs, for_outputs


def _variable(value: Any, keep_graph: bool) -> Any:
    """An alias of its own to differentiate by: the same tensor may stand for two inputs."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.view_as(value) if keep_graph and value.requires_grad else value.detach().requires_grad_()


def _device_type(values: Sequence[Any]) -> str:
    return next(value.device.type for value in values if isinstance(value, Tensor))
