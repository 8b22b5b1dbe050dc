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
from types import TracebackType
from typing import Any, Generic, TypeVar

from xferkit.experiments.cells import Cell
from xferkit.runs.errors import RunError

__all__ = ["WorkerPool", "run_cells"]

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


class WorkerPool(Generic[D]):
    """Worker processes that stay for several calls of :meth:`run`; each imports what it needs once::

        with WorkerPool(data, workers=2) as pool:
            pool.run(cells, run=train, started=print, finished=print)

    They are started when there is work, and ended behind the block, or when a run failed.

    Args:
        data: what every run is given, handed to each worker once. Picklable.
        workers: processes; 0 runs everything in this one.
    """

    def __init__(self, data: D, workers: int) -> None:
        self._data, self._workers = data, workers
        self._executor: ProcessPoolExecutor | None = None
        self._processes: set[Any] = set()

    def __enter__(self) -> WorkerPool[D]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(at_once=error is not None)

    def run(
        self,
        cells: Iterable[C],
        *,
        run: Callable[[C, D], R],
        started: Callable[[C], None],
        finished: Callable[[C, R], None],
    ) -> None:
        """Run all `cells`; `finished` is called in this process as each one ends, in the order they end.

        Args:
            cells: the runs.
            run: does one run. Picklable: a function of a module, or a partial of one.
            started: called when a run is handed out.
            finished: called with each result.

        Raises:
            RunError: a run failed or a worker was killed; the message names the run. Any other exception,
                Ctrl-C above all, passes through after the workers have been ended.
        """
        queue = iter(cells)
        if self._workers == 0:
            for cell in queue:
                started(cell)
                try:
                    outcome = run(cell, self._data)
                except Exception as error:
                    raise _Failed.of(error).of_run(cell) from error
                finished(cell, outcome)
            return
        try:
            with _one_thread_each():
                self._run(queue, run, started, finished)
        except BaseException:
            self._end(at_once=True)
            raise

    def _run(
        self,
        queue: Iterator[C],
        run: Callable[[C, D], R],
        started: Callable[[C], None],
        finished: Callable[[C, R], None],
    ) -> None:
        running: dict[Future[R | _Failed], C] = {}

        def hand_out() -> None:
            for cell in queue:
                started(cell)
                with _interrupt_blocked():
                    try:
                        future = self._submit(run, cell)
                    except BrokenProcessPool as error:  # an idle worker was killed
                        raise _killed([cell, *running.values()]) from error
                running[future] = cell
                if len(running) >= self._workers:
                    return

        hand_out()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                try:
                    ended = future.result()
                except BrokenProcessPool as error:
                    raise _killed([cell, *running.values()]) from error
                except Exception as error:  # of what is sent, the result above all
                    raise _Failed.of(error).of_run(cell) from error
                if isinstance(ended, _Failed):
                    raise ended.of_run(cell)
                finished(cell, ended)
            hand_out()

    def _submit(self, run: Callable[[C, D], R], cell: C) -> Future[R | _Failed]:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._data,),
            )
        before = set(multiprocessing.active_children())
        future = self._executor.submit(_run_in_worker, run, cell)
        self._processes |= set(multiprocessing.active_children()) - before
        return future

    def _end(self, *, at_once: bool) -> None:
        if self._executor is None:
            return
        if at_once:
            for process in self._processes & set(multiprocessing.active_children()):
                process.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor = None
        self._processes.clear()


def _killed(cells: Iterable[Cell]) -> RunError:
    names = ", ".join(cell.describe() for cell in cells)
    return RunError(
        f"a worker process was killed (out of memory?) while these were running: {names}; finished runs are kept, "
        "fewer workers need less memory."
    )


def run_cells(
    cells: Iterable[C],
    data: D,
    *,
    workers: int,
    run: Callable[[C, D], R],
    started: Callable[[C], None],
    finished: Callable[[C, R], None],
) -> None:
    """Run all `cells` by workers of their own: one :meth:`WorkerPool.run`.

    Args:
        cells, run, started, finished: as there.
        data, workers: as of :class:`WorkerPool`.

    Raises:
        RunError: as there.
    """
    with WorkerPool(data, workers) as pool:
        pool.run(cells, run=run, started=started, finished=finished)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """For workers that are started inside: they read these variables when they import torch."""
    saved = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
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
