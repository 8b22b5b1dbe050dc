"""Workers import the script that started them; one that would start workers there has to tell who waits for it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import select
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from xferkit.runs.errors import RunError

__all__ = ["refuse_in_worker", "starting_workers"]

#: Names the file that a worker leaves when it was asked to start workers while it imported the script.
_VARIABLE = "XFER_UNGUARDED"
_PAUSE = 0.5  # seconds without a byte, behind which there are no more
_ADVICE = (
    "workers import the script that starts them, and this one calls diagnose while it is imported; put the call under "
    '`if __name__ == "__main__":`, or use workers=0'
)


def refuse_in_worker() -> None:
    """End a worker that is importing the script, and leave word for :func:`starting_workers` in its parent.

    Raises:
        RunError: the worker was started by something else.
    """
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    mark = os.environ.get(_VARIABLE)
    if mark is None:
        raise RunError(_ADVICE)
    with contextlib.suppress(OSError):
        Path(mark).touch()
        _read_rest()
    os._exit(1)  # without a traceback beside the sentence of the parent


def _read_rest() -> None:
    """What the parent writes to this worker: it holds the other end too, and would wait forever to be read."""
    found = re.search(r"pipe_handle=(\d+)", " ".join(sys.orig_argv))
    if found is not None:
        pipe = int(found[1])
        while select.select([pipe], [], [], _PAUSE)[0] and os.read(pipe, 2**20):
            pass


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Around all that starts workers: what keeps them from starting becomes a sentence.

    Raises:
        RunError: the script lacks its guard, or a worker ended before it had a run.
    """
    before = os.environ.get(_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="xferkit-") as folder:
        mark = Path(folder) / "unguarded"
        os.environ[_VARIABLE] = str(mark)
        try:
            yield
        except Exception as error:
            if mark.exists():
                raise RunError(_ADVICE) from None
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    "a worker process was killed (out of memory?) before it had a run; finished runs are kept, fewer "
                    "workers need less memory"
                ) from error
            raise
        finally:
            if before is None:
                os.environ.pop(_VARIABLE, None)
            else:
                os.environ[_VARIABLE] = before
