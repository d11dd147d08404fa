"""Learning-rate schedules, guided by robust accuracy on validation data or fixed in advance."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from typing import Any, ClassVar

import keras

from tfrobust.errors import choose, number, require, require_at_least, require_bool
from tfrobust.serialization import serializable
from tfrobust.training.state import Stateful

MONITOR = "val_robust_accuracy"
MONITORS = (MONITOR, "val_accuracy")  # they may guide the rate and choose the best epoch
SHAPES = ("cosine", "linear")
TINY = 1e-9  # replaces the length 0 of a rise or a fall


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The course of the optimizer's learning rate over a run."""

    # Whether a run may go on for more epochs than it was started with, as the rate at a step does
    # not depend on the number of epochs.
    extends: ClassVar[bool] = True

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        """Return the optimizer's `learning_rate`: a number or a Keras LearningRateSchedule.

        Args:
            base: The learning rate of the config.
            steps_per_epoch: The number of optimizer steps in an epoch.
            epochs: The number of epochs.
        """
        return base

    def callbacks(self, first_epoch: int, monitor: str = MONITOR) -> list[keras.callbacks.Callback]:
        """Return callbacks that guide the run by `monitor` from epoch `first_epoch` on.

        This is the epoch in which the ramp ends.
        """
        return []


@dataclasses.dataclass(frozen=True)
class Guided(Schedule):
    """The rate is guided by robust accuracy on validation data (ATLAS paper, appendix B).

    After `patience` epochs without gain it is multiplied by `factor`. After `stop` epochs without
    gain the run ends.
    """

    patience: int = 2
    factor: float = 0.2
    stop: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, patience=self.patience, stop=self.stop)
        object.__setattr__(self, "factor", number("factor", self.factor, above=0, below=1))

    def callbacks(self, first_epoch: int, monitor: str = MONITOR) -> list[keras.callbacks.Callback]:
        return [
            GuidedRate(monitor, self.factor, self.patience, first_epoch),
            GuidedStop(monitor, patience=self.stop, mode="max", start_from_epoch=first_epoch),
        ]


class GuidedStop(Stateful, keras.callbacks.EarlyStopping):
    """EarlyStopping whose counters are saved and restored with a checkpoint."""

    state_names = ("best", "wait", "best_epoch", "stopped_epoch")


