"""The parts of a training run beside its method: learning rates, monitors, checkpoints, signals."""

from tfrobust.methods.averaging import RecomputedStatistics as RecomputedStatistics
from tfrobust.training.checkpoint import Best as Best
from tfrobust.training.checkpoint import Checkpoints as Checkpoints
from tfrobust.training.checkpoint import Resume as Resume
from tfrobust.training.interrupt import Interrupted as Interrupted
from tfrobust.training.interrupt import Interruption as Interruption
from tfrobust.training.interrupt import NotFinite as NotFinite
from tfrobust.training.monitors import BatchTimer as BatchTimer
from tfrobust.training.monitors import CatastrophicOverfitting as CatastrophicOverfitting
from tfrobust.training.monitors import History as History
from tfrobust.training.monitors import TableQuantiles as TableQuantiles
from tfrobust.training.optimizers import OPTIMIZERS as OPTIMIZERS
from tfrobust.training.schedules import MONITOR as MONITOR
from tfrobust.training.schedules import MONITORS as MONITORS
from tfrobust.training.schedules import SCHEDULES as SCHEDULES
from tfrobust.training.schedules import Guided as Guided
from tfrobust.training.schedules import Schedule as Schedule
