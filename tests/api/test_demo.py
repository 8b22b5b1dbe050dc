"""The demo: plan, workers, resuming, Ctrl-C and the command line, with a stand-in for training."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("babel", reason="the demo's names come with its extra")

from xferkit.cli import main
from xferkit.data import ENGLISH_PANEL, same_convention_sources
from xferkit.demo import DemoError, environment, run_demo
from xferkit.demo.plan import METHODS, PRESETS, CellSpec, Preset, plan_cells, plan_similarity
from xferkit.demo.pool import run_cells
from xferkit.demo.progress import RemainingTime, make_progress
from xferkit.demo.store import CellOutcome

TINY = Preset(
    "tiny", {"es": 2}, ("pooled", "same_convention", "language_gate"), ("pooled", "same_convention"), 3
)
SPEC = CellSpec("es", "moe", 1, ("en", "fr"), steps=7)
OUTCOME = CellOutcome(0.5, 0.25, 1.5, {"en": 0.75, "fr": 0.25}, 7, {"task": 0.1, "gate": None})

#: A module of its own, so that spawned workers can import what they are to run.
FAKE = """
import os, time
from pathlib import Path
from xferkit.demo.store import CellOutcome, SimilarityOutcome

def compute(spec, data):
    names = data.test(spec.target)
    gate = {lang: 1 / len(spec.sources) for lang in spec.sources} if "gate" in spec.method else None
    score = (len(spec.method) + spec.seed) / 40 + 0.1 * any(map(str.isupper, names.texts[0]))
    return CellOutcome(score, score / 2, 0.01, gate, spec.steps, {"task": 1.0})

def measure(spec, data):
    rows = [(a, b) for a in range(len(spec.languages)) for b in range(a)]
    lower = all(map(str.islower, data.test("de").texts[0]))
    pairs = tuple(((a + b + spec.seed) % 3 - 1) / (4 if lower else 2) for a, b in rows)
    course = {str(step): pairs for step in (*spec.course, *spec.focus)}
    samples = {str(size): pairs for size in spec.samples}
    return SimilarityOutcome(pairs, {"shared.hidden": pairs}, samples, course, 0.01, spec.steps, {"task": 1.0})

def slow(spec, data):
    time.sleep(0.4)
    return compute(spec, data)

def killed(spec, data):
    if spec.method == "language_gate":
        os._exit(9)
    return compute(spec, data)

def pid(spec, data):
    Path(os.environ["PIDS"], f"{os.getpid()}").write_text(os.environ["OMP_NUM_THREADS"])
    return slow(spec, data)
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake")
    (folder / "fake_cells.py").write_text(FAKE)
    sys.path.insert(0, str(folder))
    import fake_cells

    yield fake_cells
    sys.path.remove(str(folder))
    del sys.modules["fake_cells"]


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr("xferkit.demo.output._write_pngs", lambda *a: None)  # the report's tests draw them
    # The real hash changes when somebody builds or edits while the tests run.
    monkeypatch.setattr("xferkit.demo.run.code_fingerprint", lambda: "0" * 64)


# -- plan ----------------------------------------------------------------------------------------------------


def test_full_plan():
    cells = plan_cells(PRESETS["full"])
    assert len(cells) == len(set(cells)) == (10 + 3) * (5 + 3)
    spanish = [cell for cell in cells if cell.target == "es"]
    assert {cell.seed for cell in spanish} == set(range(5))
    assert {cell.method for cell in cells} == {method.name for method in METHODS}
    for cell in cells:
        if cell.method == "own":
            assert cell.sources == (cell.target,) and not cell.lowercase
        else:
            assert cell.target not in cell.sources
        if cell.method == "same_convention":
            assert cell.sources == same_convention_sources(cell.target)
    assert {c.sources for c in cells if c.target == "en" and c.method == "pooled"} == {ENGLISH_PANEL}
    assert {c.method for c in cells if c.lowercase} == {"pooled", "same_convention", "language_gate"}


def test_similarity_plan():
    plan = plan_similarity(PRESETS["full"])
    assert len(plan) == len(set(plan)) == 2 * PRESETS["full"].similarity_seeds
    assert all(len(spec.languages) == 23 and spec.focus == (148, 149, 150, 151, 152) for spec in plan)
    assert {spec.course[0] for spec in plan} == {1} and {spec.course[-1] for spec in plan} == {400}
    assert [spec.lowercase for spec in plan[:2]] == [False, True]
    assert all(bool(spec.samples) != spec.lowercase for spec in plan)
    assert plan_similarity(TINY) == ()
    few = plan_similarity(replace(TINY, similarity_seeds=1, similarity_course=(0.0, 1.0)))
    assert [(spec.focus, spec.course) for spec in few] == [((1, 2, 3), ())] * 2
    assert plan[1].describe() == "gradients lower-cased seed 0" and plan[1].method == "similarity"


