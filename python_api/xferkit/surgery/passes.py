"""Backward passes of several tasks: one after the other, or all at once where that is faster."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from xferkit.surgery.arena import TaskGradients

__all__ = ["BackwardName", "batched_pass", "choose_pass", "leaves_of", "reaches", "without_autocast"]

BackwardName = Literal["loop", "batched", "auto"]

#: Relative difference of a task's gradient, by either way, that counts as the same.
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def leaves_of(losses: Sequence[Tensor]) -> list[Tensor]:
    """The leaf tensors that a backward pass of the losses would give gradients."""
    found: dict[int, Tensor] = {}
    _walk(losses, lambda leaf: found.setdefault(id(leaf), leaf) is None)
    return list(found.values())


def reaches(loss: Tensor, wanted: Callable[[Tensor], bool]) -> bool:
    """Whether the loss was computed from a leaf that is wanted; True where parts of its graph cannot be seen."""
    return _walk([loss], wanted)


def _walk(losses: Sequence[Tensor], stop: Callable[[Tensor], bool]) -> bool:
    nodes = [loss.grad_fn for loss in losses]
    seen, opaque = set(nodes), False
    if any(loss.grad_fn is None and stop(loss) for loss in losses):
        return True
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if type(node).__name__ == "AccumulateGrad":
            if stop(node.variable):  # type: ignore[attr-defined]
                return True
            continue
        # A function written in Python may differentiate more within its own backward pass (checkpointing does).
        opaque = opaque or isinstance(node, torch.autograd.function.BackwardCFunction)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return opaque


def without_autocast(device: torch.device) -> torch.autocast:
    """Backward passes inside run in the dtypes of their forward passes, also where the caller is under autocast."""
    return torch.autocast(device.type, enabled=False)


def batched_pass(
    grads: TaskGradients, tasks: Sequence[str], losses: Sequence[Tensor], retain_graph: bool = False
) -> None:
    """Differentiate all losses in one vectorised pass, and add what comes out where :meth:`collecting` would put it.

    Needs memory for every intermediate gradient of all tasks at once, and a graph that ``vmap`` can differentiate.
    """
    heads = [leaf for leaf in leaves_of(losses) if leaf not in grads.shared]
    try:
        found = _vectorised(grads, losses, heads, retain_graph)
    except RuntimeError as error:
        raise RuntimeError(
            f"{grads.owner}: the losses cannot be differentiated in one vectorised pass ({error}); expected "
            "backward='loop'"
        ) from error
    count = len(grads.shared.parameters)
    grads.add(tasks, found[:count])
    for leaf, gradient in zip(heads, found[count:], strict=True):
        if gradient is not None:
            total = gradient.sum(0)
            leaf.grad = total if leaf.grad is None else leaf.grad.add_(total)


def _vectorised(
    grads: TaskGradients, losses: Sequence[Tensor], heads: Sequence[Tensor], retain_graph: bool
) -> tuple[Tensor | None, ...]:
    stacked = torch.stack([loss.reshape(()) for loss in losses])
    rows = torch.eye(len(losses), dtype=stacked.dtype, device=stacked.device)
    inputs = [*grads.shared.parameters, *heads]
    return torch.autograd.grad(
        stacked, inputs, rows, retain_graph=retain_graph, is_grads_batched=True, allow_unused=True
    )


def choose_pass(
    grads: TaskGradients, tasks: Sequence[str], losses: Sequence[Tensor]
) -> Literal["loop", "batched"]:
    """The faster way for these losses: both are run twice, and the second runs are timed.

    The loop, where the vectorised pass raises or gives other gradients. Nothing is left of the trial: no row, no
    gradient of a head.
    """
    heads = [leaf for leaf in leaves_of(losses) if leaf not in grads.shared]
    kept = [leaf.grad for leaf in heads]

    def loop() -> None:
        grads.clear()
        for task, loss in zip(tasks, losses, strict=True):
            with grads.collecting(task):
                loss.backward(retain_graph=True)

    found: list[tuple[Tensor | None, ...]] = []

    def batched() -> None:
        found[:] = [_vectorised(grads, losses, heads, retain_graph=True)]

    try:
        for leaf in heads:
            leaf.grad = None
        one_by_one = _second_time(loop, grads.data.device)
        try:
            with warnings.catch_warnings():
                # vmap warns of operators that it loops over; the clock tells as well.
                warnings.simplefilter("ignore")
                at_once = _second_time(batched, grads.data.device)
        except Exception:  # whatever a function in the graph makes of vmap's tensors
            return "loop"
        faster = at_once < one_by_one and _agree(grads, tasks, found[0])
    finally:
        grads.clear()
        for leaf, grad in zip(heads, kept, strict=True):
            leaf.grad = grad
    return "batched" if faster else "loop"


def _second_time(run: Callable[[], None], device: torch.device) -> float:
    start = 0.0
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _agree(grads: TaskGradients, tasks: Sequence[str], found: Sequence[Tensor | None]) -> bool:
    """Whether the rows hold what the vectorised pass found."""
    device = grads.data.device
    off = torch.zeros(len(tasks), dtype=torch.float64, device=device)
    size = torch.zeros_like(off)
    for row, task in enumerate(tasks):
        views = grads.gradients(task)
        for name, gradient in zip(grads.shared.names, found, strict=False):
            one = views[name].double()
            size[row] += one.square().sum()
            off[row] += (one if gradient is None else one - gradient[row].double()).square().sum()
    return bool((off <= _AGREEMENT[grads.data.dtype] ** 2 * size).all())
