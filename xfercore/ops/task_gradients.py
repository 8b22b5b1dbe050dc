"""The two passes of gradient surgery over the tasks' gradients: their Gram matrices, and their combination."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from xfercore.interop import accept_arrays
from xfercore.ops._checks import check_integer_tensor, check_like, check_tensor, describe
from xfercore.ops._surgery_checks import refuse_functorch, refuse_grad

__all__ = ["combine_gradients", "task_gram"]

TaskGrads = Tensor | Sequence[Sequence[Tensor | None]]


@accept_arrays
def task_gram(grads: TaskGrads, offsets: Tensor | Sequence[int] | None = None) -> Tensor:
    r"""Gram matrices of the tasks' gradients, one for each group of parameters, in one pass.

    .. math:: G_{kij} = \sum_{c \in \text{group } k} g_{ic}\, g_{jc}

    Every cosine, projection and norm of gradient surgery follows from it, and it is additive over shards of the
    parameters: the sum of the shards' Gram matrices (one ``all_reduce`` of K·T·T numbers) is that of the whole.

    Args:
        grads: ``[num_tasks, numel]``, each row one task's gradients joined (the last dimension contiguous); or a list,
            for each task, of ``num_params`` gradients of any shape, read where they lie; None counts as zeros.
            float32, bfloat16, float16 or (CPU) float64.
        offsets: int64 ``[num_groups + 1]``, ascending: group k holds the columns (list form: the parameters)
            ``offsets[k]`` to ``offsets[k + 1]``. On the device of ``grads`` it is read there, without waiting; for
            the list form it is a list, or on the CPU. None: one group of everything.

    Returns:
        float64 ``[num_groups, num_tasks, num_tasks]``. Products and sums are in float64: the cosine of gradients
        that all but cancel keeps its digits, whatever their scale.

    Raises:
        ValueError: a shape, dtype, device or offset that does not fit, named with its argument. On CUDA, offsets out
            of order or range give NaN and set a flag (see :func:`xfercore.device_status`).
        RuntimeError: a gradient that requires grad (there is no derivative: detach it), or ``torch.func`` transforms.

    The list form is not for CUDA graphs: its table of pointers is sent to the device at each call.
    """
    rows, bounds, _ = _take(task_gram.__name__, grads, offsets)
    if isinstance(grads, Tensor):
        return torch.ops.xfercore.task_gram(grads, bounds)
    return torch.ops.xfercore.task_gram_list(rows, len(grads), bounds, _like("task_gram", rows))


@accept_arrays
def combine_gradients(
    grads: TaskGrads,
    offsets: Tensor | Sequence[int] | None,
    weights: Tensor,
    out: Tensor | Sequence[Tensor | None] | None = None,
) -> Tensor | list[Tensor | None]:
    r"""The weighted sum of the tasks' gradients, with weights of each group's own, in one pass.

    .. math:: o_c = \sum_j w_{kj}\, g_{jc}, \qquad c \in \text{group } k

    Args:
        grads: as for :func:`task_gram`.
        offsets: as for :func:`task_gram`.
        weights: float64 ``[num_groups, num_tasks]``, on the device of ``grads``.
        out: receives the result: ``[numel]``, or a list of ``num_params`` tensors of the gradients' dtype. An entry
            may be None where no result is wanted, and may be one of that parameter's gradients (of an arena: one of its
            rows); no other overlap is allowed for, or noticed. None: new tensors.

    Returns:
        ``out``; for a list, None where every task's gradient is None and no ``out`` was given.

    Raises:
        ValueError, RuntimeError: as :func:`task_gram`.

    float32, bfloat16, float16 or (CPU) float64; sums run in float32 (float64 for float64). A weight of 0 does not hide
    a NaN: it propagates.
    """
    op = combine_gradients.__name__
    rows, bounds, size = _take(op, grads, offsets)
    device = grads.device if isinstance(grads, Tensor) else _like(op, rows).device
    check_tensor(op, "weights", weights)
    if weights.dtype != torch.float64:
        raise ValueError(f"{op}(): weights must be float64, got {describe(weights)}")
    if weights.device != device:
        raise ValueError(f"{op}(): weights must be on the device of grads ({device}), got {weights.device}")
    refuse_grad(op, "weights", weights)
    if isinstance(grads, Tensor):
        if out is None:
            return torch.ops.xfercore.combine_gradients(grads, bounds, weights)
        into = _writable(op, "out", out)
        torch.ops.xfercore.combine_gradients_out(grads, bounds, weights, into)
        return into
    like = _like(op, rows)
    if out is None:
        combined = torch.ops.xfercore.combine_gradients_list(rows, len(grads), bounds, weights, like)
        any_task = [any(task[n] is not None for task in grads) for n in range(size)]
        return [one if used else None for one, used in zip(combined, any_task, strict=True)]
    if not isinstance(out, (list, tuple)) or len(out) != size:
        got = f"{len(out)} entries" if isinstance(out, (list, tuple)) else describe(out)
        raise ValueError(f"{op}(): out must be a list of num_params = {size} tensors, got {got}")
    wanted = {n: _writable(op, f"out[{n}]", tensor) for n, tensor in enumerate(out) if tensor is not None}
    torch.ops.xfercore.combine_gradients_list_out(
        rows, len(grads), bounds, weights, like, list(wanted.values()), list(wanted)
    )
    return list(out)


def _writable(op: str, name: str, out: Any) -> Tensor:
    check_tensor(op, name, out)
    refuse_grad(op, name, out)
    # torch's fallback for lazy negations reads past its stack where an op writes and returns nothing.
    if not torch.compiler.is_compiling() and out.is_neg():
        raise ValueError(f"{op}(): {name} must be a plain tensor, got a lazy negation; call resolve_neg()")
    return out


def _take(
    op: str, grads: Any, offsets: Tensor | Sequence[int] | None
) -> tuple[list[Tensor | None], Tensor, int]:
    """The list form's gradients task by task (empty for an arena), the offsets as a tensor, columns or parameters."""
    refuse_functorch(op)
    if isinstance(grads, Tensor):
        check_tensor(op, "grads", grads)
        refuse_grad(op, "grads", grads)
        if grads.dim() != 2 or grads.shape[0] == 0:
            raise ValueError(
                f"{op}(): grads must have shape [num_tasks, numel] with at least one task, or be a list of lists, got "
                f"{list(grads.shape)}"
            )
        return [], _offsets(op, offsets, grads.shape[1], grads.device), grads.shape[1]
    if not isinstance(grads, (list, tuple)) or not grads:
        got = describe(grads) if not isinstance(grads, (list, tuple)) else "an empty list"
        raise ValueError(
            f"{op}(): grads must be a tensor [num_tasks, numel] or a list of num_tasks lists, got {got}"
        )
    if not all(isinstance(row, (list, tuple)) for row in grads):
        raise ValueError(
            f"{op}(): grads must hold a list of gradients for each task, got {describe(grads[0])}"
        )
    size = len(grads[0])
    for t, row in enumerate(grads):
        if len(row) != size:
            raise ValueError(
                f"{op}(): grads[{t}] must have the num_params = {size} gradients of grads[0] (None for one that is "
                f"missing), got {len(row)}"
            )
    rows = [g for row in grads for g in row]
    like = _like(op, rows)
    dual = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    dtype, layout, device = like.dtype, like.layout, like.device
    for place, g in enumerate(rows):  # thousands of them: what is in order costs three comparisons
        if g is None:
            continue
        tensor = isinstance(g, Tensor) and not dual
        if tensor and g.dtype is dtype and g.layout is layout and g.device == device and not g.requires_grad:
            continue
        name = f"grads[{place // size}][{place % size}]"
        if not isinstance(g, Tensor):
            raise ValueError(f"{op}(): {name} must be a tensor or None, got {describe(g)}")
        check_tensor(op, name, g)
        if g.dtype != dtype:
            raise ValueError(f"{op}(): {name} must have the dtype of the others ({dtype}), got {g.dtype}")
        if g.device != device:
            raise ValueError(f"{op}(): {name} must be on the device of the others ({device}), got {g.device}")
        refuse_grad(op, name, g)
    return rows, _offsets(op, offsets, size, torch.device("cpu")), size


