"""Runs on a person's own files: configuration, training with its folder, evaluation, prediction, reports, doctor.

Names load on first use, so that the light commands do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "Pipeline": "pipeline",
    "RunConfig": "config",
    "RunError": "errors",
    "RunResult": "training",
    "evaluate_model": "evaluation",
    "make_run_config": "config",
    "run_training": "training",
    "write_run_report": "page",
}

__all__ = [
    "Pipeline",
    "RunConfig",
    "RunError",
    "RunResult",
    "evaluate_model",
    "make_run_config",
    "run_training",
    "write_run_report",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
