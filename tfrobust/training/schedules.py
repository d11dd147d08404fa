"""Learning-rate policies: guided by validation robust accuracy, or fixed in advance."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras

from tfrobust.errors import require
from tfrobust.serialization import serializable
from tfrobust.training.state import Kept

MONITOR = "val_robust_accuracy"
MONITORS = (MONITOR, "val_accuracy")  # what may lead a run and tell its best epoch


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the optimizer's learning rate does over a run.

    extends: whether the rate at a step is the same however many epochs there are, so that a run may
    go on for more of them than it was begun with.
    """

    extends: ClassVar[bool] = True

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        """The optimizer's `learning_rate`: a number or a Keras LearningRateSchedule."""
        return base

    def callbacks(self, first_epoch: int, monitor: str = MONITOR) -> list[keras.callbacks.Callback]:
        """Callbacks that steer the run by `monitor`, from epoch `first_epoch` (the ramp's end)."""
        return []


@dataclasses.dataclass(frozen=True)
class Guided(Schedule):
    """Robust accuracy on validation data leads (ATLAS paper, appendix B).

    No gain for `patience` epochs multiplies the rate by `factor`; none for `stop` ends the run.
    """

    patience: int = 2
    factor: float = 0.2
    stop: int = 10

    def __post_init__(self) -> None:
        require(self.patience >= 1, "patience", "int >= 1", self.patience)
        require(self.stop >= 1, "stop", "int >= 1", self.stop)
        require(0 < self.factor < 1, "factor", "a fraction between 0 and 1", self.factor)

    def callbacks(self, first_epoch: int, monitor: str = MONITOR) -> list[keras.callbacks.Callback]:
        return [
            GuidedRate(monitor, self.factor, self.patience, first_epoch),
            GuidedStop(monitor, patience=self.stop, mode="max", start_from_epoch=first_epoch),
        ]


class GuidedStop(Kept, keras.callbacks.EarlyStopping):
    """EarlyStopping whose counters go on with a checkpoint."""

    kept = ("best", "wait", "best_epoch", "stopped_epoch")


class GuidedRate(Kept, keras.callbacks.ReduceLROnPlateau):
    """ReduceLROnPlateau on an accuracy that waits for the ramp's end.

    Before it, robust accuracy at the full eps says little, and the rate would be gone too soon.
    """

    kept = ("best", "wait", "cooldown_counter")

    def __init__(self, monitor: str, factor: float, patience: int, first_epoch: int):
        super().__init__(monitor, factor, patience, mode="max", min_delta=0.0, verbose=1)
        self.first_epoch = first_epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch >= self.first_epoch:
            super().on_epoch_end(epoch, logs)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The rate stays as it is."""


@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """The rate is multiplied by `factor` when each of `epochs` begins (counted from 0)."""

    epochs: list[int]
    factor: float = 0.1

    def __post_init__(self) -> None:
        rising = self.epochs == sorted(set(self.epochs))
        require(
            self.epochs and rising and self.epochs[0] > 0,
            "epochs",
            "rising numbers > 0",
            self.epochs,
        )

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [e * steps_per_epoch - 1 for e in self.epochs],
            [base * self.factor**k for k in range(len(self.epochs) + 1)],
        )


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """From the base rate to 0 along half a cosine over the run."""

    extends = False

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        return keras.optimizers.schedules.CosineDecay(base, steps_per_epoch * epochs)


@dataclasses.dataclass(frozen=True)
class Cyclic(Schedule):
    """From 0 up to the base rate at fraction `peak` of the run and down to 0, linearly.

    The one cycle of Wong et al. (2020).
    """

    extends = False

    peak: float = 0.4

    def __post_init__(self) -> None:
        require(0 < self.peak < 1, "peak", "a fraction between 0 and 1", self.peak)

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        return Triangle(base, int(self.peak * steps_per_epoch * epochs), steps_per_epoch * epochs)


@serializable
class Triangle(keras.optimizers.schedules.LearningRateSchedule):
    """0 at step 0, `base` at step `peak`, 0 at step `end`, linear between."""

    def __init__(self, base: float, peak: int, end: int):
        self.base, self.peak, self.end = base, max(1, peak), end

    def __call__(self, step: Any) -> Any:
        step = keras.ops.cast(step, "float32")
        up, down = step / self.peak, (self.end - step) / max(1, self.end - self.peak)
        return self.base * keras.ops.maximum(keras.ops.minimum(up, down), 0.0)

    def get_config(self) -> dict[str, Any]:
        return {"base": self.base, "peak": self.peak, "end": self.end}


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "cyclic": Cyclic,
    "guided": Guided,
    "piecewise": Piecewise,
}
