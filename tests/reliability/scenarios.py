"""What the fault server runs: saves of a state that its step number alone decides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from fault_server import faults_fired, io_calls, release_faults

from xferkit.checkpoints import CheckpointError, CheckpointStore, write_folder

IDENTITY = {"model": "toy-1", "data": "0123"}


def state_of(step: int) -> dict[str, Any]:
    """Every kind of value that a checkpoint keeps, different at each step."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(16, 8, generator=generator)
    return {
        "model": {"weight": weight, "tied": weight, "turned": weight.t(), "bias": weight[0].bfloat16()},
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), "mean": weight * 2}},
            "betas": (0.9, 0.999),
        },
        "rng": generator.get_state()[:64],
        "mask": weight > 0,
        "empty": torch.empty(0, 3, dtype=torch.float16),
        "position": [step, 2 * step],
        "best": math.inf if step % 2 else -math.inf,
        "note": "größer\n",
        "raw": bytes(range(step % 7)),
        "nothing": None,
    }


def saves(folder: str, journal: str, first: int, last: int, retry: bool = False) -> dict[str, Any]:
    """Save steps first..last; each is written to the journal once its save has returned.

    With `retry`, a save that raised is tried again in the same process after the fault is lifted. ``returned`` has
    the number of I/O calls at the moment when each save returned.
    """
    errors: list[str] = []
    warned: list[str] = []
    returned: dict[int, int] = {}
    store = CheckpointStore(Path(folder), keep=2, warn=warned.append)
    for attempt in range(2):
        try:
            with store.locked():
                for step in range(first, last + 1):
                    for again in range(2):
                        try:
                            store.save(step, state_of(step), IDENTITY)
                            break
                        except CheckpointError as error:
                            errors.append(str(error))
                            if again or not retry or not faults_fired():
                                raise
                            release_faults()
                    returned[step] = io_calls()
                    with open(journal, "a") as file:
                        file.write(f"{step}\n")
            break
        except CheckpointError as error:
            # The lock's own file can fail too.
            if attempt or not retry or not faults_fired():
                raise
            if str(error) not in errors:
                errors.append(str(error))
            release_faults()
    return {"errors": errors, "warned": warned, "returned": returned}


def replace_model(folder: str, text: str) -> None:
    """Replace a model folder."""
    files = {"config.json": text, "model.safetensors": {"w": torch.full((64,), float(len(text)))}}
    write_folder(Path(folder) / "model", files, kind="model", replace=True)
