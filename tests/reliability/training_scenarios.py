"""What the fault server trains: two optimisers, stages, an inner loop, dropout, EMA, clipping, shuffling, selection."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from fault_server import io_calls, release_faults
from harness import HERE, state_hash

sys.path.insert(0, str(HERE.parent / "api"))

from toy_training import ToyMethod, toy_streams

from xferkit.checkpoints import CheckpointStore
from xferkit.methods import PhaseLoss
from xferkit.trainers import Trainer

OPTIONS = {"schedule": "cosine", "warmup_steps": 1, "ema_decay": 0.9, "clip_norm": 1.0, "log_every": 3}


class RandomMethod(ToyMethod):
    """The toy method with a loss that uses Python's and NumPy's random numbers too."""

    def main_loss(self, next_batch: Any) -> PhaseLoss:
        loss = super().main_loss(next_batch)
        factor = 1 + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return PhaseLoss(loss.total * factor, loss.metrics)


def train(folder: str, steps: int = 4, every: int = 2, pace: float = 0.0, **options: Any) -> dict[str, Any]:
    """Train to the end, from the start or from what is in the folder.

    Args:
        folder: the run's folder.
        steps: of the second stage; the first has two.
        every: steps between checkpoints.
        pace: seconds that a main update takes longer, so that random kills hit all of the run.

    Returns:
        ``hashes`` of everything the run has made and every generator of random numbers, by name; the number of
        I/O ``calls``.
    """
    random.seed(1)
    np.random.seed(1)
    method, streams = RandomMethod(), toy_streams()
    if pace:
        loss = method.main_loss
        method.main_loss = lambda next_batch: (time.sleep(pace), loss(next_batch))[1]  # type: ignore[method-assign]
    warned: list[str] = []
    trainer = Trainer(
        **({"progress": "silent", "checkpoint_every": every, "eval_every": 2} | OPTIONS | options)
    )
    history = trainer.fit(
        method,
        streams,
        steps,
        evaluate=method.score,
        folder=folder,
        identity={"data": "toy"},
        warn=warned.append,
    )
    calls = io_calls()
    release_faults()
    name, keys, *rest = np.random.get_state()
    saved = CheckpointStore(Path(folder) / "checkpoints").load_newest(None)
    assert saved is not None and not warned, warned
    for clock in ("seconds", "metrics_bytes"):  # the length of a line depends on the digits of the seconds
        del saved.state[clock]
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    parts = {
        "module": method.module.state_dict(),
        "optimizers": {name: o.state_dict()["state"] for name, o in method.optimizers.items()},
        "streams": {name: stream.state_dict() for name, stream in streams.items()},
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "checkpoint": saved.state,
        "history": [[r.step, r.stage, r.metrics, r.learning_rates] for r in history.records],
        "evaluations": [[e.step, e.stage, e.scores] for e in history.evaluations],
        "end": [history.steps, history.selected_step, history.stopped_early],
        "metrics.jsonl": lines,
    }
    return {"hashes": {name: state_hash(value) for name, value in parts.items()}, "calls": calls}


def warm_up() -> None:
    """Load what a training imports late, and forget that there was one: forked children start at once."""
    with tempfile.TemporaryDirectory() as folder:
        train(str(Path(folder) / "run"))
    AcceleratorState._reset_state(True)
    torch.manual_seed(12345)


def train_ranks(
    folder: str, ranks: int, kill_rank: int | None = None, after: float = 0.0, **args: Any
) -> dict[str, Any]:
    """:func:`train` on several gloo processes; optionally one of them is killed after a while.

    Returns:
        ``hashes`` of rank 0 (None when it did not finish), exit ``codes`` by rank (minus the signal), whether ranks
        had to be ``told`` to end, and the ``seconds`` from the kill, or the start, to the end of the last process.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    receive, send = os.pipe()
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 4
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
                os.environ.update(LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                hashes = train(folder, **args)["hashes"]
                if rank == 0:
                    os.write(send, json.dumps(hashes).encode())
                code = 0
            except BaseException as error:
                print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(send)
    start = time.monotonic()
    if kill_rank is not None:
        time.sleep(after)
        os.kill(pids[kill_rank], signal.SIGKILL)
        start = time.monotonic()
    codes, told = _wait_as_a_launcher(pids)
    content = b""
    while part := os.read(receive, 1 << 16):
        content += part
    os.close(receive)
    return {
        "hashes": json.loads(content) if content and codes[0] == 0 else None,
        "codes": codes,
        "told": told,
        "seconds": time.monotonic() - start,
    }


def _wait_as_a_launcher(pids: list[int]) -> tuple[list[int], bool]:
    """Exit codes of all; two seconds after the first has failed, the others get SIGTERM, as torchrun does it.

    A rank that waits for one that never came does not see it die; ``told`` says that a signal was needed.
    """
    codes: dict[int, int] = {}
    failed, told = 0.0, False
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
                if codes[pid] and not failed:
                    failed = time.monotonic()
        if failed and not told and len(codes) < len(pids) and time.monotonic() > failed + 2:
            told = True
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.005)
    return [codes[pid] for pid in pids], told


def train_forgetfully(folder: str, forgotten: str) -> dict[str, Any]:
    """:func:`train` that leaves one part of a resumed state as it is at the start."""
    from xferkit.trainers import state as training_state
    from xferkit.trainers import trainer

    restore = training_state.restore_state

    def forgetful(state: Any, replica: Any, streams: Any, best: Any, average: Any) -> None:
        fresh = training_state.collect_state(replica, streams, best, average)
        restore({**state, forgotten: fresh[forgotten]}, replica, streams, best, average)

    trainer.restore_state = forgetful  # in this forked child alone
    return train(folder)
