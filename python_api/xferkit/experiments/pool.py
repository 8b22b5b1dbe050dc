"""Runs cells in worker processes of one thread each, and stops them cleanly.

Workers are spawned, not forked: torch's threads do not survive a fork. No more runs are handed out than there
are workers, so what is handed out is what is running.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from xferkit.experiments.cells import Cell
from xferkit.runs.errors import RunError

__all__ = ["run_cells"]

C = TypeVar("C", bound=Cell)
D = TypeVar("D")
R = TypeVar("R")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_worker_data: list[Any] = []


@dataclass(frozen=True)
class _Failed:
    """What a run raised in a worker, as text: of an exception nobody knows whether it can be sent.

    Attributes:
        sentence: type and message.
        details: its traceback.
    """

    sentence: str
    details: str

    @classmethod
    def of(cls, error: Exception) -> _Failed:
        try:
            message = str(error)
        except Exception:  # its own __str__
            message = "(its message cannot be shown)"
        return cls(f"{type(error).__name__}: {message}", "".join(traceback.format_exception(error)))

    def of_run(self, cell: Cell) -> RunError:
        failure = RunError(f"the run {cell.describe()} failed: {self.sentence}")
        failure.details = self.details
        return failure


def run_cells(
    cells: Iterable[C],
    data: D,
    *,
    workers: int,
    run: Callable[[C, D], R],
    started: Callable[[C], None],
    finished: Callable[[C, R], None],
) -> None:
    """Run all `cells`; `finished` is called in this process as each one ends, in the order they end.

    Args:
        cells: the runs.
        data: what every run is given, handed to each worker once. Picklable.
        workers: processes; 0 runs everything in this one.
        run: does one run. Picklable: a function of a module, or a partial of one.
        started: called when a run is handed out.
        finished: called with each result.

    Raises:
        RunError: a run failed or a worker was killed; the message names the run. Any other exception,
            Ctrl-C above all, passes through after the workers have been ended.
    """
    queue = iter(cells)
    if workers == 0:
        for cell in queue:
            started(cell)
            try:
                outcome = run(cell, data)
            except Exception as error:
                raise _Failed.of(error).of_run(cell) from error
            finished(cell, outcome)
        return
    with _executor(workers, data) as executor:
        running: dict[Future[R | _Failed], C] = {}

        def hand_out() -> None:
            for cell in queue:
                started(cell)
                with _interrupt_blocked():
                    running[executor.submit(_run_in_worker, run, cell)] = cell
                if len(running) >= workers:
                    return

        hand_out()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                try:
                    ended = future.result()
                except BrokenProcessPool as error:
                    names = ", ".join(c.describe() for c in (cell, *running.values()))
                    raise RunError(
                        f"a worker process was killed (out of memory?) while these were running: {names}; "
                        "finished runs are kept, fewer --workers need less memory."
                    ) from error
                except Exception as error:  # of what is sent, the result above all
                    raise _Failed.of(error).of_run(cell) from error
                if isinstance(ended, _Failed):
                    raise ended.of_run(cell)
                finished(cell, ended)
            hand_out()


@contextlib.contextmanager
def _executor(workers: int, data: object) -> Iterator[ProcessPoolExecutor]:
    others = set(multiprocessing.active_children())
    saved = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))  # read by the workers when they import torch
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(data,),
    )
    try:
        yield executor
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Keep Ctrl-C from processes started inside: they inherit the mask, and this process ends them itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(data: object) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_data[:] = [data]


def _end_with_parent() -> None:
    # A parent that was killed cannot end its workers, and they would wait for work forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(run: Callable[[C, D], R], cell: C) -> R | _Failed:
    try:
        return run(cell, _worker_data[0])
    except Exception as error:
        return _Failed.of(error)
