"""Times saves and loads of the checkpoint store beside writers that promise less.

Usage: ``python tests/reliability/time_saves.py [--mib 10] [--repeats 20] [--folder DIR]``. Rounds are interleaved;
medians are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from xferkit.checkpoints import CheckpointStore


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=None, help="where to write: the disk to be measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole = torch.randn(options.mib * 2**15, 8)
    tensors = {f"part{n}": part.clone() for n, part in enumerate(whole.chunk(40))}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        store = CheckpointStore(folder / "store")
        step = iter(range(10**6))

        def torch_save(flush: bool) -> None:
            torch.save(tensors, folder / "file.pt")
            if flush:
                _flush(folder / "file.pt")

        def safetensors_save(flush: bool) -> None:
            safetensors.torch.save_file(tensors, folder / "file.safetensors")
            if flush:
                _flush(folder / "file.safetensors")

        ways: dict[str, Callable[[], object]] = {
            "store, save (flushed, read back, old one removed)": lambda: store.save(next(step), tensors, {}),
            "store, load (checksums compared)": lambda: store.load_newest({}),
            "safetensors, flushed": lambda: safetensors_save(True),
            "safetensors, not flushed": lambda: safetensors_save(False),
            "torch.save, flushed": lambda: torch_save(True),
            "torch.save, not flushed": lambda: torch_save(False),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        with store.locked():
            for _ in range(options.repeats + 2):
                for name, way in ways.items():
                    start = time.perf_counter()
                    way()
                    times[name].append(time.perf_counter() - start)
    print(f"{size / 2**20:.1f} MiB in {len(tensors)} tensors, medians of {options.repeats}")
    for name, seconds in times.items():
        median = statistics.median(seconds[2:])
        print(f"{name:50} {1e3 * median:8.1f} ms {size / 2**20 / median:8.0f} MiB/s")


if __name__ == "__main__":
    main()
