"""Two processes and one folder: one writes, the other says who; a dead one holds nothing; readers see whole states."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import HERE, state_hash
from scenarios import IDENTITY, saves, state_of

from xferkit.checkpoints import CheckpointError, CheckpointStore

HOLD = """
import os, sys, time
from pathlib import Path
from xferkit.checkpoints import CheckpointError, CheckpointStore
def main(folder, what):
    store = CheckpointStore(Path(folder))
    try:
        with store.locked():
            print("held", flush=True)
            if what == "fork" and os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            time.sleep(60)
    except CheckpointError as error:
        print(error, flush=True)
main(*sys.argv[1:])
"""


def _holder(folder: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), what],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()


@pytest.mark.parametrize("what", ["alone", "fork"])
def test_the_second_process_learns_who_writes_and_a_dead_one_holds_nothing(tmp_path: Path, what: str) -> None:
    process = _holder(tmp_path, what)
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        store = CheckpointStore(tmp_path)
        with pytest.raises(CheckpointError) as raised, store.locked():
            pass
        text = str(raised.value)
        assert f"{tmp_path} is being written to by process {process.pid} on {os.uname().nodename}" in text
        if what == "fork":
            time.sleep(0.3)  # its worker has been forked by now, and lives on
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with store.locked():
            store.save(1, {}, IDENTITY)
    finally:
        _end(process)


RACE = """
import os, sys
from pathlib import Path
from xferkit.checkpoints import CheckpointError, CheckpointStore

def contender(folder, start, report, done):
    store = CheckpointStore(folder)
    os.read(start, 1)  # until the parent lets both go
    try:
        with store.locked():
            os.write(report, b"held\\n")
            os.read(done, 1)  # held until the other has tried as well
    except CheckpointError as error:
        os.write(report, f"{error}\\n".encode())

for pair in range(20):
    (start, go), (results, report), (done, end) = os.pipe(), os.pipe(), os.pipe()
    children = []
    for _ in range(2):
        if (pid := os.fork()) == 0:
            os.close(go), os.close(end)
            contender(Path(sys.argv[1]) / str(pair), start, report, done)
            os._exit(0)
        children.append(pid)
    os.close(go)
    lines = b""
    while lines.count(b"\\n") < 2:
        lines += os.read(results, 1000)
    os.close(end)
    for pid in children:
        os.waitpid(pid, 0)
    first, second = sorted(lines.decode().splitlines(), key=len)
    winner = [pid for pid in children if f"process {pid} on" in second or "another process" in second]
    assert first == "held" and "is being written to by" in second and winner, (first, second)
    print("one won", flush=True)
"""


def test_of_two_that_start_together_exactly_one_wins(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0 and done.stdout == "one won\n" * 20, done.stdout + done.stderr


def test_one_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    store, other = CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    with store.locked():
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} on"), other.locked():
            pass
        with pytest.raises(RuntimeError):
            other.save(1, {}, IDENTITY)
        store.save(1, {}, IDENTITY)
    with other.locked():
        other.save(2, {}, IDENTITY)


def test_a_reader_sees_whole_states_while_another_process_saves(tmp_path: Path) -> None:
    last = 60
    folder, journal = tmp_path / "store", tmp_path / "journal"
    saves(str(folder), str(journal), 1, 2)
    call = f"scenarios.saves({str(folder)!r}, {str(journal)!r}, 3, {last})"
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import scenarios; {call}"
    writer = subprocess.Popen([sys.executable, "-c", code])
    warned: list[str] = []
    store = CheckpointStore(folder, warn=warned.append)
    steps, reads = set(), 0
    while writer.poll() is None:
        found = store.load_newest(IDENTITY)
        assert found is not None and state_hash(found.state) == state_hash(state_of(found.step))
        assert not found.skipped
        assert not steps or found.step >= max(steps)
        steps.add(found.step)
        reads += 1
    assert writer.returncode == 0 and not warned
    assert reads > 20 and len(steps) > 5, f"{reads} reads saw {len(steps)} steps"
