"""Sections of a config as dataclasses, which check their values when they are made."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.space import Range
from tfrobust.attacks import PGD, Attack
from tfrobust.data import (
    Augmentation,
    Dataset,
    Extra,
    Split,
    in_sequence,
    require_equal_weights,
    require_images,
)
from tfrobust.errors import choose, number, require, require_at_least
from tfrobust.evaluation import MODES, Corruptions
from tfrobust.evaluation.api import CRAFT_PRECISIONS
from tfrobust.evaluation.image_file import KINDS
from tfrobust.methods import Averaging
from tfrobust.registry import arguments, located
from tfrobust.training import MONITOR, MONITORS, Guided, Schedule
from tfrobust.xla import is_choice

# The sections on which a training depends.
TRAINED = ("seed", "precision", "threat", "data", "model", "method", "optimizer", "train")
TUNERS = ("random", "bayesian", "hyperband")
# The accuracies of validation, as history.csv names them.
CLEAN, ROBUST = "val_accuracy", "val_robust_accuracy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopLevel:
    """The top-level keys of a config and their types."""

    threat: dict[str, Any] | list[dict[str, Any]]
    data: dict[str, Any]
    seed: int = 0
    precision: str = "float32"
    model: dict[str, Any] | None = None
    method: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    attacks: list[Any] | None = None
    evaluation: dict[str, Any] | None = None
    require: dict[str, Any] | None = None
    stages: list[str] | None = None
    paper: dict[str, Any] | None = None
    card: dict[str, Any] | None = None
    note: str | None = None
    export: dict[str, Any] | None = None
    track: dict[str, Any] | None = None
    search: None = None


@dataclasses.dataclass(frozen=True)
class Card:
    """The section `card`: what MODEL_CARD.md says beside the record of the run.

    Args:
        license: The licence of the network, by its name on the Hugging Face Hub, such as "mit" or
            "apache-2.0".
        text: A paragraph of your own, such as what the network is meant for.
    """

    license: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        name = self.license
        valid = name is None or re.fullmatch(r"[a-z0-9.-]+", name)
        require(valid, "license", "a name in lower case, such as mit or apache-2.0", name)


@dataclasses.dataclass(frozen=True)
class ExtraData:
    """The section `data.extra`: a data set whose training split is mixed into every batch.

    Its images are pseudo-labelled or generated. They are not copied into memory.

    Args:
        share: The share of a batch that comes from it.
        weight: The weight of its examples in the loss; those of the other data set have weight 1.
    """

    source: Dataset
    share: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        Extra(Split.of(np.zeros((1, 1, 1), np.uint8), np.zeros(1, int)), self.share, self.weight)


@dataclasses.dataclass(frozen=True)
class Data:
    """The section `data`: a data set and how it is cut into batches.

    Args:
        batch_size: The number of examples in a training batch, over all devices.
        validation: The number of examples that are held out of the training split, at random.
        augment: The augmentations of training, in the order in which they are applied.
        extra: A data set that is mixed into every batch; see data.extra.
    """

    source: Dataset
    batch_size: int = 128
    validation: int = 0
    augment: tuple[Augmentation, ...] = ()
    extra: ExtraData | None = None

    @functools.cached_property
    def train(self) -> Split:
        """The training split, which is read once. Raises a UserError if it cannot be read."""
        return located("data", self.source.load, "train")

    @functools.cached_property
    def test(self) -> Split:
        """The test split, which is read once. Raises a UserError if it cannot be read."""
        return located("data", self.source.load, "test")

    def __post_init__(self) -> None:
        require_at_least(1, batch_size=self.batch_size)
        require_at_least(0, validation=self.validation)
        in_sequence(self.augment)
        require_images(self.augment, self.source.image_shape)
        require_equal_weights(self.augment, 1.0 if self.extra is None else self.extra.weight)


@dataclasses.dataclass(frozen=True)
class Train:
    """The section `train`.

    Args:
        epochs: The number of epochs.
        schedule: The schedule of the learning rate.
        eps: The eps of training and validation; None is threat.eps. The evaluation always uses
            threat.eps.
        epsilon_warmup_epochs: The number of epochs at eps 0 with which the training begins.
        epsilon_ramp_epochs: The number of the next epochs, over which eps grows linearly from 0.
        validation_attack: The attack of validation, at the full eps of training.
        steps_per_epoch: The number of steps in an epoch, which may exceed the number of batches in
            the training split; None is that number of batches.
        jit_compile: Whether XLA compiles the step (docs/performance.md). auto compiles it on GPUs
            only. Steps that are not compiled are deterministic on CPU.
        init_from: A run folder or .keras file with the network to start from.
        averaging: The average of the weights that is validated and kept instead of the weights.
        monitor: The validation accuracy that a guided rate follows and that chooses the best epoch.
        checkpoint_minutes: The time between two checkpoints within an epoch.
        rollbacks: How often a run whose loss is not finite may go back to its last checkpoint and
            continue at half the learning rate.
    """

    epochs: int
    schedule: Schedule = Guided()
    eps: float | None = None
    epsilon_warmup_epochs: float = 0
    epsilon_ramp_epochs: float = 0
    validation_attack: Attack = PGD(steps=10)
    steps_per_epoch: int | None = None
    jit_compile: bool | str = "auto"
    init_from: str | None = None
    averaging: Averaging | None = None
    monitor: str = MONITOR
    checkpoint_minutes: float = 10.0
    rollbacks: int = 0

    def __post_init__(self) -> None:
        choose("monitor", self.monitor, MONITORS)
        compiled = self.jit_compile
        require(is_choice(compiled), "jit_compile", "true, false or auto", compiled)
        number("checkpoint_minutes", self.checkpoint_minutes, at_least=0)
        require_at_least(0, rollbacks=self.rollbacks)
        require_at_least(1, epochs=self.epochs)
        if self.eps is not None:
            number("eps", self.eps, at_least=0)
        warmup, ramp = self.epsilon_warmup_epochs, self.epsilon_ramp_epochs
        expected = f"a number from 0 to the {self.epochs} epochs"
        require(0 <= warmup <= self.epochs, "epsilon_warmup_epochs", expected, warmup)
        if warmup:
            expected = f"a number from 0 to the {self.epochs - warmup:g} epochs after the warm-up"
        require(0 <= ramp <= self.epochs - warmup, "epsilon_ramp_epochs", expected, ramp)
        start = 0 if self.averaging is None else self.averaging.start_epoch
        expected = f"less than the {self.epochs} epochs"
        require(start < self.epochs, "averaging.start_epoch", expected, start)
        if self.steps_per_epoch is not None:
            require_at_least(1, steps_per_epoch=self.steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """The section `evaluation`.

    Args:
        mode: "cascade" gives each attack only the images that no earlier attack has broken; "each"
            gives every attack all images that are right when clean.
        split: The images that are attacked: "test", or "validation" for those that data.validation
            holds out of training, on which to choose.
        batch_size: The number of images in a pass. With another number, attacks draw other noise.
        save: float32 or uint8 (rounded to 1/255) to keep the adversarial images in adversarial.npz.
        rerun: Whether to compute finished results again. The former results are kept aside. After
            an interruption, leave it out to go on.
        craft_precision: float32, or mixed_bfloat16 to let attacks search in lower precision. The
            images that they return are judged by the network itself, in float32.
        jit_compile: Whether XLA compiles the attacks. auto compiles them on GPUs only.
        lambdas: The lambdas at which a once-for-all network is evaluated, [1] by default. Reported
            results are those at the first lambda; the others add points to the trade-off curve.
        widths: The widths at which a network with widths is evaluated, in the same way. Each width
            has a separate trade-off curve.
        corruptions: The common corruptions whose images are classified too, true for all; none by
            default.
        binarisation: The number of images of the binarisation test, at most 200.
    """

    mode: str = "cascade"
    split: str = "test"
    batch_size: int = 250
    save: str | None = None
    rerun: bool = False
    craft_precision: str = "float32"
    jit_compile: bool | str = "auto"
    lambdas: list[float] | None = None
    widths: list[float] | None = None
    corruptions: Corruptions | bool = False
    binarisation: int = 0

    def __post_init__(self) -> None:
        for name, values in (("lambdas", self.lambdas), ("widths", self.widths)):
            if values is not None:
                inside = values and all(0 <= value <= 1 for value in values)
                once = len(set(values)) == len(values)
                require(inside and once, name, "different numbers in [0, 1]", values)
        choose("mode", self.mode, MODES)
        choose("split", self.split, ("test", "validation"))
        compiled = self.jit_compile
        require(is_choice(compiled), "jit_compile", "true, false or auto", compiled)
        choose("craft_precision", self.craft_precision, CRAFT_PRECISIONS)
        require_at_least(1, batch_size=self.batch_size)
        require_at_least(0, binarisation=self.binarisation)
        if self.save is not None:
            choose("save", self.save, KINDS)

    def check_conditions(self, model: Mapping[str, Any]) -> None:
        """Raise a UserError unless the network that a section makes has these lambdas and widths.

        Args:
            model: The section `model`. What it says of a network from a file is unknown.
        """
        if "name" not in model:
            return
        for name in ("lambdas", "widths"):
            values, trained, where = getattr(self, name), model.get(name), f"evaluation.{name}"
            if values is None:
                continue
            require(trained is not None, where, f"none (the network takes no {name})", values)
            if name == "lambdas" and model.get("encoding") == "none":
                continue  # such a network takes any lambda
            inside = set(values) <= set(trained or ())
            require(inside, where, f"some of model.{name} {trained}", values)


@dataclasses.dataclass(frozen=True)
class Requirements:
    """The section `require`: what a run must show, else the command exits with code 3.

    Args:
        clean_accuracy: A fraction that the lower end of the one-sided interval of the clean
            accuracy must reach.
        robust_accuracy: The same for the accuracy under all attacks, on the images that all saw.
        no_worse_than: The folder of a run with the same test images, threat and attacks. The test
            fails if the clean or the robust accuracy is shown to be lower than there, by
            McNemar's exact one-sided test.
        robust_gain: A fraction by which the accuracy under all attacks must exceed that of the
            stage before; 0 for any gain. The lower end of the interval of the difference decides.
        clean_loss: A fraction by which the clean accuracy may be below that of the stage before. A
            larger loss has to be excluded by the lower end of the interval.
        training_minutes: The time that training and its validation may take.
        level: The confidence of each interval and each test.
    """

    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    no_worse_than: str | None = None
    robust_gain: float | None = None
    clean_loss: float | None = None
    training_minutes: float | None = None
    level: float = 0.95

    def __post_init__(self) -> None:
        for name, least in self.floors.items():
            require(0 < least < 1, name, "a fraction above 0 and below 1", least)
        for name, most in self.changes.items():
            require(0 <= most < 1, name, "a fraction from 0 to below 1", most)
        minutes = self.training_minutes
        require(minutes is None or minutes > 0, "training_minutes", "a number > 0", minutes)
        some = self.floors or self.changes or self.no_worse_than or minutes
        expected = (
            "a value, or one for robust_accuracy, no_worse_than, robust_gain, clean_loss or "
            "training_minutes"
        )
        require(some, "clean_accuracy", expected, None)
        require(0.5 <= self.level < 1, "level", "a fraction from 0.5 to below 1", self.level)

    @property
    def floors(self) -> dict[str, float]:
        """The least accuracies, by name."""
        floors = {
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
        }
        return {name: least for name, least in floors.items() if least is not None}

    @property
    def changes(self) -> dict[str, float]:
        """The least gain and the largest loss against the stage before, by name."""
        changes = {"robust_gain": self.robust_gain, "clean_loss": self.clean_loss}
        return {name: value for name, value in changes.items() if value is not None}

    @classmethod
    def of(
        cls,
        section: Mapping[str, Any] | None,
        stages: Sequence[str],
        attacked: bool,
        trained: bool,
    ) -> Requirements | None:
        """Return the requirements of a section, or None without one.

        Args:
            section: The section.
            stages: The stages of the config.
            attacked: Whether the evaluation has attacks.
            trained: Whether the network is that of a training.

        Raises:
            UserError: For a value out of range, and if nothing measures what is required.
        """
        if section is None:
            return None
        required = located("require", cls, **arguments(cls, section, "require"))
        expected = "the stage attack_eval, whose results are judged"
        require("attack_eval" in stages, "require", expected, list(stages))
        expected = "none (the evaluation has no attacks)"
        for name in ("robust_accuracy", "robust_gain"):
            value = getattr(required, name)
            require(attacked or value is None, f"require.{name}", expected, value)
        minutes, expected = required.training_minutes, "none (the config does not train)"
        require(trained or minutes is None, "require.training_minutes", expected, minutes)
        expected = "none (stages has no stage before, to compare with)"
        for name, value in required.changes.items():
            require("before" in stages, f"require.{name}", expected, value)
        return required


@dataclasses.dataclass(frozen=True)
class Search:
    """The section `search`: the keys of the config whose values are searched, and how.

    The objective is the validation robust accuracy at the best epoch of a trial's training.

    Args:
        space: The path of each searched key, and its values: {method.alpha: {log: [1e-6, 1e-3]},
            method.beta: {linear: [0, 10]}, model.units: {int: [64, 256]}, optimizer.name: {choice:
            [sgd, adam]}}.
        tuner: One of random, bayesian or hyperband. hyperband trains many trials for few epochs and
            goes on with the best, up to train.epochs.
        trials: The largest number of trials. Only hyperband works without it.
        min_clean: The lowest validation clean accuracy that the best trial may have.
    """

    space: dict[str, Range]
    tuner: str = "random"
    trials: int | None = None
    min_clean: float | None = None

    def __post_init__(self) -> None:
        for key in self.space:
            choose(f"space.{key}", key.partition(".")[0], TRAINED)
        choose("tuner", self.tuner, TUNERS)
        if self.tuner == "hyperband":
            expected = "none: hyperband chooses the epochs"
            require("train.epochs" not in self.space, "space.train.epochs", expected, "a range")
        if self.trials is not None or self.tuner != "hyperband":
            require_at_least(1, trials=self.trials)
        least = self.min_clean
        require(least is None or 0 <= least <= 1, "min_clean", "a fraction in [0, 1]", least)
