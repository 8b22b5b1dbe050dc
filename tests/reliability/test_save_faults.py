"""A save whose every I/O call is killed, torn, refused or broken in turn: no state is ever lost, no save lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import FaultServer, planned, state_hash
from scenarios import IDENTITY, saves, state_of

from xferkit.checkpoints import CheckpointStore, open_folder

MODES = ("kill", "torn", "full", "broken", "short")


def _start(tmp_path: Path) -> Path:
    """A folder with checkpoints 1 and 2, so that the next save has something to remove."""
    template = tmp_path / "template"
    saves(str(template), str(tmp_path / "template-journal"), 1, 2)
    return template


def _fresh(tmp_path: Path, template: Path) -> tuple[Path, Path]:
    folder, journal = tmp_path / "run", tmp_path / "journal"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    journal.write_text("2\n")
    return folder, journal


def _check(folder: Path, journal: Path, last: int) -> None:
    """The newest state is one that was saved, none older than the last save that returned; saving goes on."""
    returned = int(journal.read_text().split()[-1])
    warned: list[str] = []
    store = CheckpointStore(folder, warn=warned.append)
    with store.locked():
        found = store.load_newest(IDENTITY)
        assert found is not None, "no checkpoint left"
        assert returned <= found.step <= last, f"step {returned} was saved, {found.step} was found"
        assert state_hash(found.state) == state_hash(state_of(found.step)), "the state is not the one saved"
        assert not warned and not found.skipped
        left = [p.name for p in folder.iterdir() if p.name.startswith(".") and p.name != ".lock"]
        assert not left and not list(folder.glob("*.corrupt*"))
        store.save(last + 1, state_of(last + 1), IDENTITY)
        assert store.steps()[-1] == last + 1


def _every_point(server: FaultServer, tmp_path: Path, last: int, modes: tuple[str, ...]) -> None:
    template = _start(tmp_path)
    folder, journal = _fresh(tmp_path, template)
    args = {"journal": str(journal), "first": 3, "last": last, "retry": True}
    clean = server.run("scenarios:saves", folder, **args)
    assert clean.status == 0 and journal.read_text().split()[-1] == str(last), clean
    points = clean.count
    assert points >= 30, "the fault library sees fewer calls than a save makes"
    with planned(points * len(modes), f"{last - 2} saves, {points} I/O points x {len(modes)} modes") as done:
        for mode in modes:
            for k in range(1, points + 1):
                folder, journal = _fresh(tmp_path, template)
                outcome = server.run("scenarios:saves", folder, k=k, mode=mode, **args)
                where = f"{mode} at call {k} of {points}: {outcome}"
                if mode in ("kill", "torn"):
                    assert outcome.status == -9 and not outcome.timed_out, where
                else:
                    assert outcome.status == 0 and outcome.fired, where
                    for text in outcome.value["errors"] + outcome.value["warned"]:
                        assert str(folder) in text and "(errno " in text, where
                    if mode == "full":
                        assert all("No space left" in text for text in outcome.value["errors"]), where
                    if mode == "short":
                        assert not outcome.value["errors"], where
                try:
                    _check(folder, journal, last)
                except Exception as error:
                    raise AssertionError(f"{where}: {error}") from error
                done.append(None)


def test_a_fault_at_every_call_of_a_save_loses_nothing(server: FaultServer, tmp_path: Path) -> None:
    _every_point(server, tmp_path, 3, MODES)


@pytest.mark.long
def test_a_fault_at_every_call_of_four_saves_loses_nothing(server: FaultServer, tmp_path: Path) -> None:
    _every_point(server, tmp_path, 6, MODES)


def test_the_first_save_can_die_anywhere(server: FaultServer, tmp_path: Path) -> None:
    folder, journal = tmp_path / "run", tmp_path / "journal"
    args = {"journal": str(journal), "first": 1, "last": 1}
    points = server.run("scenarios:saves", folder, **args).count
    with planned(points, f"first save, {points} I/O points") as done:
        for k in range(1, points + 1):
            shutil.rmtree(folder, ignore_errors=True)
            journal.unlink(missing_ok=True)
            assert server.run("scenarios:saves", folder, k=k, mode="kill", **args).status == -9
            store = CheckpointStore(folder)
            with store.locked():
                found = store.load_newest(IDENTITY)
                assert (found is None) <= (not journal.exists()), f"a save returned, but call {k} lost it"
                store.save(2, state_of(2), IDENTITY)
            done.append(None)


def test_a_disk_that_drops_writes_is_found_out_by_the_save_itself(
    server: FaultServer, tmp_path: Path
) -> None:
    """A write that says it is done and is not: reading back before the rename must notice."""
    template = _start(tmp_path)
    folder, journal = _fresh(tmp_path, template)
    args = {"journal": str(journal), "first": 3, "last": 3}
    log = tmp_path / "log"
    server.run("scenarios:saves", folder, log=log, **args)
    writes = [n for n, line in enumerate(log.read_text().splitlines(), 1) if "\twrite\t" in line]
    of_the_lock, of_the_save = writes[:1], writes[1:]
    assert len(of_the_save) >= 3
    for k in of_the_save:
        folder, journal = _fresh(tmp_path, template)
        outcome = server.run("scenarios:saves", folder, k=k, mode="lie", **args)
        assert outcome.status == 3 and ("Checkpoint" in outcome.error or "Damaged" in outcome.error), outcome
        _check(folder, journal, 3)
    assert of_the_lock


def test_replacing_a_model_folder_leaves_the_old_or_the_new_one(server: FaultServer, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = server.run("scenarios:replace_model", folder, text="old")
    points = server.run("scenarios:replace_model", folder, text="newer").count
    assert first.status == 0 and points > 20
    with planned(points * 3, f"replacing a folder, {points} I/O points x 3 modes") as done:
        for mode in ("kill", "torn", "broken"):
            for k in range(1, points + 1):
                shutil.rmtree(folder, ignore_errors=True)
                server.run("scenarios:replace_model", folder, text="old")
                outcome = server.run("scenarios:replace_model", folder, k=k, mode=mode, text="newer")
                model = open_folder(folder / "model", kind="model")
                text = model.bytes("config.json").decode()
                assert text in ("old", "newer") and (outcome.status or text == "newer"), (mode, k, outcome)
                assert float(model.tensors("model.safetensors")["w"][0]) == len(text)
                assert server.run("scenarios:replace_model", folder, text="newest").status == 0
                assert [p.name for p in folder.iterdir()] == ["model"], (mode, k, outcome)
                done.append(None)
