"""What ``inbatch_softmax_loss`` checks before the dispatcher, and the ids of its columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xfercore.ops._checks import (
    check_choice,
    check_integer_tensor,
    check_number,
    check_tensors,
    describe,
    refuse_forward_ad,
)

__all__ = [
    "ABSENT",
    "STATS",
    "SYMMETRIC",
    "autocasting",
    "check_flags",
    "check_group",
    "check_matrix",
    "check_options",
    "column_ids",
    "need_flags",
    "needs_of",
    "reference_arguments",
]

#: The id of a column that no row sees (``kInbatchAbsent`` of the kernels).
ABSENT = -(2**63)
#: Bits of the ops' ``flags``: the loss is symmetric, ranks are wanted, and which gradients are.
SYMMETRIC, STATS = 1, 32
_FLOAT32_MAX = torch.finfo(torch.float32).max
_NEEDS = (2, 4, 8, 16)  # of u, v, hard_neg, scale


def need_flags(needs: Sequence[bool]) -> int:
    """The bits that ask for the gradients of u, v, hard_neg and scale."""
    return sum(bit for bit, need in zip(_NEEDS, needs, strict=True) if need)


def needs_of(flags: int) -> tuple[bool, ...]:
    """The inverse of :func:`need_flags`."""
    return tuple(bool(flags & bit) for bit in _NEEDS)


def check_options(
    op: str,
    u: Tensor,
    v: Tensor,
    hard_neg: Tensor | None,
    ids: dict[str, Any],
    scale: Any,
    margin: Any,
    hard_neg_scope: Any,
    row_weight: Any,
    reduction: Any,
    workspace_bytes: Any,
) -> None:
    """Everything but the values of targets."""
    tensors = {"u": u, "v": v} | ({} if hard_neg is None else {"hard_neg": hard_neg})
    check_tensors(op, **tensors)
    refuse_forward_ad(op, *tensors.values())
    check_matrix(op, "u", u, "[num_queries, dim]")
    check_matrix(op, "v", v, "[num_docs, dim]")
    if v.shape[1] != u.shape[1]:
        raise ValueError(
            f"{op}(): v must have shape [num_docs, dim] with dim = {u.shape[1]} as in u, got {list(v.shape)}"
        )
    if hard_neg is not None and (
        hard_neg.dim() != 3 or hard_neg.shape[0] != u.shape[0] or hard_neg.shape[2] != u.shape[1]
    ):
        raise ValueError(
            f"{op}(): hard_neg must have shape [num_queries, num_hard, dim] = "
            f"[{u.shape[0]}, num_hard, {u.shape[1]}], got {list(hard_neg.shape)}"
        )
    for name, other in (("v", v), ("hard_neg", hard_neg)):
        # Under autocast all are cast to one dtype.
        if other is not None and other.dtype != u.dtype and not autocasting(u):
            raise ValueError(f"{op}(): {name} must have the dtype of u ({u.dtype}), got {other.dtype}")
    if ids["hard_neg_ids"] is not None and hard_neg is None:
        raise ValueError(f"{op}(): hard_neg_ids needs hard_neg, which is None")
    sizes = {"targets": [u.shape[0]], "query_ids": [u.shape[0]], "doc_ids": [v.shape[0]]}
    sizes["hard_neg_ids"] = [] if hard_neg is None else list(hard_neg.shape[:2])
    for name, value in ids.items():
        if value is None:
            continue
        check_integer_tensor(op, name, value, u.device)
        if list(value.shape) != sizes[name]:
            raise ValueError(f"{op}(): {name} must have shape {sizes[name]}, got {list(value.shape)}")
    if ids["targets"] is None and v.shape[0] < u.shape[0]:
        raise ValueError(
            f"{op}(): v must have at least num_queries = {u.shape[0]} documents, since targets is None and "
            f"row i's positive is document i; got {v.shape[0]}"
        )
    if isinstance(scale, Tensor):
        _check_dense(op, "scale", scale)
        if scale.dim() != 0 or not scale.is_floating_point():
            raise ValueError(
                f"{op}(): scale must be a number or a floating 0-dim tensor, got {describe(scale)} "
                f"of shape {list(scale.shape)}"
            )
        if scale.device != u.device:
            raise ValueError(f"{op}(): scale must be on the device of u ({u.device}), got {scale.device}")
    else:
        check_number(op, "scale", scale)
        if (
            isinstance(scale, (int, float))
            and _FLOAT32_MAX < abs(scale) < math.inf
            and u.dtype != torch.float64
        ):
            raise ValueError(f"{op}(): scale must fit float32, got {scale!r}")
    check_number(op, "margin", margin)
    check_choice(op, "hard_neg_scope", hard_neg_scope, ("own", "all"))
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    if row_weight is not None:
        _check_weight(op, row_weight, u)
    if workspace_bytes is not None and (
        isinstance(workspace_bytes, bool)
        or not isinstance(workspace_bytes, int)
        or not 1 <= workspace_bytes <= 2**62
    ):
        raise ValueError(
            f"{op}(): workspace_bytes must be a positive integer or None, got {workspace_bytes!r}"
        )


def autocasting(t: Tensor) -> bool:
    """Whether autocast is on for the tensor's device, if that has one."""
    kind = t.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_matrix(op: str, name: str, value: Tensor, shape: str) -> None:
    """Two dimensions; in a form that Dynamo traces."""
    if value.dim() != 2:
        raise ValueError(f"{op}(): {name} must have shape {shape}, got {list(value.shape)}")


