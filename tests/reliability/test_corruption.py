"""Flipped bits, cut, grown and missing files: every one is found, named and survived."""

from __future__ import annotations

from pathlib import Path

import flip_bits
import pytest
from scenarios import IDENTITY

from xferkit.checkpoints import CheckpointStore, manifest


def _none_is_silent(flips: int, cuts: int, seed: int) -> None:
    planned, seen, silent = flip_bits.run(flips, cuts, seed)
    print(f"damaged checkpoints: planned {planned}, executed {seen.total()}, {dict(seen)}")
    assert silent == [] and seen.total() == planned == flips + cuts + 24
    assert seen["detected"] > 0.8 * planned and seen["harmless"] >= 12


def test_no_damage_is_silent() -> None:
    _none_is_silent(300, 60, seed=1)


@pytest.mark.long
def test_no_damage_is_silent_in_many_cases() -> None:
    _none_is_silent(10_000, 1_000, seed=2)


@pytest.mark.parametrize("skipped", ["checksum of the manifest", "checksum of the files"])
def test_the_flips_notice_when_a_check_is_missing(monkeypatch: pytest.MonkeyPatch, skipped: str) -> None:
    if skipped == "checksum of the files":
        monkeypatch.setattr("xferkit.checkpoints.tensor_file._CheckedFile.finish", lambda self: None)
    else:
        sealed = manifest._sealed

        class Anything(bytes):
            def __ne__(self, other: object) -> bool:
                return False

            def __eq__(self, other: object) -> bool:
                return True

            __hash__ = bytes.__hash__

        monkeypatch.setattr("xferkit.checkpoints.manifest._sealed", lambda head: Anything(sealed(head)))
    _, seen, silent = flip_bits.run(300, 0, seed=1)
    assert silent and seen["silent"]


def test_several_damaged_ones_are_passed_over_in_order(tmp_path: Path) -> None:
    warned: list[str] = []
    store = CheckpointStore(tmp_path, keep=4, warn=warned.append)
    with store.locked():
        paths = [store.save(step, {"step": step}, IDENTITY) for step in (1, 2, 3, 4)]
        (paths[3] / "tensors.safetensors").write_bytes(b"")
        (paths[2] / "state.json").unlink()
        found = store.load_newest(IDENTITY)
        assert found is not None and found.step == 2 and len(found.skipped) == len(warned) == 2
        assert "step-00000004/tensors.safetensors has 0 bytes, but" in found.skipped[0]
        assert "step-00000003/state.json is missing" in found.skipped[1]
        assert store.steps() == [1, 2]
        store.save(3, {"step": 3}, IDENTITY)
        assert store.steps() == [1, 2, 3]
