"""Runs in worker processes: whatever a run raises reaches its reader, with its message and where it happened."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest

from xferkit.experiments.pool import WorkerPool, run_cells
from xferkit.runs.errors import RunError


@dataclass(frozen=True)
class Step:
    """What a run does."""

    name: str
    method: str = "any"

    def describe(self) -> str:
        return self.name


class TwoParts(Exception):
    """It can be pickled and not be built again, as its one argument is the whole message."""

    def __init__(self, a: str, b: int) -> None:
        super().__init__(f"{a} {b}")


class HoldsCode(Exception):
    """It cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("no way to send", lambda: None)


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyError("text")


def do(step: Step, data: dict[str, int]) -> Any:
    if step.name == "two parts":
        raise TwoParts("loss is", data["loss"])
    if step.name == "holds code":
        raise HoldsCode
    if step.name == "mute":
        raise Mute
    if step.name == "caused":
        try:
            raise KeyError("de")
        except KeyError as error:
            raise ValueError("no such task") from error
    if step.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if step.name == "unsendable":
        return lambda: None
    return data["loss"]


def run(*names: str, workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run_cells(
        map(Step, names),
        {"loss": 3},
        workers=workers,
        run=do,
        started=lambda step: None,
        finished=lambda step, result: found.__setitem__(step.name, result),
    )
    return found


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("two parts", r"the run two parts failed: TwoParts: loss is 3$"),
        ("holds code", r"the run holds code failed: HoldsCode: \('no way to send', <function"),
        ("mute", r"the run mute failed: Mute: \(its message cannot be shown\)$"),
        ("caused", "the run caused failed: ValueError: no such task$"),
    ],
)
def test_any_exception_is_told_as_it_is(name, sentence, workers) -> None:
    with pytest.raises(RunError, match=sentence) as error:
        run("good", name, workers=workers)
    details = error.value.details
    assert details.startswith("Traceback") and "test_pool.py" in details and "in do" in details
    assert ("KeyError: 'de'" in details) == (name == "caused")


def test_the_exception_itself_is_the_cause_where_it_was_raised_here() -> None:
    with pytest.raises(RunError) as error:
        run("two parts", workers=0)
    assert isinstance(error.value.__cause__, TwoParts)


def test_runs_before_a_failure_are_handed_over() -> None:
    found: list[str] = []
    with pytest.raises(RunError, match="the run two parts failed"):
        run_cells(
            map(Step, ("a", "b", "two parts")),
            {"loss": 3},
            workers=1,
            run=do,
            started=lambda step: None,
            finished=lambda step, result: found.append(f"{step.name} {result}"),
        )
    assert found == ["a 3", "b 3"]


def test_a_result_that_cannot_be_sent_is_told() -> None:
    with pytest.raises(RunError, match=r"the run unsendable failed: .*pickle"):
        run("unsendable", workers=1)


def test_a_killed_worker_is_still_called_killed() -> None:
    with pytest.raises(RunError, match=r"a worker process was killed \(out of memory\?\) .* running: killed"):
        run("killed", workers=1)


def test_workers_give_what_no_workers_give() -> None:
    assert run("a", "b", "c", workers=2) == run("a", "b", "c", workers=0) == dict.fromkeys("abc", 3)


def pid(step: Step, data: dict[str, int]) -> int:
    return os.getpid()


def test_workers_stay_from_one_call_to_the_next_and_end_with_the_block() -> None:
    seen: list[int] = []
    with WorkerPool({}, 1) as pool:
        for name in ("a", "b"):
            pool.run([Step(name)], run=pid, started=lambda s: None, finished=lambda s, r: seen.append(r))
        assert len(set(seen)) == 1 and seen[0] != os.getpid()
        assert seen[0] in {child.pid for child in multiprocessing.active_children()}
    assert seen[0] not in {child.pid for child in multiprocessing.active_children()}


def test_an_idle_worker_that_was_killed_is_a_sentence_and_the_pool_starts_others() -> None:
    seen: list[int] = []

    def run(pool: WorkerPool[Any]) -> None:
        pool.run(
            [Step("a"), Step("b")], run=pid, started=lambda s: None, finished=lambda s, r: seen.append(r)
        )

    with WorkerPool({}, 1) as pool:
        run(pool)
        os.kill(seen[0], signal.SIGKILL)
        for _ in range(200):
            if seen[0] not in {child.pid for child in multiprocessing.active_children()}:
                break
            time.sleep(0.02)
        time.sleep(0.3)  # the pool looks at its workers from a thread of its own
        with pytest.raises(RunError, match="a worker process was killed"):
            run(pool)
        run(pool)
    assert len(seen) == 4 and len(set(seen)) == 2


def test_an_error_in_what_is_told_ends_the_workers_and_no_other_process() -> None:
    def fails(step: Step, result: int) -> None:
        raise KeyError("told")

    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(30,))
    before = set(multiprocessing.active_children())
    with WorkerPool({}, 2) as pool:
        other.start()
        with pytest.raises(KeyError):
            pool.run([Step("a"), Step("b")], run=pid, started=lambda s: None, finished=fails)
        assert set(multiprocessing.active_children()) - before == {other}
    other.terminate()
    other.join()
