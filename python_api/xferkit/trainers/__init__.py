"""One trainer, its batch streams, seeds and progress."""

from xferkit.trainers.history import History, Record
from xferkit.trainers.progress import ProgressKind, make_progress
from xferkit.trainers.schedules import make_schedule
from xferkit.trainers.seeding import derive_seed, over_seeds, seeded
from xferkit.trainers.streams import DomainData, DomainStream, endless_indices
from xferkit.trainers.trainer import BatchStream, Trainer

__all__ = [
    "BatchStream",
    "DomainData",
    "DomainStream",
    "History",
    "ProgressKind",
    "Record",
    "Trainer",
    "derive_seed",
    "endless_indices",
    "make_progress",
    "make_schedule",
    "over_seeds",
    "seeded",
]
