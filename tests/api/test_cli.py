"""The command line before it does anything: help, misspelt words, exit codes, what it loads, what it prints."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from xferkit.cli import console, main
from xferkit.cli.errors import Terminated, guarded

COMMANDS = ("train", "evaluate", "predict", "report", "table", "doctor", "demo")
HEAVY = (
    "torch",
    "jsonargparse",
    "accelerate",
    "scipy",
    "numpy",
    "jinja2",
    "rich",
    "tqdm",
    "yaml",
    "matplotlib",
)


def variables(**more: str) -> dict[str, str]:
    """The environment of a process that imports what this one does."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def xferkit(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xferkit", *words]
    return subprocess.run(command, capture_output=True, text=True, env=variables(), check=False, **options)


# -- help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(words, capsys):
    code = (
        "import sys; from xferkit.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as stop: print(stop.code, sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables(), check=True
    )
    *shown, last = done.stdout.splitlines()
    assert last.startswith("0 ") and any("usage: xferkit" in line for line in shown)
    for name in HEAVY:
        assert f"'{name}'" not in last, f"{words} loads {name}"


def test_help_takes_less_than_half_a_second():
    def measure() -> float:
        start = time.perf_counter()
        assert xferkit("--help").returncode == 0
        return time.perf_counter() - start

    # The best of some: what else the machine is doing is no business of this test.
    assert min(measure() for _ in range(5)) < 0.5


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for command in COMMANDS:
        assert f"\n    {command} " in shown


# -- misspelt words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian' (choose from 'train'"),
        (["train"], "a METHOD or a --config is missing"),
        (["doctor", "--fodler", "x"], "unknown option --fodler; the nearest is --folder"),
        (["doctor", "x"], "unexpected argument 'x'"),
        (["predict"], "the following arguments are required: MODEL"),
        (["predict", "m", "--overwirte"], "unknown option --overwirte; the nearest is --overwrite"),
        (["predict", "m", "--zzz"], "unknown option --zzz (see"),
        (["evaluate", "m", "f", "--batch_size", "0"], "expected texts, 1 or more, got '0'"),
        (["report", "--open"], "the following arguments are required: RUN"),
    ],
)
def test_bad_words_get_one_sentence_and_code_2(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    shown = capsys.readouterr()
    assert stop.value.code == 2 and shown.out == ""
    assert sentence in shown.err and shown.err.count("\n") == 1


def test_options_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--fold", "x"])
    assert "unknown option --fold; the nearest is --folder" in capsys.readouterr().err


# -- exit codes ------------------------------------------------------------------------------------------------


class Stopped(Exception):
    exit_code = 143


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("one.tsv:3: no label;\n expected one"), 2, "p: one.tsv:3: no label; expected one\n"),
        (FileNotFoundError(2, "No such file or directory", "a.tsv"), 2, "p: a.tsv: No such file"),
        (OSError(28, "No space left on device", "run"), 1, "p: run: No space left on device; free some"),
        (RuntimeError("it broke"), 1, "p: it broke\n"),
        (FloatingPointError("the loss is nan"), 1, "p: the loss is nan\n"),
        (MemoryError(), 1, "p: out of memory"),
        (KeyboardInterrupt(), 130, "p: stopped\n"),
        (Terminated(), 143, "p: stopped by SIGTERM\n"),
        (Stopped("stopped after step 3"), 143, "p: stopped after step 3\n"),
    ],
)
def test_every_exception_has_a_code_and_a_sentence(error, code, sentence, capsys):
    def fail() -> int:
        raise error

    assert guarded("p", fail) == code
    shown = capsys.readouterr().err
    assert shown.startswith(sentence) and shown.count("\n") == 1


def test_what_nobody_foresaw_shows_where_it_came_from(capsys):
    def fail() -> int:
        raise KeyError("x")

    assert guarded("p", fail) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "in fail" in shown and shown.endswith("p: unforeseen KeyError: 'x'\n")


def test_debugging_shows_where_a_sentence_came_from(capsys, monkeypatch):
    monkeypatch.setenv("XFER_DEBUG", "1")

    def fail() -> int:
        raise ValueError("wrong")

    assert guarded("p", fail) == 2
    assert "in fail" in capsys.readouterr().err


def test_a_reader_that_has_gone_ends_the_command_without_noise():
    code = (
        "import sys\n"
        "from xferkit.cli.errors import guarded\n"
        "def write():\n"
        "    while True: print('x' * 1000)\n"
        "sys.exit(guarded('p', write))"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables())
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 141 and errors == b""