class GuidedRate(Stateful, keras.callbacks.ReduceLROnPlateau):
    """ReduceLROnPlateau on an accuracy, from the end of the ramp on.

    Before, robust accuracy at the full eps says little, and the rate would fall too early.
    """

    state_names = ("best", "wait", "cooldown_counter")

    def __init__(self, monitor: str, factor: float, patience: int, first_epoch: int):
        super().__init__(monitor, factor, patience, mode="max", min_delta=0.0, verbose=1)
        self.first_epoch = first_epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch >= self.first_epoch:
            super().on_epoch_end(epoch, logs)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The rate does not change."""


@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """The rate is multiplied by `factor` at the first step of each of `epochs`, counted from 0.

    With epochs [100] there are 100 epochs at the full rate, and the rate drops before the 101st. In
    code that counts epochs from 1 and compares with >= (TRADES, MART), the same number drops the
    rate an epoch earlier.

    Args:
        epochs: Rising numbers of epochs.
        factor: The factor of every drop, or a list with one for each.
    """

    epochs: list[int]
    factor: float | list[float] = 0.1

    def __post_init__(self) -> None:
        require(isinstance(self.epochs, list), "epochs", "a list", self.epochs)
        require_at_least(1, **{f"epochs.{i}": epoch for i, epoch in enumerate(self.epochs)})
        rising = self.epochs and self.epochs == sorted(set(self.epochs))
        require(rising, "epochs", "rising numbers", self.epochs)
        fits = len(self.factors) == len(self.epochs)
        require(fits, "factor", f"one number, or {len(self.epochs)} as epochs has", self.factor)
        for factor in self.factors:
            number("factor", factor, above=0)

    @property
    def factors(self) -> list[float]:
        """The factor of each drop."""
        return self.factor if isinstance(self.factor, list) else [self.factor] * len(self.epochs)

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [epoch * steps_per_epoch - 1 for epoch in self.epochs],
            list(itertools.accumulate(self.factors, operator.mul, initial=base)),
        )


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """The rate falls from the base rate to 0 over the run, along half a cosine."""

    extends = False

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        return keras.optimizers.schedules.CosineDecay(base, steps_per_epoch * epochs)


@dataclasses.dataclass(frozen=True)
class Cyclic(Schedule):
    """The rate rises linearly from 0 to the base rate and falls linearly to 0 again.

    It is highest at the fraction `peak` of the run. This is the one cycle of Wong et al. (2020).
    """

    extends = False

    peak: float = 0.4

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak", number("peak", self.peak, above=0, below=1))

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        return Triangle(base, int(self.peak * steps_per_epoch * epochs), steps_per_epoch * epochs)


@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """The rate rises to the base rate and falls far below it (Smith and Topin, arXiv:1708.07120).

    It begins at base / start_divisor and ends at base / start_divisor / end_divisor. This is
    torch's OneCycleLR, without its cycle of the momentum.

    Args:
        peak: The fraction of the run after which the rate is highest.
        shape: Either cosine or linear, for the rise and for the fall.
        by_epoch: Whether the rate changes between epochs only, as in the FastAT Benchmark
            (arXiv:2604.22853).
    """

    extends = False

    peak: float = 0.3
    shape: str = "cosine"
    start_divisor: float = 25.0
    end_divisor: float = 1e4
    by_epoch: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak", number("peak", self.peak, above=0, below=1))
        choose("shape", self.shape, SHAPES)
        require_bool(by_epoch=self.by_epoch)
        for name in ("start_divisor", "end_divisor"):
            object.__setattr__(self, name, number(name, getattr(self, name), at_least=1))

    def learning_rate(self, base: float, steps_per_epoch: int, epochs: int) -> Any:
        length, count = 1, steps_per_epoch * epochs
        if self.by_epoch:
            length, count = steps_per_epoch, epochs
        start = base / self.start_divisor
        top, end = self.peak * count - 1, count - 1
        return Cycle(base, start, start / self.end_divisor, top, end, self.shape, length)


@serializable
class Cycle(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that is `first` at time 0, `base` at time `top` and `last` at time `end`.

    The time is the number of complete intervals of `length` steps. Between these times the rate
    follows half a cosine or a line (`shape`).
    """

    def __init__(
        self,
        base: float,
        first: float,
        last: float,
        top: float,
        end: float,
        shape: str,
        length: int,
    ):
        self.base, self.first, self.last = base, first, last
        self.top, self.end, self.shape, self.length = top, end, shape, length

    def __call__(self, step: Any) -> Any:
        time = keras.ops.cast(step // self.length, "float32")
        rises = time <= self.top
        up = time / max(self.top, TINY)
        down = (time - self.top) / max(self.end - self.top, TINY)
        share = keras.ops.clip(keras.ops.where(rises, 1.0 - up, down), 0.0, 1.0)
        if self.shape == "cosine":
            share = (1.0 - keras.ops.cos(math.pi * share)) / 2.0
        foot = keras.ops.where(rises, self.first, self.last)
        return self.base + (foot - self.base) * share

    def get_config(self) -> dict[str, Any]:
        names = ("base", "first", "last", "top", "end", "shape", "length")
        return {name: getattr(self, name) for name in names}


@serializable
class Triangle(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that is 0 at step 0, `base` at step `peak` and 0 at step `end`, and linear between."""

    def __init__(self, base: float, peak: int, end: int):
        self.base, self.peak, self.end = base, max(1, peak), end

    def __call__(self, step: Any) -> Any:
        step = keras.ops.cast(step, "float32")
        up = step / self.peak
        down = (self.end - step) / max(1, self.end - self.peak)
        return self.base * keras.ops.maximum(keras.ops.minimum(up, down), 0.0)

    def get_config(self) -> dict[str, Any]:
        return {"base": self.base, "peak": self.peak, "end": self.end}


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "cyclic": Cyclic,
    "guided": Guided,
    "one_cycle": OneCycle,
    "piecewise": Piecewise,
}
