"""One trainer, its settings, what it reports and how it stops."""

from xferkit.data.seeding import derive_seed, over_seeds, seeded
from xferkit.trainers.config import TrainerConfig
from xferkit.trainers.history import Evaluation, History, Record
from xferkit.trainers.interrupts import Interrupted
from xferkit.trainers.progress import ProgressKind, make_progress
from xferkit.trainers.schedules import make_schedule
from xferkit.trainers.trainer import Trainer
from xferkit.trainers.updates import NonFiniteError

__all__ = [
    "Evaluation",
    "History",
    "Interrupted",
    "NonFiniteError",
    "ProgressKind",
    "Record",
    "Trainer",
    "TrainerConfig",
    "derive_seed",
    "make_progress",
    "make_schedule",
    "over_seeds",
    "seeded",
]
