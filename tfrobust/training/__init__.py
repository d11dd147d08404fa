"""What a training run needs beside a method: learning rates, monitors, checkpoints, signals."""

from tfrobust.training.checkpoint import Best, Checkpoints, Resume
from tfrobust.training.interrupt import Interrupted, Interruption, NotFinite
from tfrobust.training.monitors import (
    BatchTimer,
    CatastrophicOverfitting,
    History,
    TableQuantiles,
)
from tfrobust.training.optimizers import OPTIMIZERS
from tfrobust.training.schedules import MONITOR, MONITORS, SCHEDULES, Guided, Schedule
from tfrobust.training.statistics import RecomputedStatistics

__all__ = [
    "MONITOR",
    "MONITORS",
    "OPTIMIZERS",
    "SCHEDULES",
    "BatchTimer",
    "Best",
    "CatastrophicOverfitting",
    "Checkpoints",
    "Guided",
    "History",
    "Interrupted",
    "Interruption",
    "NotFinite",
    "RecomputedStatistics",
    "Resume",
    "Schedule",
    "TableQuantiles",
]
