"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["TEMPORARY_SUFFIX", "write_atomic"]

#: What is left with this ending comes from a process that was killed while writing.
TEMPORARY_SUFFIX = ".tmp"


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`; a crash at any moment leaves the old file or the new one.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed over `path`; the
    folder is flushed last, so that the new name survives a power cut as well.

    Raises:
        OSError: the folder cannot be written or the disk is full; the temporary file is removed.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
