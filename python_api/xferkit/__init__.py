"""xferkit: models, methods, trainers and reports for transfer and multi-task learning on ``xfercore``.

Subpackages load on first use, so ``import xferkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from types import ModuleType

_SUBPACKAGES = (
    "cli",
    "data",
    "demo",
    "experiments",
    "methods",
    "metrics",
    "models",
    "objectives",
    "report",
    "trainers",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_SUBPACKAGES)
