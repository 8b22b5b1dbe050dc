"""Which checkpoints stay, which are refused, what damage does, and what is said when there is no room."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import IDENTITY, state_of

from xferkit.checkpoints import (
    CheckpointError,
    CheckpointStore,
    DamagedError,
)
from xferkit.checkpoints.manifest import MANIFEST_NAME, SCHEMA, _sealed


def test_two_newest_stay_and_older_ones_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    with store.locked():
        for step in (1, 2, 5, 7, 7, 9):
            path = store.save(step, state_of(step), IDENTITY)
    assert path.name == "step-00000009"
    assert sorted(p.name for p in tmp_path.glob("s*")) == [
        "step-00000007",
        "step-00000007-2",
        "step-00000009",
    ]
    assert store.steps() == [7, 9]
    with pytest.raises(ValueError, match="keep must be at least 2, got 1"):
        CheckpointStore(tmp_path, keep=1)


def test_the_same_step_again_is_newer_and_an_earlier_one_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        for value in range(12):
            store.save(4, {"value": value}, IDENTITY)
        with pytest.raises(CheckpointError, match=r"step-00000004-12 is newer than step 3; move it away"):
            store.save(3, {"value": -1}, IDENTITY)
    found = store.load(4, IDENTITY)
    assert found.state == {"value": 11} and found.path.name == "step-00000004-12"
    with pytest.raises(CheckpointError, match="has no checkpoint of step 9; there are: 4"):
        store.load(9, IDENTITY)


@pytest.mark.parametrize("step", [-1, 1.0, True, "1", 10**18])
def test_a_step_must_be_a_number(tmp_path: Path, step: Any) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked(), pytest.raises(CheckpointError, match="step must be an integer from 0"):
        store.save(step, {}, IDENTITY)


def test_another_identity_is_refused_and_nothing_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        store.save(1, {"a": 1}, IDENTITY)
        store.save(2, {"a": 1}, IDENTITY | {"data": "4567"})
        with pytest.raises(CheckpointError, match=r"data is '4567', expected '0123'; nothing was loaded"):
            store.load_newest(IDENTITY)
        with pytest.raises(CheckpointError, match="seed is not recorded, expected '1'"):
            store.load_newest(IDENTITY | {"data": "4567", "seed": "1"})
        with pytest.raises(CheckpointError, match="model is 'toy-1', expected not recorded"):
            store.load_newest({"data": "4567"})
        with pytest.raises(CheckpointError, match="keys and values of an identity must be strings"):
            store.save(3, {}, {"data": 4})  # type: ignore[dict-item]
        found = store.load_newest(None)
    assert found is not None and found.step == 2
    assert sorted(p.name for p in tmp_path.glob("s*")) == ["step-00000001", "step-00000002"]


def test_a_newer_schema_is_refused_by_its_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        store.save(1, {"a": 1}, IDENTITY)
        path = store.save(2, {"a": 2}, IDENTITY) / MANIFEST_NAME
        head = path.read_bytes()[: -len(_sealed(b""))]
        path.write_bytes(_sealed(head.replace(b'"schema": 1', b'"schema": 17')))
        with pytest.raises(
            CheckpointError, match=f"has schema 17, this version reads up to {SCHEMA}; use the one"
        ) as raised:
            store.load_newest(IDENTITY)
        assert not isinstance(raised.value, DamagedError)
        path.write_bytes(_sealed(head.replace(b'"schema": 1', b'"schema": 0')))
        with pytest.warns(UserWarning, match="schema is '0', expected a number from 1"):
            found = store.load_newest(IDENTITY)
    assert found is not None and found.step == 1


def test_all_damaged_is_an_error_and_no_new_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        for step in (1, 2):
            (store.save(step, {"a": 1}, IDENTITY) / "state.json").write_text("{}")
        for _ in range(2):  # the second start says the same
            with pytest.raises(CheckpointError, match="has no valid checkpoint left") as raised:
                store.load_newest(IDENTITY)
            assert all(f"step-0000000{n}/state.json" in str(raised.value) for n in (1, 2))
    assert store.steps() == [1, 2]


def test_damage_is_moved_aside_by_the_holder_of_the_lock_alone(tmp_path: Path) -> None:
    warned: list[str] = []
    store = CheckpointStore(tmp_path, warn=warned.append)
    with store.locked():
        store.save(1, {"a": 1}, IDENTITY)
        (store.save(2, {"a": 2}, IDENTITY) / MANIFEST_NAME).unlink()
    found = store.load_newest(IDENTITY)
    assert found is not None and found.step == 1 and "manifest.json is missing" in found.skipped[0]
    assert "left in place" in warned[0] and store.steps() == [1, 2]
    with store.locked():
        assert store.load_newest(IDENTITY) is not None
        assert "passed over for step 1 (kept as step-00000002.corrupt)" in warned[1]
        (store.save(2, {"a": 2}, IDENTITY) / "state.json").write_text("{}")
        store.load_newest(IDENTITY)
        store.save(2, {"a": 2}, IDENTITY)
        found = store.load_newest(IDENTITY)
    assert found is not None and found.state == {"a": 2} and len(warned) == 3
    names = sorted(p.name for p in tmp_path.glob("s*"))
    assert names == ["step-00000001", "step-00000002", "step-00000002.corrupt", "step-00000002.corrupt.1"]


def test_saving_needs_the_lock_and_the_lock_clears_left_overs(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(RuntimeError, match="hold the folder with locked"):
        store.save(1, {}, IDENTITY)
    (tmp_path / ".step-00000003.elsewhere-12.tmp").mkdir()
    (tmp_path / ".step-00000003.elsewhere-12.tmp/state.json").write_text("half")
    (tmp_path / "step-notes").mkdir()
    with store.locked():
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "step-notes"]
        assert store.load_newest(IDENTITY) is None


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = CheckpointStore(tmp_path / "store")
        with store.locked():
            path = store.save(1, {"w": torch.zeros(3)}, IDENTITY)
    finally:
        os.umask(before)
    for file in path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask


def test_no_room_is_said_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        store.save(1, {"w": torch.zeros(10)}, IDENTITY)
        monkeypatch.setattr("xferkit.checkpoints.folder.free_bytes", lambda folder: 50_000)
        with pytest.raises(CheckpointError) as raised:
            store.save(2, {"w": torch.zeros(100_000)}, IDENTITY)
        needed = int(str(raised.value).split(" bytes are needed")[0].split()[-1])
        assert "step-00000002 was not written" in str(raised.value) and "50000 are free" in str(raised.value)
        assert 400_000 < needed < 430_000
        assert store.steps() == [1] and not list(tmp_path.glob(".step*"))
        monkeypatch.undo()
        store.save(2, {"w": torch.zeros(100_000)}, IDENTITY)


SMALL_DISK = """
import sys, torch
from pathlib import Path
from xferkit.checkpoints import CheckpointError, CheckpointStore
import xferkit.checkpoints.folder as folder
if sys.argv[2] == "late":
    folder.free_bytes = lambda path: 2**60  # as when another process takes the room meanwhile
