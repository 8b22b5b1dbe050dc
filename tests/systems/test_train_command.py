"""``xferkit train`` as a person runs it: in a process of its own, stopped, killed and started again."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "api")
)  # the toy languages live with the api's tests

from toy_runs import SMALL_MAN_MOE, make_tags, make_texts, options

from xferkit.runs.files import read_sealed
from xferkit.runs.folder import read_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_texts(folder)
    make_tags(folder)
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "xferkit", "train", "man-moe",
        "--train", f"en={data}/en.tsv", f"de={data}/de.tsv",
        "--unlabelled", f"es={data}/es.txt", "--test", f"es={data}/es_test.tsv",
        "--out", str(out), *options(SMALL_MAN_MOE), *more,
    ]  # fmt: skip


def variables(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def start(words: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables(**more),
        start_new_session=True,
        # A shell starts its background jobs, these tests among them perhaps, deaf to Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def finish(words: list[str], code: int = 0, **more: str) -> tuple[str, str]:
    process = start(words, **more)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    return output, errors


def digests(out: Path) -> dict[str, str]:
    """What a run leaves for good: the weights, and every number of its results but the times."""
    found = {}
    for seed in sorted(out.glob("seed-*")):
        weights = (seed / "model/model.safetensors").read_bytes()
        found[f"{seed.name} model"] = hashlib.sha256(weights).hexdigest()
        result = read_sealed(seed / "result.json")
        result.pop("seconds")
        found[f"{seed.name} result"] = repr(sorted(result.items()))
    return found


def until(condition, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


LONG = ("--steps", "60", "--trainer.checkpoint_every", "5", "--trainer.eval_every", "20")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that was left alone."""
    out = tmp_path_factory.mktemp("whole") / "run"
    output, errors = finish(command(data, out, *LONG))
    return out, output, errors


def test_without_a_config_a_run_trains_tests_and_says_how_to_go_on(whole, data):
    out, output, errors = whole
    assert "Task: classification (a text and its label a line" in errors
    assert (
        "held out as development data of en" in errors and "es.txt: 80 texts of es without labels." in errors
    )
    assert f"next: xferkit report {out}, or xferkit predict {out}/seed-1/model FILE" in errors
    assert "\x1b" not in output + errors, "no colours where no terminal is"
    lines = output.splitlines()
    assert lines[0].split()[:4] == ["set", "score", "mean", "sd"] and lines[-1].startswith(
        "test es  accuracy"
    )
    assert float(lines[-1].split()[3]) > 90 and read_run(out)["status"] == "finished"
    assert any("train 60/60  0 s left" in line for line in errors.splitlines())


