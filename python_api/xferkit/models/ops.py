"""The one place where a model chooses between the fused ops and their references."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

__all__ = ["OpsName", "resolve_ops"]

OpsName = Literal["fused", "reference"]


def resolve_ops(name: OpsName) -> ModuleType:
    """``xfercore`` for ``"fused"``, ``xfercore.reference`` for ``"reference"``: the same in plain PyTorch.

    Raises:
        ValueError: for any other name.
    """
    if name == "fused":
        import xfercore

        return xfercore
    if name == "reference":
        import xfercore.reference

        return xfercore.reference
    raise ValueError(f"ops must be 'fused' or 'reference', got {name!r}")
