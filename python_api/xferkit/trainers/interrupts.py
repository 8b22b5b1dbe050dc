"""SIGTERM and Ctrl-C end a training after the running step, with a checkpoint; the second one at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interrupted", "StopRequest", "watch_signals"]


class Interrupted(Exception):
    """A training was asked to stop and has saved its state; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; the state is saved, and the same "
            "command goes on from there"
        )
        self.signal_number, self.step, self.exit_code = number, step, 128 + number


class StopRequest:
    """Holds the signal that asked for a stop, 0 for none."""

    def __init__(self) -> None:
        self.number = 0


@contextlib.contextmanager
def watch_signals(enabled: bool = True) -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT once inside; only the main thread of a process can, others get no request."""
    request = StopRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def caught(number: int, frame: FrameType | None) -> None:
        if request.number:  # the second one: whoever asks twice does not want to wait
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.number = number

    for number in before:
        signal.signal(number, caught)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
