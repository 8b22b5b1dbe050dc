"""Long diagnoses: stopped and resumed, damaged files, other settings, several processes, the time that is left."""

from __future__ import annotations

import functools
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from toy_transfer import Known, Recorder, ignores_sources, per_example

from xferkit.transfer import Declined, Diagnosis, Estimate, RunError, RunProgress, diagnose, work
from xferkit.transfer.calling import Outcome
from xferkit.transfer.plan import make_plan

TASKS = ("en", "de", "fr")
HERE = Path(__file__).resolve().parent

SLOW = """
import sys, time
sys.path.insert(0, {here!r})
from toy_transfer import Known
from xferkit.transfer import diagnose

known = Known(log={log!r})

def train(tasks, seed):
    time.sleep({sleep})
    return known(tasks, seed)

diagnose(train, ("en", "de", "fr"), target="en", out={out!r})
"""


def script(tmp_path, *, sleep=0.0) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(
        SLOW.format(here=str(HERE), log=str(tmp_path / "log"), out=str(tmp_path / "out"), sleep=sleep)
    )
    return [sys.executable, str(path)]


def files(out: Path) -> list[Path]:
    return sorted((out / "runs").glob("*.json"))


def lines(path: Path) -> Counter[str]:
    return Counter(path.read_text().splitlines())


RECORDERS: list[Recorder] = []


def recorded(tasks: tuple[str, ...], seed: int) -> dict[str, float]:
    """By the last recorder; the calls that it keeps are no part of this function."""
    return RECORDERS[-1].train(tasks, seed)


def recorder(fail_at: int | None = None) -> Recorder:
    RECORDERS.append(Recorder(fail_at=fail_at))
    return RECORDERS[-1]


def slept(seconds: float, tasks: tuple[str, ...], seed: int) -> dict[str, float]:
    time.sleep(seconds)
    return ignores_sources(tasks, seed)


def keyed(tasks: tuple[str, ...], seed: int, rate: float) -> dict[str, float]:
    return dict.fromkeys(tasks, rate + 0.001 * seed)


def test_a_run_that_fails_loses_itself_alone(tmp_path) -> None:
    """The 8th of 15 runs fails; the same call then does that one and the 7 behind it."""
    whole = diagnose(Known(), TASKS, target="en")
    first = recorder(fail_at=8)
    with pytest.raises(
        RunError, match=r"the run en \+ de, seed 3 failed: MemoryError: the machine went down"
    ):
        diagnose(recorded, TASKS, target="en", out=tmp_path)
    assert len(first.calls) == len(files(tmp_path)) == 7
    second = recorder()
    done = []
    answer = diagnose(recorded, TASKS, target="en", out=tmp_path, on_progress=done.append)
    assert len(second.calls) == 8 and not set(second.calls) & set(first.calls)
    assert replace(answer, notes=whole.notes) == whole
    assert [p.done for p in done] == list(range(8, 16)) and {p.total for p in done} == {15}
    third = recorder()
    again = diagnose(recorded, TASKS, target="en", out=tmp_path)
    assert replace(again, notes=whole.notes) == whole and third.calls == []


