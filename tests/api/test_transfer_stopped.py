"""What a person sees when a diagnosis stops: scripts without their guard, errors in workers, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from toy_transfer import Known

from xferkit.runs.errors import RunError
from xferkit.transfer import diagnose, guard

TASKS = ("en", "de", "fr")

HEAD = """
import functools, os, sys, time
from xferkit.transfer import diagnose

def train(tasks, seed, data=b""):
    return {task: 0.5 + 0.01 * seed * len(tasks) for task in tasks}

def fails(tasks, seed):
    raise ZeroDivisionError("no batch")

def waits(tasks, seed):
    if seed == 2:
        open("waiting", "w").close()
        time.sleep(60)
    return train(tasks, seed)

"""


def started(folder: Path, body: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(HEAD + textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, "script.py"], cwd=folder, stdout=-1, stderr=-1, text=True, start_new_session=True
    )


def stderr(folder: Path, body: str) -> str:
    process = started(folder, body)
    try:
        _, text = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    return text


ADVICE = (
    "xferkit.runs.errors.RunError: workers import the script that starts them, and this one calls diagnose while it is "
    'imported; put the call under `if __name__ == "__main__":`, or use workers=0'
)


@pytest.mark.parametrize(
    "body",
    [
        'diagnose(train, ["en", "de", "fr"], 2, target="en", out="out", workers=2)\n',
        # More than a pipe holds: whoever writes it waits until it was read.
        """
        def main():
            large = functools.partial(train, data=bytes(10**6))
            diagnose(large, ["en", "de", "fr"], 2, target="en", out="out", workers=2)
        main()
        """,
    ],
)
def test_a_script_without_its_guard_gets_one_sentence(body, tmp_path) -> None:
    text = stderr(tmp_path, body)
    assert text.splitlines()[-1] == ADVICE
    assert text.count("Traceback") == 1 and "out of memory" not in text and "--workers" not in text
    assert not list((tmp_path / "out/runs").glob("*.json"))


def test_a_worker_of_something_else_refuses_too(monkeypatch) -> None:
    import multiprocessing

    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RunError, match="put the call under"):
        diagnose(Known(), TASKS, 1, workers=1)


def test_the_environment_is_left_as_it_was(monkeypatch) -> None:
    monkeypatch.setenv("XFER_UNGUARDED", "/of/an/outer/call")
    with pytest.raises(KeyError), guard.starting_workers():
        assert os.environ["XFER_UNGUARDED"] != "/of/an/outer/call"
        raise KeyError
    assert os.environ["XFER_UNGUARDED"] == "/of/an/outer/call"
    monkeypatch.delenv("XFER_UNGUARDED")
    with guard.starting_workers():
        folder = Path(os.environ["XFER_UNGUARDED"]).parent
        assert folder.is_dir()
    assert "XFER_UNGUARDED" not in os.environ and not folder.exists()


def test_a_pool_that_breaks_before_its_first_run_is_a_sentence() -> None:
    with (
        pytest.raises(RunError, match=r"was killed \(out of memory\?\) before it had a run"),
        guard.starting_workers(),
    ):
        raise BrokenProcessPool
    with pytest.raises(RunError, match="another"), guard.starting_workers():
        raise RunError("another")


def killed(tasks: tuple[str, ...], seed: int) -> dict[str, float]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_killed_worker_is_told_in_words_of_the_api() -> None:
    with pytest.raises(RunError, match=r"was killed .* fewer workers") as error:
        diagnose(killed, TASKS, 1, target="en", workers=1)
    assert "--" not in str(error.value)


def test_an_error_in_a_worker_shows_its_own_line(tmp_path) -> None:
    """The sentence stands last and stays one; above it is where the function raised."""
    body = """
    if __name__ == "__main__":
        diagnose(fails, ["en", "de", "fr"], 2, target="en", workers=1)
    """
    text = stderr(tmp_path, body)
    assert (
        text.splitlines()[-1]
        == "xferkit.runs.errors.RunError: the run en, seed 1 failed: ZeroDivisionError: no batch"
    )
    line = next(i for i, row in enumerate(HEAD.splitlines(), 1) if "no batch" in row)
    own = text.index(f'script.py", line {line}, in fails')
    assert own < text.index("was the direct cause of the following exception") < text.index("in <module>")


def divides(tasks: tuple[str, ...], seed: int) -> dict[str, float]:
    return {task: 1 / (len(tasks) - 1) for task in tasks}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_cause_of_a_failed_run_is_at_hand(workers) -> None:
    with pytest.raises(RunError, match=r"^the run en, seed 1 failed: ZeroDivisionError: [^\n]*$") as error:
        diagnose(divides, TASKS, 1, target="en", workers=workers)
    cause = error.value.__cause__
    assert cause is not None and "division" in str(cause)
    assert isinstance(cause, ZeroDivisionError) == (workers == 0)


# Ctrl-C


def stops_at_the_second_seed(tasks: tuple[str, ...], seed: int) -> dict[str, float]:
    if seed == 2:
        raise KeyboardInterrupt
    return dict.fromkeys(tasks, 0.5)


def test_ctrl_c_tells_what_is_kept(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt) as error:
        diagnose(stops_at_the_second_seed, TASKS, 2, target="en", out=tmp_path)
    assert error.value.__notes__ == [f"3 runs are kept in {tmp_path}; the same call goes on."]
    with pytest.raises(KeyboardInterrupt) as error:
        diagnose(stops_at_the_second_seed, ("en", "de"), [2, 1], target="en", out=tmp_path)
    assert error.value.__notes__ == [f"2 runs are kept in {tmp_path}; the same call goes on."]
    with pytest.raises(KeyboardInterrupt) as error:
        diagnose(stops_at_the_second_seed, TASKS, 2, target="en")
    assert not hasattr(error.value, "__notes__"), "nothing is kept without a folder"


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_at_the_terminal(workers, tmp_path) -> None:
    process = started(
        tmp_path,
        f"""
        if __name__ == "__main__":
            diagnose(waits, ["en", "de"], 2, target="en", out="out", workers={workers})
        """,
    )
    try:
        limit = time.monotonic() + 60
        while not (tmp_path / "waiting").exists() and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert text.splitlines()[-2:] == ["KeyboardInterrupt", "2 runs are kept in out; the same call goes on."]
    assert len(list((tmp_path / "out/runs").glob("*.json"))) == 2
