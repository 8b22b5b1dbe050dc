"""Checkpoints that survive kills, power cuts, full disks and flipped bits; folders of files with checksums."""

from xferkit.checkpoints.errors import CheckpointError, DamagedError
from xferkit.checkpoints.folder import CheckedFolder, Content, open_folder, write_folder
from xferkit.checkpoints.lock import locked_folder
from xferkit.checkpoints.store import Checkpoint, CheckpointStore
from xferkit.checkpoints.tensor_file import FileEntry, read_tensors

__all__ = [
    "CheckedFolder",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "Content",
    "DamagedError",
    "FileEntry",
    "locked_folder",
    "open_folder",
    "read_tensors",
    "write_folder",
]
