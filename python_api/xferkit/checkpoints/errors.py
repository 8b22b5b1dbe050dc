"""What can be wrong with a checkpoint, as one sentence."""

from __future__ import annotations

import errno
from pathlib import Path

from xferkit.files import free_bytes

__all__ = ["CheckpointError", "DamagedError", "write_error"]


class CheckpointError(ValueError):
    """A checkpoint or model folder that cannot be written, or that is not what was asked for."""


class DamagedError(CheckpointError):
    """What is on the disk is not what was written there."""


def write_error(path: Path, error: OSError, needed: int) -> CheckpointError:
    """A failed write as a sentence; what was there before is untouched in every such case."""
    reason = f"{error.strerror or error} (errno {error.errno})"
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        try:
            room = f", {needed} bytes are needed and {free_bytes(path.parent)} are free there"
        except OSError:
            room = f", {needed} bytes are needed"
    return CheckpointError(
        f"{path} could not be written: {reason}{room}; what was saved before is untouched."
    )
