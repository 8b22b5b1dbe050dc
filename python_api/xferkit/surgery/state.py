"""What surgery keeps from step to step: tensors that live in a module, and a state dictionary by the names of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["Axes", "SurgeryState"]

Axes = tuple[Literal["group", "task", "other"], ...]
"""What each dimension of a state's tensor runs over."""


class SurgeryState(nn.Module):
    """The tensors of a surgery, as buffers, written in place.

    Registered in a model (``model.surgery = surgery.state``) they are saved, restored and moved with it. Their dtypes
    stay whatever ``half()`` or ``to(dtype)`` does to the model.

    Args:
        kind: the method's name.
        tasks: names of all tasks.
        groups: names of the groups of parameters.
        tensors: by name: the tensor at the start, and what its dimensions are.
    """

    def __init__(
        self,
        kind: str,
        tasks: Sequence[str],
        groups: Sequence[str],
        tensors: Mapping[str, tuple[Tensor, Axes]],
    ) -> None:
        super().__init__()
        self.kind, self.tasks, self.groups = kind, tuple(tasks), tuple(groups)
        self.axes = {name: axes for name, (_, axes) in tensors.items()}
        for name, (tensor, _) in tensors.items():
            self.register_buffer(name, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SurgeryState:
        dtypes = {name: buffer.dtype for name, buffer in self.named_buffers()}
        kept = {name: buffer.clone() for name, buffer in self.named_buffers()}
        super()._apply(fn, recurse)
        for name, buffer in list(self.named_buffers()):
            if buffer.dtype != dtypes[name]:
                setattr(self, name, kept[name].to(buffer.device))
        return self

    def collect(self) -> dict[str, Any]:
        """Everything, by the names of kind, tasks and groups; the tensors are copies."""
        return {
            "kind": self.kind,
            "tasks": list(self.tasks),
            "groups": list(self.groups),
            "tensors": {name: self.get_buffer(name).detach().clone() for name in self.axes},
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a collected state, whatever the order of its tasks and groups.

        Raises:
            ValueError: a state of another method, of other tasks or other groups, or none at all; nothing was changed.
        """
        found: dict[str, Any] = {key: state.get(key) for key in ("kind", "tasks", "groups", "tensors")}
        if missing := [key for key, value in found.items() if value is None]:
            raise ValueError(f"{self.kind}: the state lacks {missing[0]!r}; expected what state_dict() gave")
        if found["kind"] != self.kind:
            raise ValueError(f"{self.kind}: the state is one of {found['kind']}; expected one of {self.kind}")
        orders = {
            "task": self._order("tasks", found["tasks"], self.tasks),
            "group": self._order("groups", found["groups"], self.groups),
        }
        tensors = found["tensors"]
        if set(tensors) != set(self.axes):
            raise ValueError(
                f"{self.kind}: the state holds {', '.join(sorted(tensors)) or 'no tensors'}; expected "
                f"{', '.join(sorted(self.axes)) or 'none'}"
            )
        ready: dict[str, Tensor] = {}
        for name, axes in self.axes.items():
            value, buffer = tensors[name], self.get_buffer(name)
            if not isinstance(value, Tensor) or value.shape != buffer.shape or value.dtype != buffer.dtype:
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(
                    f"{self.kind}: {name} of the state is {got}; expected {buffer.dtype} {list(buffer.shape)}"
                )
            for dim, axis in enumerate(axes):
                if axis != "other":
                    value = value.index_select(dim, torch.tensor(orders[axis], device=value.device))
            ready[name] = value
        for name, value in ready.items():
            self.get_buffer(name).copy_(value)

    def _order(self, what: str, saved: Sequence[str], have: Sequence[str]) -> list[int]:
        lacking = [name for name in have if name not in saved]
        unknown = [name for name in saved if name not in have]
        if lacking or unknown or len(saved) != len(have):
            parts = [f"lacks {', '.join(map(repr, lacking[:3]))}"] if lacking else []
            parts += [f"has {', '.join(map(repr, unknown[:3]))} besides"] if unknown else []
            raise ValueError(
                f"{self.kind}: the state is of {len(saved)} {what} and {' and '.join(parts) or 'names some twice'}; "
                f"expected the {len(have)} {what} {_listed(have)}"
            )
        place = {name: n for n, name in enumerate(saved)}
        return [place[name] for name in have]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:7])}, ... {names[-1]}"