def test_small_plan_trains_every_method():
    cells = plan_cells(PRESETS["small"])
    assert {cell.target for cell in cells} == {"es"}
    assert {cell.method for cell in cells} == {method.name for method in METHODS}
    assert sum(cell.steps for cell in cells) < 0.05 * sum(cell.steps for cell in plan_cells(PRESETS["full"]))


# -- workers -------------------------------------------------------------------------------------------------


def test_workers_give_what_one_process_gives(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("PIDS", str(tmp_path))
    from xferkit.data import load_names

    cells = plan_cells(TINY)
    names = tuple(dict.fromkeys(lang for cell in cells for lang in (cell.target, *cell.sources)))
    data = {case: load_names(names, lowercase=case) for case in (False, True)}

    def collect(run, workers):
        started, found = [], {}
        run_cells(cells, data, workers=workers, started=started.append, finished=found.__setitem__, run=run)
        assert started == list(cells)
        return found

    assert collect(fake.pid, 2) == collect(fake.compute, 0)
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and {file.read_text() for file in files} == {"1"}, "two workers of one thread"
    assert all(not _alive(int(file.name)) for file in files)
    assert os.environ.get("OMP_NUM_THREADS") == _OMP


_OMP = os.environ.get("OMP_NUM_THREADS")


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_is_told(fake, tmp_path):
    with pytest.raises(DemoError, match=r"a worker process was killed .*es language_gate seed 0"):
        run_demo(tmp_path, TINY, workers=1, run=fake.killed)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2


# -- the whole -----------------------------------------------------------------------------------------------


class Counting:
    def __init__(self, compute, fail=()):
        self.compute, self.fail, self.specs = compute, fail, []

    def __call__(self, spec, data):
        self.specs.append(spec)
        if spec.method in self.fail:
            raise FloatingPointError("loss is not finite")
        return self.compute(spec, data)


def test_demo_resumes_and_repairs(fake, tmp_path, capsys):
    broken = Counting(fake.compute, fail=("language_gate",))
    with pytest.raises(
        DemoError, match="the run es language_gate seed 0 failed: FloatingPointError: loss is not"
    ):
        run_demo(tmp_path, TINY, workers=0, run=broken)
    assert len(broken.specs) == 3

    second = Counting(fake.compute)
    page = run_demo(tmp_path, TINY, workers=0, run=second)
    assert page == tmp_path / "report.html" and len(second.specs) == 10 - 2
    said = capsys.readouterr().err
    assert "2 of 10 runs are finished already" in said
    assert all(f"\n{word}: " in said for word in ("What helped", "What did not", "Why"))
    first_page = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))

    third = Counting(fake.compute)
    damaged = next((tmp_path / "cells").glob("es-pooled-s1-*.json"))
    damaged.write_text("{")
    run_demo(tmp_path, TINY, workers=0, run=third)
    assert [spec.describe() for spec in third.specs] == ["es pooled seed 1"]
    assert f"{damaged} is damaged" in capsys.readouterr().err
    again = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert again["targets"] == first_page["targets"] and again["runs_reused"] == 9

    longer = Counting(fake.compute)
    run_demo(tmp_path, replace(TINY, steps=4), workers=0, run=longer)
    assert len(longer.specs) == 10, "other settings are other runs"


def test_other_code_makes_finished_runs_stale(fake, tmp_path, monkeypatch):
    run_demo(tmp_path, TINY, workers=0, run=fake.compute)
    monkeypatch.setattr("xferkit.demo.run.code_fingerprint", lambda: "1" * 64)
    counting = Counting(fake.compute)
    run_demo(tmp_path, TINY, workers=0, run=counting)
    assert len(counting.specs) == 10


def test_code_fingerprint_sees_what_decides_a_result(tmp_path, monkeypatch):
    for name in (
        "xfercore/_C.so",
        "xferkit/models/moe.py",
        "xferkit/report/svg.py",
        "xferkit/models/notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    places = {
        name: SimpleNamespace(submodule_search_locations=[tmp_path / name])
        for name in ("xfercore", "xferkit")
    }
    monkeypatch.setattr("importlib.util.find_spec", places.get)
    before = environment.code_fingerprint()
    (tmp_path / "xferkit/report/svg.py").write_text("2")
    (tmp_path / "xferkit/models/notes.txt").write_text("2")
    assert environment.code_fingerprint() == before
    (tmp_path / "xferkit/models/moe.py").write_text("2")
    after = environment.code_fingerprint()
    (tmp_path / "xfercore/_C.so").write_text("2")
    assert len({before, after, environment.code_fingerprint()}) == 3


