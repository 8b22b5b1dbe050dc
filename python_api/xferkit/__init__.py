"""xferkit: models, methods, trainers and reports for transfer and multi-task learning on ``xfercore``.

Everything loads on first use, so ``import xferkit`` costs nothing::

    import xferkit

    config = xferkit.make_run_config({"method": "man-moe", "train": {"en": "en.tsv"}, "out": "run", ...})
    xferkit.run_training(config)
    pipeline = xferkit.Pipeline.from_pretrained("run/seed-1/model")
"""

from __future__ import annotations

import importlib
from typing import Any

_SUBPACKAGES = (
    "checkpoints",
    "cli",
    "data",
    "demo",
    "diagnosis",
    "experiments",
    "masks",
    "methods",
    "metrics",
    "models",
    "objectives",
    "ranking",
    "report",
    "runs",
    "surgery",
    "trainers",
    "transfer",
)

#: Names that people reach for first, all of them in :mod:`xferkit.runs`.
_SHORT = ("Pipeline", "RunConfig", "make_run_config", "run_training")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _SHORT:
        return getattr(importlib.import_module(f"{__name__}.runs"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*_SUBPACKAGES, *_SHORT))
