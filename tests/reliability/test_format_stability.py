"""A checkpoint that the first version wrote: it loads in every later one, and saved again it has the same bytes.

``golden/schema-1`` never changes. A change of the form gets a schema number of its own and a folder beside it.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from harness import HERE, state_hash

from xferkit.checkpoints import CheckpointStore

GOLDEN = HERE / "golden" / "schema-1"
IDENTITY = {"model": "toy", "data": "größer"}
DIGESTS = {
    "manifest.json": "a3993178123af5ad1ed9c76a120984b431f23ec91328d19e3044d7d48fd42bc0",
    "state.json": "61c29700244f01343056fbf9660d39c036ec1efd6f20497ebe8a5f47f72b9318",
    "tensors.safetensors": "9536310cb567cebd558afe4ff5585bb20baa9d5954c8a2345aae5d4e241020c2",
}


def golden_state() -> dict[str, Any]:
    """One of everything, of values that no random generator decides."""
    ramp = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    return {
        "module": {"weight": ramp, "tied": ramp, "turned": ramp.t(), "bias": ramp[0].bfloat16()},
        "optimizers": {
            "main": {0: {"step": torch.tensor(7.0), "exp_avg": ramp.double()}, "betas": (0.9, 0.999)}
        },
        "dtypes": [
            ramp[1].to(d) for d in (torch.float16, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn)
        ],
        "complex": torch.complex(ramp[2].double(), ramp[3].double()),
        "empty": torch.empty(0, 3),
        "numbers": [0, -1, 2**80, 0.1, -0.0, 1e308, math.inf, -math.inf],
        "nan": math.nan,
        "text": "größer\n\x00",
        "bytes": bytes(range(5)),
        "nothing": [None, True, False, {}, [], ()],
        "$key": {0: 1, "0": 2},
    }


def test_the_golden_checkpoint_is_the_one_that_was_written() -> None:
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (GOLDEN / "step-00000007").iterdir()}
    assert files == DIGESTS


def test_the_golden_checkpoint_loads_and_is_saved_again_byte_for_byte(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "old")
    found = CheckpointStore(tmp_path / "old").load_newest(IDENTITY)
    assert found is not None and found.step == 7 and not found.skipped
    assert state_hash(found.state) == state_hash(golden_state())
    assert type(found.state["nothing"][5]) is tuple and list(found.state) == list(golden_state())
    # One tensor in two places is kept once and comes back as two.
    found.state["module"]["tied"] = found.state["module"]["weight"]
    for number, state in enumerate((golden_state(), found.state)):
        store = CheckpointStore(tmp_path / f"new-{number}")
        with store.locked():
            path = store.save(7, state, IDENTITY)
        for name in DIGESTS:
            assert (path / name).read_bytes() == (GOLDEN / "step-00000007" / name).read_bytes(), name
