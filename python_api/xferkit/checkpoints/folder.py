"""A set of files as one folder that is either whole or not there, and its checked reading."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xferkit.checkpoints.errors import CheckpointError, DamagedError, write_error
from xferkit.checkpoints.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, check_file_name
from xferkit.checkpoints.tensor_file import (
    DTYPE_NAMES,
    FileEntry,
    check_bytes,
    parse_json,
    read_bytes,
    read_tensors,
    tensor_header,
    write_chunks,
    write_tensors,
)
from xferkit.files import (
    free_bytes,
    make_folder,
    publish_folder,
    remove_left_overs,
    sync_folder,
    temporary_name,
)

__all__ = ["CheckedFolder", "Content", "open_folder", "write_folder"]

Content = bytes | str | Mapping[str, Tensor]
"""A file: bytes, text (as UTF-8), or tensors (as safetensors)."""

_MAX_TEXT = 256 * 2**20


def write_folder(
    path: Path,
    files: Mapping[str, Content],
    *,
    kind: str,
    identity: Mapping[str, str] | None = None,
    step: int | None = None,
    replace: bool = False,
) -> None:
    """Write `files` and a manifest of their checksums as the folder `path`.

    Everything goes to a temporary folder beside `path`; each file is flushed to the disk, the manifest last;
    all are read back and compared; then the folder gets its name, and the parent folder is flushed. A crash
    at any moment leaves `path` as it was or whole. What dead processes left beside it is removed first.

    Args:
        path: the folder; parents are made.
        files: content by plain file name.
        kind: what the folder is, compared by :func:`open_folder`.
        identity: what it belongs to.
        step: number of a checkpoint.
        replace: give the name to the new folder although there is one (in one step where the file system
            can), if it was written by this function with the same kind and nothing was added to it;
            otherwise that is an error, but for an empty folder.

    Raises:
        CheckpointError: the folder is there, a name or tensor cannot be kept, too little room (before
            anything is written), or a failed write: with path, reason, and bytes needed and free where that
            is the reason.
    """
    for name, content in files.items():
        try:
            check_file_name(name)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}.") from error
        for key, tensor in content.items() if isinstance(content, Mapping) else ():
            if type(tensor.detach()) is not Tensor or tensor.dtype not in DTYPE_NAMES or tensor.is_meta:
                raise CheckpointError(f"{path / name}: {key!r} is no plain tensor that safetensors can hold.")
    if any(type(text) is not str for pair in (identity or {}).items() for text in pair):
        raise CheckpointError(f"{path}: keys and values of an identity must be strings, got {identity}.")
    needed = sum(_size(content) for content in files.values()) + 4096 * (len(files) + 2)
    temporary = temporary_name(path)
    try:
        _check_free(path, kind, replace)
        make_folder(path.parent)
        remove_left_overs(path)
        if temporary.exists():  # of this very process: an earlier try whose cleaning failed
            shutil.rmtree(temporary)
        free = free_bytes(path.parent)
        if needed > free:
            raise CheckpointError(
                f"{path} was not written: {needed} bytes are needed and {free} are free there; what was saved "
                "before is untouched."
            )
        temporary.mkdir()
        entries = {name: _write(temporary / name, content) for name, content in files.items()}
        manifest = Manifest(kind, entries, dict(identity or {}), step)
        raw = manifest.to_bytes()
        entries[MANIFEST_NAME] = write_chunks(temporary / MANIFEST_NAME, iter([raw]))
        sync_folder(temporary)
        for name, entry in entries.items():
            check_bytes(temporary / name, entry)
        old = publish_folder(temporary, path, replace=replace)
    except OSError as error:
        _remove(temporary)
        raise write_error(path, error, needed) from error
    except BaseException:
        _remove(temporary)
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path} was written, but {path.parent} could not be flushed to the disk: "
            f"{error.strerror} (errno {error.errno})."
        ) from error
    if old is not None:
        _remove(old)


def _check_free(path: Path, kind: str, replace: bool) -> None:
    """Refuse a path whose content nobody asked to lose."""
    if not (path.is_symlink() or path.exists()) or (path.is_dir() and not any(path.iterdir())):
        return
    if not replace:
        raise CheckpointError(f"{path} is there already; nothing was overwritten, choose another folder.")
    if path.is_symlink() or not path.is_dir():
        raise CheckpointError(f"{path} is no folder; nothing was overwritten.")
    known = {*open_folder(path, kind=kind).manifest.files, MANIFEST_NAME}
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in known)
    if strange:
        raise CheckpointError(
            f"{path / strange[0]} was put there by someone else; nothing was overwritten, move it away first."
        )


def _remove(folder: Path) -> None:
    # Best effort: an error under way says what happened, and the next writer removes what is left.
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)


def _size(content: Content) -> int:
    if isinstance(content, Mapping):
        return tensor_header(content)[2]
    return len(content.encode() if isinstance(content, str) else content)


def _write(path: Path, content: Content) -> FileEntry:
    if isinstance(content, Mapping):
        return write_tensors(path, content)
    return write_chunks(path, iter([content.encode() if isinstance(content, str) else content]))


@dataclass(frozen=True)
class CheckedFolder:
    """A folder whose manifest was read; every file is compared with it when it is read."""

    path: Path
    manifest: Manifest

    def bytes(self, name: str, *, max_bytes: int = _MAX_TEXT) -> bytes:
        """Content of the file `name`.

        Raises:
            DamagedError: not in the manifest, missing, longer than `max_bytes` or changed.
            CheckpointError: it cannot be read.
        """
        entry = self._entry(name)
        with _reading(self.path / name):
            return read_bytes(self.path / name, entry, max_bytes)

    def json(self, name: str, *, max_bytes: int = _MAX_TEXT) -> Any:
        """Content of the JSON file `name`; errors as :meth:`bytes`, and DamagedError when it is no JSON."""
        return parse_json(self.path / name, self.bytes(name, max_bytes=max_bytes))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of the safetensors file `name`, on the CPU; errors as :meth:`bytes`."""
        entry = self._entry(name)
        with _reading(self.path / name):
            return read_tensors(self.path / name, entry)

    def _entry(self, name: str) -> FileEntry:
        try:
            return self.manifest.files[name]
        except KeyError:
            raise DamagedError(f"{self.path / MANIFEST_NAME} does not list {name!r}.") from None


def open_folder(path: Path, *, kind: str, identity: Mapping[str, str] | None = None) -> CheckedFolder:
    """Read the manifest of a folder that :func:`write_folder` wrote.

    Args:
        path: the folder.
        kind: what it must be.
        identity: compared with the manifest's where given.

    Raises:
        DamagedError: no manifest, or a changed one.
        CheckpointError: another kind or identity, a newer schema, or it cannot be read.
    """
    file = path / MANIFEST_NAME
    with _reading(file):
        manifest = Manifest.parse(file, read_bytes(file, None, MAX_MANIFEST_BYTES))
    if manifest.kind != kind:
        raise CheckpointError(f"{path} is a folder of kind {manifest.kind!r}, expected {kind!r}.")
    if identity is not None:
        manifest.check_identity(path, identity)
    return CheckedFolder(path, manifest)


@contextlib.contextmanager
def _reading(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be read: {error.strerror or error} (errno {error.errno})."
        ) from error