def test_sigterm_ends_a_command_with_143():
    code = (
        "import sys, time\n"
        "from xferkit.cli import commands, main\n"
        "def wait(arguments):\n"
        "    print('waiting', flush=True); time.sleep(60)\n"
        "commands.doctor = wait\n"
        "sys.exit(main(['doctor']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables(),
        text=True,
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and errors == "xferkit doctor: stopped by SIGTERM\n"


# -- what is printed -------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tables_are_plain_where_nobody_looks(capsys):
    console.show_table(["language", "score"], [["es", "0.5"], ["a [bold]name[/]", "12.25"]], numbers=1)
    assert (
        capsys.readouterr().out == "language         score\nes                 0.5\na [bold]name[/]  12.25\n"
    )


def test_terminals_get_colours_unless_they_ask_for_none(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for plain in (False, True):
        if plain:
            monkeypatch.setenv("NO_COLOR", "1")
        errors, shown = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stderr", errors)
        monkeypatch.setattr(sys, "stdout", shown)
        console.warn("careful")
        console.show_table(["a"], [["[x]"]])
        assert errors.getvalue().endswith("careful\n") and ("\x1b" in errors.getvalue()) != plain
        assert "[x]" in shown.getvalue()


# -- doctor ----------------------------------------------------------------------------------------------------


def test_doctor_examines_every_op_and_finds_nothing(tmp_path, capsys):
    import xfercore.ops

    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    for op in xfercore.ops.__all__:
        assert f"{op} on CPU: " in shown.out
        assert f"{op} on cpu: agrees with its definition" in shown.out
    assert shown.out.endswith("Everything is in order.\n") and shown.err == ""
    assert not list(tmp_path.iterdir())


def test_doctor_says_what_is_broken(tmp_path, capsys, monkeypatch):
    import xfercore

    true = xfercore.gated_mix

    def wrong(*args, **kwargs):
        mixed, nll = true(*args, **kwargs)
        return mixed * 1.001, nll

    monkeypatch.setattr(xfercore, "gated_mix", wrong)
    assert main(["doctor", "--folder", str(tmp_path), "--json"]) == 1
    shown = capsys.readouterr()
    assert "xferkit doctor: gated_mix on cpu does not agree with its definition: output 0" in shown.err
    found = json.loads(shown.out)
    assert len(found["broken"]) == 1 and found["broken"][0] in shown.err
    assert sum(f["problem"] is not None for f in found["findings"]) == 1


def test_doctor_wants_a_folder_it_can_write_to(tmp_path, capsys):
    assert main(["doctor", "--folder", str(tmp_path / "none")]) == 1
    assert f"cannot write to {tmp_path / 'none'}: No such file" in capsys.readouterr().err


def test_the_self_test_knows_every_op():
    import xfercore.ops
    from xferkit.runs.doctor import ARRANGED
    from xferkit.runs.selftest import SAMPLES

    assert set(SAMPLES) == set(xfercore.ops.__all__)
    assert set(ARRANGED) <= set(SAMPLES)


@pytest.mark.parametrize(("forced", "words"), [("portable", "asks for it"), ("mmx", "counts for nothing")])
def test_doctor_says_why_a_kernel_was_chosen(forced, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "xferkit", "doctor", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        env=variables(XFER_CPU_ISA=forced),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "gated_mix on CPU" in line)
    assert f"XFER_CPU_ISA={forced}" in line and words in line


# -- bars ------------------------------------------------------------------------------------------------------


def test_large_files_get_a_bar_and_small_ones_none(monkeypatch):
    from xferkit.cli.progress import counting_bar, reading_bars

    plain, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stderr", plain)
    with reading_bars() as watch, counting_bar() as count:
        assert watch("a.tsv") is None and count is None
    monkeypatch.setattr(sys, "stderr", terminal)
    with reading_bars() as watch:
        small, large = watch("small.tsv"), watch("folder/large.tsv")
        small(10, 1000)
        assert terminal.getvalue() == ""
        large(2**24, 2**25)
        assert "large.tsv: " in terminal.getvalue() and "33.6M" in terminal.getvalue()
        large(2**25, 2**25)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with counting_bar() as count:
        count(1500)
    assert "1.50k texts" in terminal.getvalue()