def test_interrupt_leaves_a_clean_state_and_says_how_to_go_on(fake, tmp_path):
    out = tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import functools, signal, sys
            import fake_cells
            import xferkit.demo
            from xferkit.cli import main

            if __name__ == "__main__":
                # A shell starts its background jobs, these tests among them perhaps, deaf to Ctrl-C.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                xferkit.demo.run.code_fingerprint = lambda: "0" * 64
                fakes = {"run": fake_cells.pid, "measure": fake_cells.measure}
                xferkit.demo.run_demo = functools.partial(xferkit.demo.run_demo, **fakes)
                sys.exit(main(["demo", "--out", sys.argv[1], "--preset", "small", "--workers", "2"]))
            """
        )
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PIDS": str(pids)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(out.glob("cells/*.json"))) < 2:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to workers as well
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert f"Finished runs are kept in {out / 'cells'}; the same command goes on from there." in errors
    assert "Traceback" not in errors
    assert not list(out.rglob("*.tmp")) and not (out / "report.html").exists()
    assert pids.iterdir() and all(not _alive(int(path.name)) for path in pids.iterdir())

    done = len(list(out.glob("cells/*.json")))
    counting = Counting(fake.compute)
    run_demo(out, "small", workers=0, run=counting, measure=fake.measure)
    assert len(counting.specs) == len(plan_cells(PRESETS["small"])) - done and done >= 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo"], "the following arguments are required: --out"),
        (["demo", "--out", "x", "--preset", "huge"], "invalid choice: 'huge'"),
        (["demo", "--out", "x", "--workers", "-1"], "expected a number of processes, 0 or more, got '-1'"),
        (["demo", "--out", "x", "--workers", "two"], "got 'two'"),
        (["dome"], "invalid choice: 'dome'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_arguments_get_one_sentence_and_code_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert sentence in errors and errors.count("\n") == 1


def test_an_unusable_folder_gets_one_sentence(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("here")
    assert main(["demo", "--out", str(file), "--preset", "small", "--workers", "0"]) == 2
    errors = capsys.readouterr().err
    assert f"cannot use {file} as the output folder" in errors and errors.count("\n") == 1


def test_a_failed_run_ends_with_its_sentence(fake, tmp_path, capsys, monkeypatch):
    failing = functools.partial(run_demo, run=Counting(fake.compute, fail=("man",)))
    monkeypatch.setattr("xferkit.demo.run_demo", failing)
    assert main(["demo", "--out", str(tmp_path), "--preset", "small", "--workers", "0"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith(
        "xferkit demo: the run es man seed 0 failed: FloatingPointError: loss is not"
    )
    assert any("in __call__" in line for line in errors)


def test_missing_babel_is_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)
    assert main(["demo", "--out", str(tmp_path), "--preset", "small"]) == 2
    assert "pip install 'xfercore[demo]'" in capsys.readouterr().err


def test_wrong_preset_or_workers(tmp_path):
    with pytest.raises(ValueError, match="no preset 'huge'; presets are full, small"):
        run_demo(tmp_path, "huge")
    with pytest.raises(ValueError, match="workers must be 0 or more, got -2"):
        run_demo(tmp_path, "small", workers=-2)


def test_help_is_light():
    code = (
        "import sys; from xferkit.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted(sys.modules))"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code]
    lines = subprocess.run(
        command, capture_output=True, text=True, env=variables, check=True
    ).stdout.splitlines()
    assert any("demo" in line for line in lines[:-1])
    for heavy in ("torch", "numpy", "scipy", "jinja2", "babel", "matplotlib", "rich"):
        assert f"'{heavy}'" not in lines[-1]


# -- progress ------------------------------------------------------------------------------------------------


def test_remaining_time_weighs_methods():
    specs = tuple(CellSpec("es", method, seed, ("en",)) for method in ("pooled", "moe") for seed in range(3))
    remaining = RemainingTime(specs, workers=2)
    assert remaining.seconds() is None
    remaining.finished(specs[0], 2.0)
    assert remaining.seconds() == pytest.approx((2 * 2 + 3 * 2) / 2)
    remaining.finished(specs[3], 10.0)
    assert remaining.seconds() == pytest.approx((2 * 2 + 2 * 10) / 2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_names_runs_and_time_left(stream):
    specs = (SPEC, replace(SPEC, seed=2))
    with make_progress(specs, 5, 2, stream) as progress:
        progress.note("a [bold]note")
        for spec in specs:
            progress.started(spec)
            progress.finished(spec, OUTCOME)
    shown = stream.getvalue()
    assert (
        "a [bold]note" in shown
        and "es moe seed" in shown
        and "left" in shown
        and "5/5" in shown.replace(" ", "")
    )
