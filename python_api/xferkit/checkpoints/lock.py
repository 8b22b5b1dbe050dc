"""One writer per folder: a lock that the kernel frees when its process dies, with a text that names the holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from xferkit.checkpoints.errors import CheckpointError

__all__ = ["LOCK_NAME", "locked_folder"]

LOCK_NAME = ".lock"

_held: set[int] = set()


def _close_in_child() -> None:
    # A forked worker that outlives its killed parent would hold the lock on: it gets rid of its copy.
    for fd in _held:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone.

    ``flock`` on ``.lock``: it goes with the process, however that ends, so no lock is ever stale; the file
    stays. On NFS it works between machines where the server supports locks (Linux >= 2.6.12).

    Raises:
        CheckpointError: another process holds it (the sentence has its number and machine), or the file
            cannot be opened.
    """
    path = folder / LOCK_NAME
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be opened: {error.strerror} (errno {error.errno})."
        ) from error
    _held.add(fd)
    try:
        _take(fd, folder)
        yield
    finally:
        if fd in _held:  # not so in a forked child
            _held.discard(fd)
            with contextlib.suppress(
                OSError
            ):  # it is closed whatever it answers, and nothing of worth is in it
                os.close(fd)


def _take(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
        raise CheckpointError(
            f"{folder} is being written to by {holder}; wait until it ends or choose another folder."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{folder / LOCK_NAME} could not be locked: {error.strerror} (errno {error.errno})."
        ) from error
    with contextlib.suppress(OSError):  # the text only serves the other process's message
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
