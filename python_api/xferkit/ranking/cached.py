"""In-batch losses on batches whose activations do not fit: embeddings first, then the encoder again chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["cached_backward"]

Encode = Callable[[Any], Tensor]


def cached_backward(
    loss: Callable[..., Any],
    encoders: Encode | Sequence[Encode],
    inputs: Sequence[Any],
    *,
    chunk_size: int,
    scaler: Any = None,
) -> Any:
    r"""Leaves the gradients of ``loss(encode(x_1), encode(x_2), ...)``, holding activations of one chunk at a time.

    Three steps (GradCache, Gao et al. 2021): embed all texts chunk by chunk without a graph; compute the loss on the
    embeddings and its gradients :math:`g = \partial \ell / \partial e` by them; encode every chunk again, with the same
    random numbers, and differentiate :math:`\langle e, g \rangle`, whose gradient is the loss's by the chain rule. It
    costs one more forward pass of the encoders, and gives the gradients of the direct computation.

    Args:
        loss: called with one ``[n, dim]`` embedding per input, in their order; returns a scalar, or a named tuple with
            a field ``loss``. Its own parameters get their gradients too.
        encoders: one for all inputs, or one each; each takes a chunk of its input and returns ``[n, dim]``.
        inputs: for each side a tensor, a mapping or a tuple of tensors with the same first dimension, or a list of
            anything (texts).
        chunk_size: texts of a chunk.
        scaler: a ``torch.amp.GradScaler``, or None. Gradients are left scaled.

    Returns:
        What ``loss`` returned, detached.

    Raises:
        ValueError: for a chunk size below 1, numbers of encoders and inputs that differ, an empty input, or embeddings
            whose number is not that of their texts.

    Gradients are added to those that stand, as ``backward`` does. Under DistributedDataParallel only the last chunk
    takes part in the reduction (``no_sync`` before), so the encoder has to be the wrapped module itself. Autocast that
    surrounds the call holds for both passes. Encoders with state of their own (batch statistics) see chunks, twice.
    """
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"cached_backward: chunk_size must be 1 or more, got {chunk_size!r}")
    encoders = list(encoders) if isinstance(encoders, Sequence) else [encoders] * len(inputs)
    if len(encoders) != len(inputs):
        raise ValueError(
            f"cached_backward: {len(encoders)} encoders for {len(inputs)} inputs, expected one each"
        )
    chunks = [_chunks(value, chunk_size, place) for place, value in enumerate(inputs)]
    states: list[list[_RandomState]] = []
    embeddings = []
    for place, (encode, parts) in enumerate(zip(encoders, chunks, strict=True)):
        states.append([])
        made = []
        with torch.no_grad():
            for part in parts:
                states[-1].append(_RandomState())
                made.append(encode(part))
                if made[-1].shape[0] != _count(part):
                    raise ValueError(
                        f"cached_backward: the encoder of input {place} made {made[-1].shape[0]} embeddings of "
                        f"{_count(part)} texts"
                    )
        embeddings.append(torch.cat(made).requires_grad_())
    with torch.enable_grad():
        result = loss(*embeddings)
        total = result.loss if hasattr(result, "loss") else result
        (total if scaler is None else scaler.scale(total)).backward()
    for place, (encode, parts) in enumerate(zip(encoders, chunks, strict=True)):
        grad = embeddings[place].grad
        if grad is None:
            continue
        for number, (part, arriving) in enumerate(zip(parts, grad.split(chunk_size), strict=True)):
            last = number == len(parts) - 1 and not any(e is encode for e in encoders[place + 1 :])
            with torch.enable_grad(), states[place][number].again(), _reducing(encode, last):
                again = encode(part)
                if again.requires_grad:
                    again.backward(arriving.to(again.dtype))
    return _detached(result)


def _reducing(encode: Any, last: bool) -> AbstractContextManager[Any]:
    return nullcontext() if last or not hasattr(encode, "no_sync") else encode.no_sync()


def _detached(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.detach()
    return type(result)(*(part.detach() if isinstance(part, Tensor) else part for part in result))


class _RandomState:
    """The generators of the CPU and of the current CUDA device, as they stand."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def again(self) -> AbstractContextManager[Any]:
        """The same random numbers once more; afterwards the generators stand where they stood."""
        stack = ExitStack()
        devices = [] if self.cuda is None else [torch.cuda.current_device()]
        stack.enter_context(torch.random.fork_rng(devices=devices))
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        return stack


def _count(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.shape[0]
    if isinstance(value, Mapping):
        return _count(next(iter(value.values())))
    return _count(value[0]) if isinstance(value, tuple) else len(value)


def _cut(value: Any, part: slice) -> Any:
    if isinstance(value, Mapping):
        return {name: one[part] for name, one in value.items()}
    return tuple(one[part] for one in value) if isinstance(value, tuple) else value[part]


def _chunks(value: Any, size: int, place: int) -> list[Any]:
    empty = not isinstance(value, Tensor) and not value
    count = 0 if empty else _count(value)
    if count == 0:
        raise ValueError(f"cached_backward: input {place} is empty, expected at least one text")
    columns = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ()
    if any(_count(column) != count for column in columns):
        sizes = [_count(column) for column in columns]
        raise ValueError(
            f"cached_backward: the parts of input {place} have {sizes} rows, expected equal numbers"
        )
    return [_cut(value, slice(begin, begin + size)) for begin in range(0, count, size)]
