"""The sections of a config that are plain values, checked when they are made."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from pipelines.space import Range
from tfrobust.attacks import PGD, Attack
from tfrobust.data import AUGMENTATIONS, Dataset, Extra, Split
from tfrobust.errors import choose, require
from tfrobust.evaluation import MODES
from tfrobust.registry import located
from tfrobust.training import MONITOR, MONITORS, Schedule
from tfrobust.xla import is_choice

# The sections that a training depends on.
TRAINED = ("seed", "precision", "threat", "data", "model", "method", "optimizer", "train")
TUNERS = ("random", "bayesian", "hyperband")


@dataclasses.dataclass(frozen=True)
class ExtraData:
    """`data.extra`: another data set, such as a pseudo-labelled one, whose training split is mixed
    into every batch.

    share: its share of a batch. weight: the say of its examples, against 1.
    """

    source: Dataset
    share: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        Extra(Split.of(np.zeros((1, 1, 1), np.uint8), np.zeros(1, int)), self.share, self.weight)


@dataclasses.dataclass(frozen=True)
class Data:
    """The `data` section: a data set and how it is cut into batches.

    validation: examples held out of the training split, at random. augment: crop or crop_flip.
    """

    source: Dataset
    batch_size: int = 128
    validation: int = 0
    augment: str | None = None
    extra: ExtraData | None = None

    @functools.cached_property
    def train(self) -> Split:
        """The training split, read once. Raises UserError where it cannot be had."""
        return located("data", self.source.load, "train")

    @functools.cached_property
    def test(self) -> Split:
        """The test split, read once. Raises UserError where it cannot be had."""
        return located("data", self.source.load, "test")

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", "int >= 1", self.batch_size)
        require(self.validation >= 0, "validation", "int >= 0", self.validation)
        if self.augment is not None:
            choose("augment", self.augment, AUGMENTATIONS)


@dataclasses.dataclass(frozen=True)
class Train:
    """The `train` section.

    eps: of training and validation, None is threat.eps, at which the attacks are in any case.
    epsilon_ramp_epochs: eps grows linearly from 0 over so many epochs. steps_per_epoch: None is the
    whole training split. jit_compile: whether XLA compiles the step (docs/performance.md); auto:
    only on GPUs. Steps that are not compiled are deterministic on CPU. init_from: a run folder or
    .keras file whose network is trained on. monitor: the validation accuracy that a guided rate
    follows and that tells the best epoch. checkpoint_minutes: how often the state is saved within
    an epoch. rollbacks: how often a loss that is not finite sends the run back to its last
    checkpoint, at half the rate.
    """

    epochs: int
    schedule: Schedule
    eps: float | None = None
    epsilon_ramp_epochs: float = 0
    validation_attack: Attack = PGD(steps=10)
    steps_per_epoch: int | None = None
    jit_compile: bool | str = "auto"
    init_from: str | None = None
    monitor: str = MONITOR
    checkpoint_minutes: float = 10.0
    rollbacks: int = 0

    def __post_init__(self) -> None:
        choose("monitor", self.monitor, MONITORS)
        jit = self.jit_compile
        require(is_choice(jit), "jit_compile", "true, false or auto", jit)
        minutes = self.checkpoint_minutes
        require(minutes >= 0, "checkpoint_minutes", "a number >= 0", minutes)
        require(self.rollbacks >= 0, "rollbacks", "int >= 0", self.rollbacks)
        require(self.epochs >= 1, "epochs", "int >= 1", self.epochs)
        require(self.eps is None or self.eps >= 0, "eps", "a number >= 0", self.eps)
        ramp = self.epsilon_ramp_epochs
        expected = f"a number from 0 to the {self.epochs} epochs"
        require(0 <= ramp <= self.epochs, "epsilon_ramp_epochs", expected, ramp)
        steps = self.steps_per_epoch
        require(steps is None or steps >= 1, "steps_per_epoch", "int >= 1", steps)


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """The `evaluation` section.

    mode: "cascade" attacks only what still stands; "each" gives every attack all images. save:
    keep the adversarial images, as float32 or uint8 (rounded to 1/255), in adversarial.npz. rerun:
    compute again what is done; the former results are kept aside. craft_precision: float32, or
    mixed_bfloat16 to let attacks search in it; the network itself judges what they find.
    jit_compile: whether XLA compiles the attacks; auto: only on GPUs.
    lambdas: where a once-for-all network is evaluated, 1 by default; all that is reported is of the
    first, the others make the trade-off curve. widths: the same of one with widths, which has a
    curve for each.
    """

    mode: str = "cascade"
    batch_size: int = 250
    save: str | None = None
    rerun: bool = False
    craft_precision: str = "float32"
    jit_compile: bool | str = "auto"
    lambdas: list[float] | None = None
    widths: list[float] | None = None

    def __post_init__(self) -> None:
        for name, given in (("lambdas", self.lambdas), ("widths", self.widths)):
            listed = [1.0] if given is None else given
            inside = listed and all(0 <= value <= 1 for value in listed)
            require(inside, name, "numbers in [0, 1]", listed)
        choose("mode", self.mode, MODES)
        jit = self.jit_compile
        require(is_choice(jit), "jit_compile", "true, false or auto", jit)
        choose("craft_precision", self.craft_precision, ("float32", "mixed_bfloat16"))
        require(self.batch_size >= 1, "batch_size", "int >= 1", self.batch_size)
        if self.save is not None:
            choose("save", self.save, ("float32", "uint8"))


@dataclasses.dataclass(frozen=True)
class Search:
    """The `search` section: which keys of the config are searched, how, and for what.

    The objective is the validation robust accuracy at the epoch that a training keeps.
    space: the values of each key by its path: {method.alpha: {log: [1e-6, 1e-3]}, method.beta:
    {linear: [0, 10]}, model.units: {int: [64, 256]}, optimizer.name: {choice: [sgd, adam]}}.
    tuner: random, bayesian or hyperband, which trains many trials for few epochs and goes on with
    the best, up to train.epochs.
    trials: at most so many; hyperband alone may do without.
    min_clean: the least validation clean accuracy of a trial that may be the best.
    """

    space: dict[str, Range]
    tuner: str = "random"
    trials: int | None = None
    min_clean: float | None = None

    def __post_init__(self) -> None:
        for key in self.space:
            choose(f"space.{key}", key.partition(".")[0], TRAINED)
        choose("tuner", self.tuner, TUNERS)
        ends, trials = self.tuner == "hyperband", self.trials
        require(ends or trials is not None, "trials", "int >= 1", trials)
        require(trials is None or trials >= 1, "trials", "int >= 1", trials)
        clash = ends and "train.epochs" in self.space
        require(not clash, "space.train.epochs", "none: hyperband chooses the epochs", "a range")
        clean = self.min_clean
        require(clean is None or 0 <= clean <= 1, "min_clean", "a fraction in [0, 1]", clean)