def test_a_model_is_used_from_a_pipe(whole):
    out, _, _ = whole
    words = [sys.executable, "-m", "xferkit", "predict", str(out)]
    done = subprocess.run(
        words, input="good fine\nawful bad\n", capture_output=True, text=True, env=variables(), check=True
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["pos", "neg"] and done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_has_saved_and_goes_on(whole, data, tmp_path, number, code):
    out = tmp_path / "run"
    process = start(command(data, out, *LONG))
    until(
        lambda: (out / "seed-1/checkpoints").exists() and any((out / "seed-1/checkpoints").glob("step-*")),
        process,
    )
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "the same command goes on from there" in errors and "Traceback" not in errors
    content = read_run(out)
    assert content["status"] == "stopped" and not (out / "seed-1/result.json").exists()
    finish(command(data, out, *LONG))
    assert digests(out) == digests(whole[0])
    assert [s["status"] for s in read_run(out)["sessions"]] == ["stopped", "finished"]


def kill_until_done(words: list[str], out: Path, rng: random.Random, kills: int) -> int:
    """Kill -9 the command `kills` times at random moments of its work, starting it again each time."""
    done = 0
    for _ in range(kills):
        process = start(words)
        try:
            until(lambda: (out / "run.json").exists(), process)
            time.sleep(rng.uniform(0, 2.5))
        except AssertionError:
            if process.returncode != 0:
                raise
        # A group is gone once its leader has ended and was waited for: there is nothing left to kill.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            done += 1
        process.communicate()
    finish(words)
    return done


@pytest.mark.slow
def test_a_run_that_was_killed_ends_in_the_same_bits(whole, data, tmp_path):
    assert kill_until_done(command(data, tmp_path / "run", *LONG), tmp_path / "run", random.Random(1), 2) >= 1
    assert digests(tmp_path / "run") == digests(whole[0])


@pytest.mark.long
def test_runs_that_were_killed_often_end_in_the_same_bits(whole, data, tmp_path):
    rng, kills, number = random.Random(2), 0, 0
    while kills < 6:  # a fast machine has often finished before the next kill: then another run is begun
        out = tmp_path / f"run{number}"
        kills, number = kills + kill_until_done(command(data, out, *LONG), out, rng, 4), number + 1
        assert digests(out) == digests(whole[0])
        left = [p.name for p in out.rglob("*") if p.name.endswith((".tmp", ".corrupt"))]
        assert not left, "nothing half-written stays"
        assert number < 12, f"{kills} kills in {number} runs"


@pytest.mark.slow
def test_seeds_in_processes_are_the_seeds_of_one_process(whole, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    finish(command(data, one, *LONG, "--seeds", "1", "2", "3"))
    _, errors = finish(command(data, two, *LONG, "--seeds", "1", "2", "3", "--workers", "2"))
    assert "Seed 3 is being trained in process" in errors and "Seed 1 is done" in errors
    assert digests(one) == digests(two)
    assert {k: v for k, v in digests(one).items() if k.startswith("seed-1 ")} == digests(whole[0])
    assert read_run(one)["results"] == read_run(two)["results"]


@pytest.mark.slow
def test_stopping_workers_saves_all_of_them(whole, data, tmp_path):
    out = tmp_path / "run"
    words = command(data, out, *LONG, "--seeds", "1", "2", "--workers", "2")
    process = start(words)
    folders = [out / f"seed-{seed}/checkpoints" for seed in (1, 2)]
    until(lambda: all(any(folder.glob("step-*")) for folder in folders), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: everybody gets it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert read_run(out)["status"] == "stopped"
    assert not any(_runs_here(out))
    finish(words)
    assert {k: v for k, v in digests(out).items() if k.startswith("seed-1 ")} == digests(whole[0])


def _runs_here(out: Path):
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
                folder = os.readlink(entry / "cwd")
            except OSError:
                continue
            if str(out).encode() in words or folder == str(out):
                yield entry.name


@pytest.mark.slow
def test_a_killed_worker_is_named_and_the_run_goes_on(whole, data, tmp_path):
    out = tmp_path / "run"
    words = command(data, out, *LONG, "--seeds", "1", "--workers", "1")
    process = start(words)
    until(lambda: any((out / "seed-1/checkpoints").glob("step-*")), process)
    lock = (out / "seed-1/checkpoints/.lock").read_text()
    os.kill(int(lock.split()[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert (
        process.returncode == 1 and "the process of seed 1 was ended by signal 9 (out of memory?)" in errors
    )
    assert read_run(out)["status"] == "failed"
    finish(words)
    assert digests(out) == digests(whole[0])


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed(data, tmp_path):
    out = tmp_path / "run"
    process = start(
        command(data, out, "--steps", "5000", "--trainer.checkpoint_every", "5", "--workers", "1")
    )
    until(lambda: any((out / "seed-1/checkpoints").glob("step-*")), process)
    worker = int((out / "seed-1/checkpoints/.lock").read_text().split()[1])
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_bad_input_has_code_2_and_leaves_nothing(data, tmp_path):
    bad = tmp_path / "bad.tsv"
    bad.write_text("good\tpos\nno label here\n")
    words = command(data, tmp_path / "run")
    words[words.index(f"en={data}/en.tsv")] = f"en={bad}"
    _, errors = finish(words, 2)
    assert f"{bad}:2: " in errors and "Traceback" not in errors
    assert not any((tmp_path / "run").rglob("model*"))


@pytest.mark.slow
def test_a_terminal_gets_a_bar(data, tmp_path):
    """Under a pseudo-terminal, the bar shows steps and the time left, and the table has lines."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(data, tmp_path / "run", *LONG),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=variables(TERM="xterm-256color", COLUMNS="160"),
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        pass  # so a terminal ends
    os.close(ours)
    text = shown.decode(errors="replace")
    assert process.wait() == 0, text
    assert (
        "━" in text and "60/60" in text and "0:00:0" in text and "\x1b[" in text and "man-moe seed 1" in text
    )
    assert "test es" in text and "────" in text


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_two_processes_write_one_run(data, tmp_path, strategy):
    """Rank 0 alone writes; the saved model is whole and answers as it was tested."""
    from xferkit.runs.evaluation import evaluate_model
    from xferkit.runs.models import load_model

    out = tmp_path / "run"
    words = command(data, out, "--steps", "30", "--trainer.strategy", strategy)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        *words[1:],
    ]
    output, errors = finish(launch)
    assert errors.count("Task: classification") == 1 and output.count("test es") == 1
    session, *more = read_run(out)["sessions"]
    assert not more and session["ranks"] == 2 and read_run(out)["status"] == "finished"
    kept = read_sealed(out / "seed-1/result.json")["test"]["es"]
    again = evaluate_model(load_model(out), f"{data}/es_test.tsv").scores
    assert again.accuracy == kept["accuracy"] > 0.5
    output, errors = finish(launch)
    assert "All seeds are finished" in errors and len(read_run(out)["sessions"]) == 2
