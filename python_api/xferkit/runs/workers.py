"""Seeds in processes of their own, one thread each; a stop reaches all of them and leaves their checkpoints."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from xferkit.runs.errors import RunError

__all__ = ["train_in_processes"]

#: Trains one seed from plain settings; a function of a module, as other processes import it.
TrainOne = Callable[[Mapping[str, Any], int], None]
Say = Callable[[str], None]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Worker:
    seed: int
    process: SpawnProcess
    answer: Connection


def train_in_processes(
    train: TrainOne, settings: Mapping[str, Any], seeds: Sequence[int], workers: int, say: Say
) -> None:
    """Run ``train(settings, seed)`` for all `seeds`, `workers` at once.

    On Ctrl-C or SIGTERM every process is asked to stop, saves its checkpoint and ends before this returns; a
    second one ends them at once. Processes whose parent was killed end by themselves.

    Raises:
        ValueError: bad input, found by a process.
        RunError: a process failed or was killed; the message names its seed.
    """
    queue = list(seeds)
    running: list[_Worker] = []
    try:
        with _one_thread_each():
            while queue or running:
                while queue and len(running) < workers:
                    running.append(_start(train, settings, queue.pop(0)))
                    say(f"Seed {running[-1].seed} is being trained in process {running[-1].process.pid}.")
                wait([worker.process.sentinel for worker in running])
                for worker in [w for w in running if not w.process.is_alive()]:
                    running.remove(worker)
                    _check(worker)
                    say(f"Seed {worker.seed} is done; {len(queue) + len(running)} to go.")
    except BaseException:
        _stop(running)
        raise


def _start(train: TrainOne, settings: Mapping[str, Any], seed: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(train, dict(settings), seed, sender), name=f"seed {seed}", daemon=False
    )
    # Ctrl-C at a terminal goes to everybody; this process passes it on itself, once.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    sender.close()
    return _Worker(seed, process, receiver)


def _work(train: TrainOne, settings: dict[str, Any], seed: int, sender: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        train(settings, seed)
    except Exception as error:
        stopped = getattr(error, "exit_code", None)
        if not isinstance(stopped, int):
            kind = "input" if isinstance(error, ValueError) else "failure"
            sender.send((kind, f"{error}" or type(error).__name__, traceback.format_exc()))
        sys.exit(stopped or 1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _check(worker: _Worker) -> None:
    code = worker.process.exitcode
    worker.process.join()
    answer = None
    with contextlib.suppress(EOFError, OSError):
        if worker.answer.poll():
            answer = worker.answer.recv()
    worker.answer.close()
    if code == 0:
        return
    if answer is not None:
        kind, sentence, details = answer
        if kind == "input":
            raise ValueError(sentence)
        failure = RunError(f"seed {worker.seed} failed: {sentence}")
        failure.details = details
        raise failure
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    raise RunError(
        f"the process of seed {worker.seed} was ended {how} (out of memory?); what it had saved is kept, the same "
        "command goes on from there, and fewer --workers need less memory"
    )


def _stop(running: Sequence[_Worker]) -> None:
    """Ask all to stop and wait for their checkpoints; whoever asks again does not want to wait."""
    for worker in running:
        worker.process.terminate()
    try:
        for worker in running:
            worker.process.join()
    except BaseException:
        for worker in running:
            worker.process.kill()
        raise


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    saved = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))  # read when a process imports torch
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
