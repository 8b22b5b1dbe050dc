"""Checkpoints of a run: a folder each, the newest valid one on resume."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xferkit.checkpoints.errors import CheckpointError, DamagedError
from xferkit.checkpoints.folder import open_folder, write_folder
from xferkit.checkpoints.lock import locked_folder
from xferkit.checkpoints.tree import MAX_TREE_BYTES, decode_tree, encode_tree
from xferkit.files import TEMPORARY_SUFFIX, free_name, make_folder, sync_folder, temporary_name

__all__ = ["Checkpoint", "CheckpointStore"]

_KIND = "checkpoint"
_TENSORS, _TREE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{8,18})(?:-(\d{1,6}))?")
_MAX_STEP = 10**18 - 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and compared with its checksums.

    Attributes:
        step: its number.
        state: equal to what was saved, to the bit; tensors on the CPU.
        path: its folder.
        skipped: why newer ones were passed over, a sentence each.
    """

    step: int
    state: dict[str, Any]
    path: Path
    skipped: tuple[str, ...] = ()


class CheckpointStore:
    """Checkpoints ``step-00000042`` in one folder, by the rules below.

    - A checkpoint is written under a temporary name, flushed, read back, compared and renamed: it is whole or
      not there, whatever moment the process or the machine dies at.
    - The `keep` newest stay; older ones go only after the new one is whole and flushed.
    - Reading compares every byte with SHA-256 checksums. The newest valid checkpoint is loaded; damaged ones
      are passed over, named through `warn` and, by the holder of the lock, renamed ``.corrupt``, never deleted.
    - A checkpoint of another identity or a newer schema is refused, not passed over.
    - One process writes (:meth:`locked`); any may read at the same time.

    Args:
        folder: made when it is not there.
        keep: checkpoints that stay, at least 2.
        warn: called with a sentence when something was passed over or could not be removed; the default is
            ``warnings.warn``.

    Raises:
        ValueError: `keep` is below 2.
        CheckpointError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, keep: int = 2, warn: Callable[[str], None] | None = None) -> None:
        if keep < 2:
            raise ValueError(
                f"CheckpointStore: keep must be at least 2, got {keep}; with one, damage to it would lose the run"
            )
        self.folder, self.keep = Path(folder), keep
        self._warn = warn or (lambda text: warnings.warn(text, stacklevel=3))
        self._locked = False
        try:
            make_folder(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"{folder} could not be made: {error.strerror} (errno {error.errno})."
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; what a killed process left half-written is removed.

        Raises:
            CheckpointError: another process holds it; the sentence has its number and machine.
        """
        with locked_folder(self.folder):
            self._locked = True
            try:
                self._remove_left_overs()
                yield
            finally:
                self._locked = False

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending, valid or not."""
        return sorted({step for step, _, _ in self._found()})

    def save(self, step: int, state: Mapping[str, Any], identity: Mapping[str, str]) -> Path:
        """Write a checkpoint; when this returns, it is on the disk and has been read back.

        Args:
            step: at least that of the newest checkpoint; the same step again makes a second one, which counts
                as newer.
            state: nested dicts (keys str or int), lists and tuples of tensors of any dtype, shape, device and
                strides, int, float (infinities and NaNs kept), bool, str, bytes and None.
            identity: what the run is (model, data, ...), compared on resume.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: a value that cannot be kept (with its place), a newer checkpoint is there, too
                little room or another failed write (with path, reason, bytes needed and free). What was saved
                before is untouched in every case.
            RuntimeError: outside :meth:`locked`.
        """
        if not self._locked:
            raise RuntimeError("CheckpointStore.save: hold the folder with locked() first")
        if type(step) is not int or not 0 <= step <= _MAX_STEP:
            raise CheckpointError(f"step must be an integer from 0 to {_MAX_STEP}, got {step!r}.")
        found = self._found()
        newest, attempt, path = found[-1] if found else (-1, 0, None)
        if newest > step:
            raise CheckpointError(
                f"{path} is newer than step {step}; move it away to go on from an earlier step."
            )
        text, tensors = encode_tree(state)
        name = f"step-{step:08d}" + (f"-{attempt + 1}" if newest == step else "")
        target = self.folder / name
        write_folder(target, {_TENSORS: tensors, _TREE: text}, kind=_KIND, identity=identity, step=step)
        self._remove_old()
        return target

    def load_newest(self, identity: Mapping[str, str] | None) -> Checkpoint | None:
        """The newest valid checkpoint, or None when there is none at all.

        Args:
            identity: what the run is; None takes any.

        Raises:
            CheckpointError: the newest one whose manifest is intact belongs to something else or has a newer
                schema; or there are checkpoints and all are damaged (they keep their names then, so that a
                run is never started anew over them unasked).
        """
        for _ in range(1000):
            try:
                return self._load_newest(identity)
            except _VanishedError:
                continue  # a writer has removed it as old: there is a newer one
        raise CheckpointError(f"{self.folder} changes faster than it can be read.")

    def load(self, step: int, identity: Mapping[str, str] | None) -> Checkpoint:
        """The checkpoint of `step`.

        Raises:
            CheckpointError: there is none, it is damaged, belongs to something else or has a newer schema.
        """
        paths = [path for found, _, path in self._found() if found == step]
        if not paths:
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; there are: {there}.")
        return self._read(step, paths[-1], identity)

    def _load_newest(self, identity: Mapping[str, str] | None) -> Checkpoint | None:
        damaged: list[tuple[Path, str]] = []
        loaded: Checkpoint | None = None
        for step, _, path in reversed(self._found()):
            try:
                loaded = self._read(step, path, identity)
                break
            except DamagedError as error:
                if not self._locked and not path.exists():
                    raise _VanishedError from error
                damaged.append((path, str(error)))
        if loaded is None and damaged:
            reasons = " ".join(reason for _, reason in damaged)
            raise CheckpointError(
                f"{self.folder} has no valid checkpoint left: {reasons} Nothing was changed; move them away to "
                "start anew."
            )
        for path, reason in damaged:
            aside = self._move_aside(path) if self._locked else None
            kept = f"kept as {aside.name}" if aside else "left in place"
            assert loaded is not None
            self._warn(f"{path} is damaged and was passed over for step {loaded.step} ({kept}): {reason}")
        if loaded is None:
            return None
        return Checkpoint(loaded.step, loaded.state, loaded.path, tuple(reason for _, reason in damaged))

    def _read(self, step: int, path: Path, identity: Mapping[str, str] | None) -> Checkpoint:
        try:
            folder = open_folder(path, kind=_KIND, identity=identity)
            if folder.manifest.step != step:
                raise DamagedError(f"{path} holds the checkpoint of step {folder.manifest.step}.")
            tensors = folder.tensors(_TENSORS)
            text = folder.bytes(_TREE, max_bytes=MAX_TREE_BYTES)
        except CheckpointError as error:
            # A bad sector is damage; a missing permission is not.
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (
                errno.EIO,
                errno.ENOTDIR,
                errno.ELOOP,
            ):
                raise DamagedError(str(error)) from error
            raise
        return Checkpoint(step, decode_tree(path / _TREE, text, tensors), path)

    def _found(self) -> list[tuple[int, int, Path]]:
        """Step, attempt and path of every checkpoint, oldest first."""
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} could not be read: {error.strerror} (errno {error.errno})."
            ) from error
        matches = [m for m in map(_NAME.fullmatch, names) if m]
        return sorted((int(m[1]), int(m[2] or 1), self.folder / m[0]) for m in matches)

    def _move_aside(self, path: Path) -> Path:
        aside = free_name(path.with_name(path.name + ".corrupt"))
        try:
            os.rename(path, aside)
            sync_folder(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"{path} is damaged and could not be renamed: {error.strerror} (errno {error.errno})."
            ) from error
        return aside

    def _remove_old(self) -> None:
        for _, _, path in self._found()[: -self.keep]:
            try:
                # Renamed first: no reader takes a half-removed folder for a damaged checkpoint.
                going = temporary_name(path)
                os.rename(path, going)
                shutil.rmtree(going)
            except OSError as error:
                # The new checkpoint is safe; the next save or start tries again.
                self._warn(f"{path} could not be removed: {error.strerror} (errno {error.errno}).")

    def _remove_left_overs(self) -> None:
        for entry in list(os.scandir(self.folder)):
            if not (entry.name.startswith(".step-") and entry.name.endswith(TEMPORARY_SUFFIX)):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
            except OSError as error:
                self._warn(f"{entry.path} could not be removed: {error.strerror} (errno {error.errno}).")


class _VanishedError(Exception):
    """A checkpoint went while it was read."""