store = CheckpointStore(Path(sys.argv[1]))
with store.locked():
    store.save(1, {"w": torch.zeros(2**20)}, {})
    ballast = Path(sys.argv[1]) / "ballast"
    ballast.write_bytes(bytes(9 * 2**20))
    try:
        store.save(2, {"w": torch.ones(2**20)}, {})
        raise SystemExit("saved 4 MiB on a disk with 3")
    except CheckpointError as error:
        print(error)
    assert store.load_newest({}).step == 1 and not list(Path(sys.argv[1]).glob(".step*"))
    ballast.unlink()
    store.save(2, {"w": torch.ones(2**20)}, {})
    assert store.load_newest({}).state["w"].sum() == 2**20
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_disk_that_is_really_full(tmp_path: Path, when: str) -> None:
    """16 MiB of tmpfs in a mount namespace of its own; room is made and the save tried again in the same process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=16m none "{disk}" && exec "$0" "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount]
    try:
        probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if probe.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {probe.stderr.strip()[:100]}")
    code = [sys.executable, "-c", SMALL_DISK, str(disk), when]
    done = subprocess.run([*command, *code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(disk / "step-00000002") in done.stdout and "bytes are needed and" in done.stdout
    assert ("No space left on device (errno 28)" in done.stdout) == (when == "late")


def test_unreadable_and_misplaced_files_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file could not be made: File exists"):
        CheckpointStore(tmp_path / "file")
    store = CheckpointStore(tmp_path / "store")
    with store.locked():
        path = store.save(1, {"a": 1}, IDENTITY)
        path.rename(path.with_name("step-00000009"))
        with pytest.raises(CheckpointError, match="step-00000009 holds the checkpoint of step 1"):
            store.load_newest(IDENTITY)