def _like(op: str, rows: Sequence[Any]) -> Tensor:
    for place, g in enumerate(rows):
        if g is not None:
            check_tensor(op, f"grads[{place}]", g)
            refuse_grad(op, "grads", g)
            return g
    raise ValueError(f"{op}(): grads must hold at least one tensor, got None alone")


def _offsets(op: str, offsets: Any, size: Any, device: torch.device) -> Tensor:
    if offsets is None:  # made where it is read: nothing to send, nothing to wait for
        return torch.arange(2, dtype=torch.int64, device=device) * size
    if isinstance(offsets, Tensor):
        check_integer_tensor(op, "offsets", offsets, device)
        return offsets
    try:
        host = torch.tensor([operator.index(value) for value in offsets], dtype=torch.int64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{op}(): offsets must be int64 numbers or a tensor, got {offsets!r}") from error
    return host.to(device, non_blocking=True)


# Fake kernels: the checks on shapes repeat those of the bindings, so that compiled calls refuse what eager ones do.


def _fake_gram(op: str, num_tasks: Any, offsets: Tensor, like: Tensor) -> Tensor:
    _fake_offsets(op, offsets)
    return like.new_empty((offsets.shape[0] - 1, num_tasks, num_tasks), dtype=torch.float64)


def _fake_offsets(op: str, offsets: Tensor) -> None:
    torch._check_value(
        offsets.dim() == 1 and offsets.shape[0] >= 1,
        lambda: f"{op}(): offsets must have shape [num_groups + 1], got {list(offsets.shape)}",
    )


def _fake_weights(num_tasks: Any, offsets: Tensor, weights: Tensor) -> None:
    op = combine_gradients.__name__
    _fake_offsets(op, offsets)
    check_like(op, "weights", weights, weights, "weights", offsets.shape[0] - 1, num_tasks)


def _fake_first(op: str, grads: list[Tensor | None], num_tasks: int) -> list[Tensor | None]:
    """A gradient of each parameter, whose shape the other tasks' must have."""
    size = len(grads) // num_tasks
    found = [next((g for g in grads[n::size] if g is not None), None) for n in range(size)]
    for place, g in enumerate(grads):
        first = found[place % size]
        if g is not None and first is not None:
            check_like(op, f"grads[{place // size}][{place % size}]", g, first, "the others", *first.shape)
    return found


def _fake_out(name: str, out: Tensor, like: Tensor, shape: Any) -> None:
    op = combine_gradients.__name__
    check_like(op, name, out, like, "grads", *shape)
    torch._check_value(
        out.device == like.device,
        lambda: f"{op}(): {name} must be on the device of grads ({like.device}), got {out.device}",
    )
    torch._check_value(
        out.is_contiguous(), lambda: f"{op}(): {name} must be contiguous, got strides {out.stride()}"
    )


@torch.library.register_fake("xfercore::task_gram")
def _(grads: Tensor, offsets: Tensor) -> Tensor:
    return _fake_gram("task_gram", grads.shape[0], offsets, grads)


@torch.library.register_fake("xfercore::task_gram_list")
def _(grads: list[Tensor | None], num_tasks: int, offsets: Tensor, like: Tensor) -> Tensor:
    _fake_first("task_gram", grads, num_tasks)
    return _fake_gram("task_gram", num_tasks, offsets, like)


@torch.library.register_fake("xfercore::combine_gradients")
def _(grads: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    _fake_weights(grads.shape[0], offsets, weights)
    return grads.new_empty((grads.shape[1],))


@torch.library.register_fake("xfercore::combine_gradients_out")
def _(grads: Tensor, offsets: Tensor, weights: Tensor, out: Tensor) -> None:
    _fake_weights(grads.shape[0], offsets, weights)
    _fake_out("out", out, grads, (grads.shape[1],))


@torch.library.register_fake("xfercore::combine_gradients_list")
def _(
    grads: list[Tensor | None], num_tasks: int, offsets: Tensor, weights: Tensor, like: Tensor
) -> list[Tensor]:
    _fake_weights(num_tasks, offsets, weights)
    found = _fake_first("combine_gradients", grads, num_tasks)
    return [like.new_empty((0,) if first is None else first.shape) for first in found]


@torch.library.register_fake("xfercore::combine_gradients_list_out")
def _(
    grads: list[Tensor | None],
    num_tasks: int,
    offsets: Tensor,
    weights: Tensor,
    like: Tensor,
    out: list[Tensor],
    places: list[int],
) -> None:
    _fake_weights(num_tasks, offsets, weights)
    found = _fake_first("combine_gradients", grads, num_tasks)
    for n, tensor in zip(places, out, strict=True):
        first = found[n]
        _fake_out(f"out[{n}]", tensor, like, tensor.shape if first is None else first.shape)
