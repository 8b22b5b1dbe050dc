"""The parameters that tasks share: taken from a module or from names and parameters, and looked at before each use."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Shared", "SharedParameters", "refuse_replicas"]

Shared = nn.Module | Iterable[tuple[str, nn.Parameter]]
"""A module, or names and parameters as ``named_parameters()`` gives them. Frozen parameters are left out."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class SharedParameters:
    """Names and parameters, of one dtype and device.

    Args:
        owner: who asks, for errors.
        shared: see :data:`Shared`.

    Attributes:
        names: of the trainable parameters, in order.
        parameters: these.

    Raises:
        ValueError: no trainable parameter, a name or a parameter given twice, something else than a leaf tensor, or
            parameters of several dtypes or devices.
        RuntimeError: a parameter that is cut over processes.
    """

    def __init__(self, owner: str, shared: Shared) -> None:
        self.owner = owner
        self._module = shared if isinstance(shared, nn.Module) else None
        pairs = _pairs(owner, shared)
        self.names: tuple[str, ...] = tuple(name for name, _ in pairs)
        self.parameters: tuple[nn.Parameter, ...] = tuple(p for _, p in pairs)
        self._known = {id(p) for p in self.parameters}
        self.check()

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self._known

    @property
    def device(self) -> torch.device:
        """Where they are; a module may have been moved since."""
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What they hold."""
        return self.parameters[0].dtype

    def check(self) -> None:
        """Refuse what has come to be wrong with them since.

        Raises:
            ValueError: dtypes or devices differ, or the module has got other parameters.
            RuntimeError: a parameter that is cut over processes.
        """
        dtype, device = self.dtype, self.device
        if dtype not in _DTYPES:
            raise ValueError(
                f"{self.owner}: parameter {self.names[0]!r} is {dtype}; expected a floating-point parameter"
            )
        for name, p in zip(self.names, self.parameters, strict=True):
            if p.dtype != dtype or p.device != device:
                got, wanted = (p.dtype, dtype) if p.dtype != dtype else (p.device, device)
                raise ValueError(
                    f"{self.owner}: parameter {name!r} is {got}; expected {wanted} as {self.names[0]!r} is, since all "
                    "shared parameters stand in one arena"
                )
            if hasattr(p, "to_local"):
                raise RuntimeError(
                    f"{self.owner}: parameter {name!r} is cut over processes (a DTensor), and surgery of a shard alone "
                    "is not that of the whole; expected whole parameters on one process, or xfercore.task_gram of "
                    "each shard, one all_reduce of the Gram matrices and xfercore.combine_gradients of the shard"
                )
        if self._module is None:
            return
        now = [p for p in self._module.parameters() if p.requires_grad]
        if len(now) == len(self.parameters) and all(p in self for p in now):
            return
        trainable = dict(self._trainable(self._module))
        added = [name for name, p in trainable.items() if p not in self]
        gone = [n for n, p in zip(self.names, self.parameters, strict=True) if trainable.get(n) is not p]
        what = f"{added[0]!r} was added or unfrozen" if added else f"{gone[0]!r} was removed or frozen"
        raise ValueError(
            f"{self.owner}: the shared module's parameters have changed, {what}; expected a new {self.owner} of the "
            "module as it is"
        )

    @staticmethod
    def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _pairs(owner: str, shared: Shared) -> list[tuple[str, nn.Parameter]]:
    if isinstance(shared, nn.Module):
        found = SharedParameters._trainable(shared)
    else:
        found = []
        for pair in shared:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise ValueError(
                    f"{owner}: shared holds a {type(pair).__name__}; expected a module, or names with their "
                    "parameters as module.named_parameters() gives them"
                )
            name, p = pair
            if not isinstance(p, Tensor) or not p.is_leaf:
                got = "a tensor that was computed" if isinstance(p, Tensor) else f"a {type(p).__name__}"
                raise ValueError(f"{owner}: {name!r} is {got}; expected a parameter (a leaf tensor)")
            if p.requires_grad:
                found.append(pair)
    if not found:
        raise ValueError(f"{owner}: shared has no trainable parameter; expected at least one")
    names: dict[str, Tensor] = {}
    places: dict[int, str] = {}
    for name, p in found:
        if name in names:
            raise ValueError(f"{owner}: two shared parameters are named {name!r}; expected different names")
        if id(p) in places:
            raise ValueError(
                f"{owner}: the shared parameters {places[id(p)]!r} and {name!r} are the same tensor; expected it once"
            )
        names[name], places[id(p)] = p, name
    return found


def refuse_replicas(owner: str) -> None:
    """Refuse to work in one of several processes.

    Raises:
        RuntimeError: torch.distributed runs more than one.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise RuntimeError(
            f"{owner}: torch.distributed runs {dist.get_world_size()} processes, and surgery on each replica's own "
            "gradients (DDP, FSDP) differs from surgery on those of the whole batch; expected one process (collect() "
            "takes the batch in parts), or the gradients summed over replicas and cut into shards for "
            "xfercore.task_gram and xfercore.combine_gradients, with one all_reduce of the Gram matrices between"
        )
