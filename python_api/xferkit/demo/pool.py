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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from xferkit.data.cldr import NameData
from xferkit.demo.errors import DemoError
from xferkit.demo.plan import CellSpec
from xferkit.demo.store import CellOutcome

__all__ = ["RunCell", "run_cells", "train_cell"]

#: Trains one cell on names (lower-cased ones where the cell says so). Picklable: a function of a module.
RunCell = Callable[[CellSpec, NameData], CellOutcome]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_worker_data: dict[bool, NameData] = {}


def train_cell(spec: CellSpec, data: NameData) -> CellOutcome:
    """Train `spec` with the experiment's own trainer."""
    from xferkit.experiments.name_transfer import Cell, run_cell

    result = run_cell(
        Cell(
            target=spec.target,
            method=spec.method,
            seed=spec.seed,
            sources=spec.sources,
            lowercase=spec.lowercase,
            steps=spec.steps,
        ),
        data,
    )
    return CellOutcome.checked(
        {
            "accuracy": result.accuracy,
            "macro_f1": result.macro_f1,
            "seconds": result.seconds,
            "gate": result.gate,
            "steps": result.steps,
            "losses": result.losses,
        }
    )


def run_cells(
    specs: Iterable[CellSpec],
    data: Mapping[bool, NameData],
    *,
    workers: int,
    started: Callable[[CellSpec], None],
    finished: Callable[[CellSpec, CellOutcome], None],
    run: RunCell = train_cell,
) -> None:
    """Run all `specs`; `finished` is called in this process as each one ends, in the order they end.

    Args:
        specs: the runs.
        data: names as written (False) and lower-cased (True).
        workers: processes; 0 runs everything in this one.
        started: called when a run is handed out.
        finished: called with each result.
        run: trains one cell.

    Raises:
        DemoError: a run failed or a worker was killed; the message names the run. Any other exception, Ctrl-C
            above all, passes through after the workers have been ended.
    """
    queue = iter(specs)
    if workers == 0:
        for spec in queue:
            started(spec)
            try:
                outcome = run(spec, data[spec.lowercase])
            except Exception as error:
                raise _failure(spec, error) from error
            finished(spec, outcome)
        return
    with _executor(workers, data) as executor:
        running: dict[Future[CellOutcome], CellSpec] = {}

        def hand_out() -> None:
            for spec in queue:
                started(spec)
                with _interrupt_blocked():
                    running[executor.submit(_run_in_worker, run, spec)] = spec
                if len(running) >= workers:
                    return

        hand_out()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                spec = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool as error:
                    names = ", ".join(s.describe() for s in (spec, *running.values()))
                    raise DemoError(
                        f"a worker process was killed (out of memory?) while these were running: {names}; "
                        "finished runs are kept, fewer --workers need less memory."
                    ) from error
                except Exception as error:
                    raise _failure(spec, error) from error
                finished(spec, outcome)
            hand_out()


def _failure(spec: CellSpec, error: Exception) -> DemoError:
    failure = DemoError(f"the run {spec.describe()} failed: {type(error).__name__}: {error}")
    failure.details = "".join(traceback.format_exception(error))
    return failure


@contextlib.contextmanager
def _executor(workers: int, data: Mapping[bool, NameData]) -> Iterator[ProcessPoolExecutor]:
    others = set(multiprocessing.active_children())
    saved = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))  # read by the workers when they import torch
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(dict(data),),
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


def _start_worker(data: dict[bool, NameData]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_data.update(data)


def _end_with_parent() -> None:
    # A parent that was killed cannot end its workers, and they would wait for work forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(run: RunCell, spec: CellSpec) -> CellOutcome:
    return run(spec, _worker_data[spec.lowercase])
