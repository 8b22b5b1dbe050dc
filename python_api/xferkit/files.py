"""Files and folders that are either whole or not there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "TEMPORARY_SUFFIX",
    "free_bytes",
    "free_name",
    "make_folder",
    "named_errors",
    "publish_folder",
    "remove_left_overs",
    "sync_folder",
    "temporary_name",
    "write_atomic",
]

#: What is left with this ending comes from a process that was killed while writing.
TEMPORARY_SUFFIX = ".tmp"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`; a crash at any moment leaves the old file or the new one.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed over `path`; the
    folder is flushed last, so that the new name survives a power cut as well. What dead processes left of
    earlier tries is removed.

    Raises:
        OSError: the folder cannot be written or the disk is full; the temporary file is removed.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_name(path)
    try:
        with named_errors(path):
            remove_left_overs(path)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """An OSError inside names `path`; those of writes and flushes name nothing by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def temporary_name(path: Path) -> Path:
    """Name beside `path` for what is not whole yet: hidden, with host and process in it."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}{TEMPORARY_SUFFIX}")


def remove_left_overs(path: Path) -> None:
    """Remove what dead processes of this machine left beside `path` under :func:`temporary_name`.

    Raises:
        OSError: one of them cannot be removed.
    """
    pattern = re.compile(
        rf"\.{re.escape(path.name)}\.{re.escape(_host())}-(\d+){re.escape(TEMPORARY_SUFFIX)}"
    )
    for entry in list(path.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match is None or _is_alive(int(match[1])):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def publish_folder(temporary: Path, path: Path, *, replace: bool = False) -> Path | None:
    """Give a finished folder its name; with `replace`, the folder that has it loses it in the same step.

    The two names are exchanged by one system call, so that `path` is whole at every moment. On file systems
    without that call (NFS) the old folder is moved aside first, and a crash between the two renames leaves
    it under a temporary name.

    Returns:
        Where the old folder is now, if there was one. The caller flushes the parent folder, then removes it.

    Raises:
        OSError: `path` is there (an empty folder does not count) and `replace` is False, or a rename fails;
            `path` is what it was.
    """
    if not replace or not path.exists():
        os.rename(temporary, path)
        return None
    if _exchange(temporary, path):
        return temporary
    aside = free_name(temporary_name(path.with_name(path.name + ".old")))
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(aside, path)
        raise
    return aside


def make_folder(path: Path) -> None:
    """Make a folder and its parents where they are missing, their names flushed to the disk.

    Raises:
        OSError: one cannot be made, or a file has the name.
    """
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's names to the disk.

    Raises:
        OSError: it cannot be opened or flushed.
    """
    with named_errors(path):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def free_name(path: Path) -> Path:
    """`path`, or the first of ``path.1``, ``path.2``, ... that is not there."""
    candidate, number = path, 1
    while candidate.exists() or candidate.is_symlink():
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write to the file system of `folder`.

    Raises:
        OSError: the folder is not there.
    """
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())[:48]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the file system or the C library cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    rename.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))