def check_flags(op: str, **flags: Any) -> None:
    """Options that are on or off."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{op}(): {name} must be True or False, got {value!r}")


def check_group(op: str, group: Any) -> None:
    """A process group that this process belongs to."""
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        raise ValueError(
            f"{op}(): group must be a process group of torch.distributed that this rank is in, or None, got "
            f"{describe(group)}"
        )


def _check_dense(op: str, name: str, value: Tensor) -> None:
    if value.is_nested or value.layout is not torch.strided:
        kind = "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}"
        raise ValueError(f"{op}(): {name} must be a dense tensor, got {kind}")


def _check_weight(op: str, weight: Any, u: Tensor) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise ValueError(f"{op}(): row_weight must be a floating tensor or None, got {describe(weight)}")
    _check_dense(op, "row_weight", weight)
    if list(weight.shape) != [u.shape[0]]:
        raise ValueError(
            f"{op}(): row_weight must have shape [num_queries] = [{u.shape[0]}], got {list(weight.shape)}"
        )
    if weight.device != u.device:
        raise ValueError(f"{op}(): row_weight must be on the device of u ({u.device}), got {weight.device}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f'{op}(): row_weight requires grad but is taken as constant; use reduction="none" and weigh the rows'
        )


def column_ids(
    u: Tensor,
    v: Tensor,
    hard_neg: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    doc_ids: Tensor | None,
    hard_neg_ids: Tensor | None,
    hard_neg_scope: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Ids of rows, documents and hard negatives as the kernels take them.

    With scope "all" hard negatives are documents to the kernels: padding gets :data:`ABSENT`; both have ids or none.
    """
    if doc_ids is None and query_ids is not None:
        docs = query_ids.new_full((v.shape[0],), -1)
        places = torch.arange(u.shape[0], device=u.device) if targets is None else targets
        # A target out of range is for the op to report.
        doc_ids = docs.scatter(0, places.clamp(0, max(v.shape[0] - 1, 0)), query_ids) if v.shape[0] else docs
    row_ids = query_ids
    if row_ids is None and doc_ids is not None:
        row_ids = doc_ids[: u.shape[0]] if targets is None else _picked(doc_ids, targets)
    if hard_neg is None or hard_neg_scope == "own":
        return row_ids, doc_ids, hard_neg_ids
    if hard_neg_ids is not None:
        hard_neg_ids = hard_neg_ids.masked_fill(hard_neg_ids < 0, ABSENT)
        doc_ids = hard_neg_ids.new_full((v.shape[0],), -1) if doc_ids is None else doc_ids
    elif doc_ids is not None:
        hard_neg_ids = doc_ids.new_full(hard_neg.shape[:2], -1)
    if doc_ids is not None:  # the reserved id among a person's own would hide a document
        doc_ids = doc_ids.clamp(min=-1)
    return row_ids, doc_ids, hard_neg_ids


def _picked(doc_ids: Tensor, targets: Tensor) -> Tensor:
    if doc_ids.shape[0] == 0:
        return targets.new_full(targets.shape, -1)
    return doc_ids[targets.clamp(0, doc_ids.shape[0] - 1)]


def reference_arguments(
    u: Tensor,
    v: Tensor,
    hard_neg: Tensor | None,
    targets: Tensor | None,
    margin: float,
    row_ids: Tensor | None,
    doc_ids: Tensor | None,
    hard_ids: Tensor | None,
    symmetric: bool,
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """The call of the definition that the kernels' arguments stand for: absent columns are taken out."""
    if doc_ids is not None and bool((doc_ids == ABSENT).any()):
        kept = doc_ids != ABSENT
        places = torch.arange(u.shape[0], device=u.device) if targets is None else targets
        targets = (kept.cumsum(0) - 1)[places]
        v, doc_ids = v[kept], doc_ids[kept]
    if row_ids is None and doc_ids is not None:
        doc_ids = None  # without ids of rows only absence counts
    options = {"hard_neg": hard_neg, "targets": targets, "margin": margin, "query_ids": row_ids}
    return (u, v), options | {"doc_ids": doc_ids, "hard_neg_ids": hard_ids, "symmetric": symmetric}