def test_a_killed_process_loses_the_running_run_alone(tmp_path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = subprocess.Popen(script(tmp_path, sleep=0.1))
    try:
        limit = time.monotonic() + 60
        while len(files(out)) < 4 and time.monotonic() < limit:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(files(out))
    assert 4 <= kept < 15
    subprocess.run(script(tmp_path, sleep=0.1), check=True)
    assert len(files(out)) == 15
    calls = lines(log)
    assert len(calls) == 15 and sum(calls.values()) <= 16, "one run at most was done twice"
    assert not list((out / "runs").glob(".*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "of another run", "no number"])
def test_a_damaged_file_is_done_again(tmp_path, damage) -> None:
    first = Recorder()
    whole = diagnose(first.train, TASKS, target="en", out=tmp_path)
    victim, other = files(tmp_path)[3:5]
    text = victim.read_text()
    content = json.loads(text)
    if damage == "no number":
        content["result"]["scores"]["en"] = None
        content["sha256"] = hashlib.sha256(
            json.dumps(content["result"], sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()
    victim.write_text(
        {
            "cut": text[: len(text) // 2],
            "changed": text.replace('"seconds": ', '"seconds": 1'),
            "empty": "",
            "of another run": other.read_text(),
            "no number": json.dumps(content),
        }[damage]
    )
    assert victim.read_text() != text
    again = Recorder()
    answer = diagnose(again.train, TASKS, target="en", out=tmp_path)
    assert len(again.calls) == 1 and answer.cells == whole.cells
    assert any(f"{victim} is damaged" in note for note in answer.notes), "and its reader is told"
    assert victim.with_name(victim.name + ".corrupt").exists() and files(tmp_path)[3] == victim


def test_more_seeds_tasks_and_cells_cost_what_is_new(tmp_path) -> None:
    def count(**change: object) -> int:
        recorder = Recorder()
        diagnose(recorder.train, **{"tasks": TASKS, "target": "en", "out": tmp_path, "seeds": 2, **change})
        return len(recorder.calls)

    assert count() == 2 * 3
    assert count(seeds=3) == 3
    assert count(tasks=("en", "de", "fr", "xx"), seeds=3) == 3
    assert count(budget="full", seeds=3) == 3
    assert count(target=None, seeds=3) == 3 * 3
    assert count(target=None, seeds=[2, 3], confidence=0.9, higher_is_better=False) == 0


def earlier(answer: Diagnosis) -> list[str]:
    return [note for note in answer.notes if "of earlier calls" in note]


def test_runs_of_earlier_calls_are_told(tmp_path) -> None:
    def notes(seeds: int, **change: object) -> list[str]:
        return earlier(diagnose(Known(), TASKS, seeds, target="en", out=tmp_path, **change))

    unseen = "what the training reads from files, mutable globals and libraries is not checked (settings= names it)."
    assert notes(4) == [] and notes(5) == [f"12 of 15 runs are of earlier calls; {unseen}"]
    assert notes(5) == [f"15 of 15 runs are of earlier calls; {unseen}"]
    (out,) = (p for p in files(tmp_path) if p.name.startswith("en-own-seed1-"))
    for path in files(tmp_path):
        if path != out:
            path.unlink()
    assert notes(5) == [f"1 of 15 runs is of earlier calls; {unseen}"]


def test_runs_that_are_not_used_are_told_with_what_changed(tmp_path) -> None:
    def notes(train=ignores_sources, seeds=2, **change: object) -> list[str]:
        return earlier(diagnose(train, ("en", "de"), seeds, target="en", out=tmp_path, **change))

    since = "not used, since what decides the result has changed: "
    assert notes(seeds=[1]) == []
    assert notes(settings={"data": 2}, seeds=[1]) == [f"2 runs of earlier calls are {since}settings."]
    held = functools.partial(keyed, rate=0.1)
    (note,) = notes(held, [1])
    assert note.startswith("2 runs of") and "toy_transfer.ignores_sources" in note and "keyed" in note
    assert notes(functools.partial(keyed, rate=0.2), [1])[0].endswith("changed: train_fn or what it holds.")
    (used,) = notes(held, [1])
    assert "2 of 2 runs are of earlier calls" in used
    for path in files(tmp_path):
        content = json.loads(path.read_text())
        content["conditions"] = {"train_fn": "as of old", "settings": "{}"}
        path.write_text(json.dumps(content))
    first = notes(functools.partial(keyed, rate=0.3), [1])
    assert first == [f"2 runs of earlier calls are {since}another version of xferkit."], (
        "a file of another version"
    )
    files(tmp_path)[0].write_text("{")
    assert len(notes(functools.partial(keyed, rate=0.4), [1])) == 1


def test_runs_of_other_tasks_are_not_called_changed(tmp_path) -> None:
    """The names of their files are the same: four of the tasks, and that there are more."""
    tasks = tuple("abcdef")
    first = diagnose(ignores_sources, tasks, 1, target="a", budget="full", out=tmp_path)
    for path in files(tmp_path):
        if json.loads(path.read_text())["cell"]["tasks"] == list("abcdf"):
            path.unlink()
    second = diagnose(ignores_sources, tasks, 1, target="a", budget="full", out=tmp_path)
    assert len(earlier(second)) == 1 and second.cells == first.cells


def test_other_settings_do_not_mix(tmp_path) -> None:
    def count(train=None, **change: object) -> int:
        begin = len(files(tmp_path))
        diagnose(train or Known(), TASKS, 1, target="en", out=tmp_path, **change)
        return len(files(tmp_path)) - begin

    def made(rate: float):
        return lambda tasks, seed: {task: rate for task in tasks}

    assert count() == 3 and count() == 0
    assert count(Known(noise=0.006)) == 3, "a field of the function"
    assert count(settings={"data": "v2"}) == 3 and count(settings={"data": "v2"}) == 0
    assert count(functools.partial(slept, 0.0)) == 3 and count(functools.partial(slept, 0.0)) == 0
    assert count(functools.partial(slept, 1e-9)) == 3, "a bound argument"
    assert count(functools.partial(Known().__call__)) == 3, "a method of another object"
    assert count(functools.partial(keyed, rate=0.1)) == 3 and count(functools.partial(keyed, rate=0.1)) == 0
    assert count(functools.partial(keyed, rate=0.2)) == 3, "a bound keyword"
    assert count(ignores_sources) == 3, "another function"
    assert count(made(0.1)) == 3 and count(made(0.1)) == 0
    assert count(made(0.2)) == 3, "a value in the closure"
    assert count(matchings="total_steps") == 3, "another training"


def test_two_processes_do_not_write_to_one_folder(tmp_path) -> None:
    def nested(tasks, seed):
        diagnose(Known(), TASKS, target="en", out=tmp_path)
        raise AssertionError("not reached")

    with pytest.raises(RunError, match="another diagnosis is writing to"):
        diagnose(nested, TASKS, target="en", out=tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"):
        diagnose(Known(), TASKS, target="en", out=tmp_path / "file")


# Processes


def test_workers_give_the_same_answer(tmp_path) -> None:
    known = Known(log=str(tmp_path / "log"))
    parallel = diagnose(known, TASKS, 2, target="en", workers=2, out=tmp_path)
    assert len(lines(tmp_path / "log")) == 6
    assert parallel == diagnose(Known(), TASKS, 2, target="en")


# The time that is left


def times(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A run takes `seconds` for each of its tasks, and no test waits for it."""
    real = work.train

    def train(run, given):
        return replace(real(run, given), seconds=seconds * len(run.tasks))

    monkeypatch.setattr(work, "train", train)


def test_more_than_an_hour_is_asked_for_after_one_run(tmp_path, monkeypatch) -> None:
    times(monkeypatch, 200.0)
    asked: list[Estimate] = []
    calls = recorder().calls
    with pytest.raises(
        Declined, match=r"stopped before 14 runs of about 1\.3 hours; finished ones are kept in"
    ):
        diagnose(recorded, TASKS, target="en", out=tmp_path, confirm=lambda e: asked.append(e))
    # 4 more runs of one task, 10 of two: by cost, before one of two was seen.
    assert asked == [Estimate(runs_left=14, seconds_left=4 * 200.0 + 10 * 400.0, done=1)]
    assert len(calls) == len(files(tmp_path)) == 1
    asked.clear()
    diagnose(recorded, TASKS, target="en", out=tmp_path, confirm=lambda e: not asked.append(e))
    assert len(asked) == 1 and len(calls) == 15, "asked once, at once, and gone on"


def test_with_workers_one_run_is_the_warm_up(tmp_path, monkeypatch) -> None:
    """Nothing else is begun before the person was asked."""
    monkeypatch.setattr(work, "ASK_SECONDS", 0.0)
    known = Known(log=str(tmp_path / "log"))
    with pytest.raises(Declined, match="stopped before 14 runs"):
        diagnose(known, TASKS, target="en", workers=2, confirm=lambda e: False)
    assert list(lines(tmp_path / "log")) == ["en 1"]


def test_less_is_not_asked_for(monkeypatch) -> None:
    times(monkeypatch, 100.0)
    progress: list[RunProgress] = []

    def never(estimate):
        raise AssertionError(estimate)

    diagnose(Known(), TASKS, target="en", confirm=never, on_progress=progress.append)
    assert progress[0].seconds_left == 4 * 100.0 + 10 * 200.0 and progress[-1].seconds_left == 0.0
    assert [p.seconds for p in progress[:3]] == [100.0, 200.0, 200.0]
    times(monkeypatch, 200.0)
    diagnose(Known(), TASKS, target="en")  # nobody to ask


@pytest.mark.parametrize(
    ("tasks", "seeds", "workers", "seconds"),
    [
        (TASKS, 1, 8, 800.0),  # two runs of 800 s at once, six workers have nothing to do
        (("en", "de", "fr", "xx"), 1, 2, 1200.0),  # three of 800 s on two
        (("en", "de"), 2, 8, 800.0),  # 400, 800 and 800 s at once: as long as the longest
        (TASKS, 1, 0, 1600.0),
    ],
)
def test_time_left_counts_the_workers_that_have_a_run(monkeypatch, tasks, seeds, workers, seconds) -> None:
    """One run of the target alone took 400 s; those of two tasks have twice its cost."""
    monkeypatch.setattr(work, "ASK_SECONDS", 0.0)
    plan = make_plan(tasks, seeds, target="en", matchings="own")
    outcomes = {plan.runs[0]: Outcome({"en": 0.5}, {}, 400.0)}
    asked: list[Estimate] = []
    with pytest.raises(Declined):
        work.Work(plan, outcomes, None, workers, None, lambda e: bool(asked.append(e))).do(
            (ignores_sources, "plain")
        )
    assert plan.runs[0].tasks == ("en",)
    assert asked == [Estimate(runs_left=plan.num_runs - 1, seconds_left=seconds, done=1)]


def test_an_estimate_that_grows_is_asked_for_later(monkeypatch) -> None:
    """The first run was quick, the others are not."""
    real, taken = work.train, iter([1.0] + [600.0] * 14)
    monkeypatch.setattr(work, "train", lambda run, given: replace(real(run, given), seconds=next(taken)))
    asked: list[Estimate] = []
    with pytest.raises(Declined):
        diagnose(Known(), TASKS, target="en", confirm=lambda e: asked.append(e))
    assert [e.done for e in asked] == [2]


def test_scores_per_example_survive_the_disk(tmp_path) -> None:
    first = diagnose(per_example, ("en", "fr"), 2, out=tmp_path)
    second = diagnose(per_example, ("en", "fr"), 2, out=tmp_path)
    assert first.cells == second.cells and first.scores == second.scores
    assert second.cells[0].examples is not None


def test_names_make_no_paths(tmp_path) -> None:
    odd = ("../up", "a/b", "x" * 300, "ü ü")
    diagnose(lambda tasks, seed: dict.fromkeys(tasks, 0.5), odd, 1, budget="full", out=tmp_path)
    assert len(files(tmp_path)) == 4 + 6 + 4 + 1
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
