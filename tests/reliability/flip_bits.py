"""Damages checkpoints at random places and counts what goes unnoticed.

Usage: ``python tests/reliability/flip_bits.py --count 10000 [--truncations 1000] [--seed 0]``. Prints planned and
executed cases, how many were detected (file named, previous checkpoint used, damaged one kept as ``.corrupt``), how
many were harmless (an older checkpoint was hit; the newest came back equal) and how many were silent; exits with 1
unless that is 0.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import state_hash
from scenarios import IDENTITY, state_of

from xferkit.checkpoints import CheckpointError, CheckpointStore

OLD, NEW = 1, 2


@dataclass(frozen=True)
class Damage:
    """What happens to a file: ``"flip"`` (place is a bit), ``"cut"`` (place is a length), ``"grow"``, ``"delete"``."""

    kind: str
    file: Path
    place: int = 0

    def apply(self, content: bytes) -> bytes | None:
        """The damaged content; None for no file."""
        if self.kind == "flip":
            damaged = bytearray(content)
            damaged[self.place // 8] ^= 1 << (self.place % 8)
            return bytes(damaged)
        if self.kind == "cut":
            return content[: self.place]
        return content + b"\0" * self.place if self.kind == "grow" else None


def make_store(folder: Path) -> list[str]:
    """Checkpoints OLD and NEW; gives what the store warns of later."""
    warned: list[str] = []
    store = CheckpointStore(folder, warn=warned.append)
    with store.locked():
        for step in (OLD, NEW):
            store.save(step, state_of(step), IDENTITY)
    return warned


def damages(folder: Path, flips: int, cuts: int, seed: int) -> Iterator[Damage]:
    """Flips and cuts, nine of ten in the newest checkpoint; every file deleted, grown and emptied once.

    Half of the flips are spread over the bytes, half over the files, so that small files get their share.
    """
    files = sorted(p for p in folder.glob("step-*/*"))
    sizes = {p: p.stat().st_size for p in files}
    generator = random.Random(seed)

    def choose(by_size: bool) -> Path:
        step = NEW if generator.random() < 0.9 else OLD
        among = [p for p in files if p.parent.name.endswith(str(step))]
        return generator.choices(among, [sizes[p] for p in among] if by_size else None)[0]

    for number in range(flips):
        file = choose(number % 2 == 0)
        yield Damage("flip", file, generator.randrange(8 * sizes[file]))
    for _ in range(cuts):
        file = choose(False)
        yield Damage("cut", file, generator.randrange(sizes[file]))
    for file in files:
        yield from (
            Damage("delete", file),
            Damage("grow", file, 1),
            Damage("grow", file, 4096),
            Damage("cut", file, 0),
        )


def extra_cases(folder: Path) -> int:
    """Cases beside flips and cuts."""
    return 4 * len(list(folder.glob("step-*/*")))


def verdict(folder: Path, damage: Damage, hashes: dict[int, str]) -> str:
    """``"detected"``, ``"harmless"`` or a sentence that begins with ``"silent"``; undoes the damage afterwards."""
    content = damage.file.read_bytes()
    damaged = damage.apply(content)
    assert damaged != content
    if damaged is None:
        damage.file.unlink()
    else:
        damage.file.write_bytes(damaged)
    warned: list[str] = []
    store = CheckpointStore(folder, warn=warned.append)
    checkpoint = damage.file.parent
    aside = checkpoint.with_name(checkpoint.name + ".corrupt")
    try:
        try:
            with store.locked():
                found = store.load_newest(IDENTITY)
        except CheckpointError as error:
            return f"silent: {damage} was taken for something else than damage: {error}"
        where = f"{damage} gave step {found and found.step}, {warned}"
        if found is None or hashes.get(found.step) != state_hash(found.state):
            return f"silent: {where}"
        if found.step == NEW:
            return "harmless" if checkpoint.name.endswith(str(OLD)) and not warned else f"silent: {where}"
        kept = aside / damage.file.name
        same = not kept.exists() if damaged is None else kept.read_bytes() == damaged
        named = len(warned) == 1 and str(damage.file) in warned[0] and found.skipped
        return "detected" if named and same and not checkpoint.exists() else f"silent: {where}"
    finally:
        if aside.exists():
            os.rename(aside, checkpoint)
        damage.file.write_bytes(content)


def run(flips: int, cuts: int, seed: int) -> tuple[int, Counter[str], list[str]]:
    """Planned cases, executed ones by verdict, and the silent ones."""
    memory = Path("/dev/shm")  # the flushes of a disk would take most of the time
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        return _run(Path(folder) / "store", flips, cuts, seed)


def _run(folder: Path, flips: int, cuts: int, seed: int) -> tuple[int, Counter[str], list[str]]:
    make_store(folder)
    hashes = {step: state_hash(state_of(step)) for step in (OLD, NEW)}
    planned = flips + cuts + extra_cases(folder)
    seen: Counter[str] = Counter()
    silent = []
    for damage in damages(folder, flips, cuts, seed):
        answer = verdict(folder, damage, hashes)
        seen[answer.split(":")[0]] += 1
        if answer.startswith("silent"):
            silent.append(answer)
    return planned, seen, silent


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="one-bit flips")
    parser.add_argument("--truncations", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    planned, seen, silent = run(options.count, options.truncations, options.seed)
    print(
        f"planned {planned}, executed {seen.total()} ({options.count} flips, {options.truncations} truncations, seed "
        f"{options.seed}): detected {seen['detected']}, harmless {seen['harmless']}, silent {seen['silent']}, "
        f"{time.monotonic() - start:.0f} s"
    )
    print("\n".join(silent[:20]))
    return 0 if planned == seen.total() and not silent else 1


if __name__ == "__main__":
    sys.exit(main())
