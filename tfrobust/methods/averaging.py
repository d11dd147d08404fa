"""Averages of the weights over training, which are validated and saved instead of the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfrobust._compat import after_layers, layers_of, trained_by
from tfrobust.errors import choose, number, require, require_at_least, require_bool, user_path
from tfrobust.methods.batch import Batch
from tfrobust.methods.gated import GatedModel
from tfrobust.serialization import Configurable, serializable

STATISTICS = ("current", "averaged", "recomputed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averaging(Configurable):
    """An average a of the weights w: a <- keep * a + (1 - keep) * w after every training batch.

    Args:
        start_epoch: The epoch, counted from 0, with which averaging starts. Until then a is w.
        statistics: BatchNorm's means and variances beside a. "current" takes those of the network,
            "averaged" averages them like the weights, and "recomputed" takes those of the training
            images at the end of each epoch of `fit` (`tfrobust.training.RecomputedStatistics`).
    """

    start_epoch: int = 0
    statistics: str = "current"

    def __post_init__(self) -> None:
        require_at_least(0, start_epoch=self.start_epoch)
        choose("statistics", self.statistics, STATISTICS)

    @property
    def counts_epochs(self) -> bool:
        """Whether `keep` depends on the steps of an epoch."""
        return self.start_epoch > 0

    def keep(self, step: tf.Tensor, steps_per_epoch: int) -> tf.Tensor:
        """Return `keep` after batch `step`, counted from 0: float32 in [0, 1]."""
        raise NotImplementedError


@serializable
@dataclasses.dataclass(frozen=True)
class Ema(Averaging):
    """An exponential average: keep is min(decay, (1 + t) / (10 + t)) after t batches.

    With its defaults this is the average in the code of Rebuffi et al. (2021, arXiv:2103.01946),
    who start it at once, and of Wang et al. (2023, arXiv:2302.04638), who start it after 2.5 % of
    the epochs. The FastAT Benchmark (arXiv:2604.22853) has decay 0.9995, no warm-up and averaged
    statistics.

    Args:
        decay: The greatest `keep`.
        warm_up: Whether `keep` grows to `decay`; otherwise it is `decay` from the start.
        start_epoch: The epoch, counted from 0, with which averaging starts.
        statistics: BatchNorm's: current, averaged or recomputed.
    """

    decay: float = 0.995
    warm_up: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool(warm_up=self.warm_up)
        object.__setattr__(self, "decay", number("decay", self.decay, above=0, below=1))

    def keep(self, step: tf.Tensor, steps_per_epoch: int) -> tf.Tensor:
        passed = tf.cast(step + 1 - self.start_epoch * steps_per_epoch, tf.float32)
        short = (1.0 + passed) / (10.0 + tf.maximum(passed, 0.0))
        decay = tf.minimum(self.decay, short) if self.warm_up else tf.constant(self.decay)
        return tf.where(passed > 0, decay, 0.0)


@serializable
@dataclasses.dataclass(frozen=True)
class Swa(Averaging):
    """Stochastic weight averaging: the mean of the weights at the ends of epochs.

    Izmailov et al. (2018, arXiv:1803.05407) proposed it; Chen et al. (2021, ICLR) use it against
    robust overfitting. The first weights are those at the end of `start_epoch`.

    Args:
        start_epoch: The epoch, counted from 0, whose end gives the first weights.
        statistics: BatchNorm's: current, averaged or recomputed.
    """

    start_epoch: int = 0
    statistics: str = "recomputed"
    counts_epochs = True

    def keep(self, step: tf.Tensor, steps_per_epoch: int) -> tf.Tensor:
        ends = (step + 1) % steps_per_epoch == 0
        taken = tf.cast(tf.maximum(step // steps_per_epoch - self.start_epoch, 0), tf.float32)
        return tf.where(ends, taken / (taken + 1.0), tf.minimum(taken, 1.0))


AVERAGINGS: dict[str, type[Averaging]] = {"ema": Ema, "swa": Swa}


class AveragedModel(GatedModel):
    """The part of `RobustModel` that averages the network's weights."""

    averaging: Averaging | None
    steps_per_epoch: int | None
    step: Any

    def inputs(self, batch: Batch, x: tf.Tensor) -> Any:
        """Return the inputs of the network as `RobustModel` does."""
        raise NotImplementedError

    def start_averages(self) -> None:
        """Create the variables of the averages, which begin at the network's weights.

        They have at least 32 bits: in bfloat16 the small steps of an average are rounded away.

        Raises:
            UserError: If statistics of BatchNorm in 16 bits are to be recomputed, which is a
                difference of nearly equal numbers.
        """
        if self.averaging is not None and self.averaging.statistics == "recomputed":
            short = [each.dtype for each, _ in self._moving if tf.as_dtype(each.dtype).size < 4]
            expected = "current or averaged for BatchNorm with weights of 16 bits"
            require(not short, "averaging.statistics", expected, "recomputed")
        self.averages = [
            self.add_weight(
                shape=weight.shape,
                dtype=keras.backend.result_type(weight.dtype, "float32"),
                initializer=lambda shape, dtype, weight=weight: tf.cast(weight.value, dtype),
                trainable=False,
                name=f"average_{k}",
            )
            for k, weight in enumerate(self._averaged)
        ]
        for k, average in enumerate(self.averages):  # checkpoints do not follow lists
            setattr(self, f"average_{k}", average)

    def move_averages(self) -> None:
        """Move the averages towards the weights, after a training batch."""
        if self.averaging is None:
            return
        keep = self.averaging.keep(tf.convert_to_tensor(self.step), self.steps_per_epoch or 1)
        for weight, average in zip(self._averaged, self.averages, strict=True):
            share = tf.cast(keep, average.dtype)
            value = tf.cast(weight.value, average.dtype)
            average.assign(share * average.value + (1.0 - share) * value)

    def make_train_function(self, force: bool = False) -> Any:
        self._begin_again()
        return super().make_train_function(force)

    def _begin_again(self) -> None:
        """Set the averages to the weights, which may have changed since, before the first step."""
        if not self._has_begun():
            for weight, average in zip(self._averaged, self.averages, strict=True):
                average.assign(tf.cast(weight.value, average.dtype))

    def steps_taken(self) -> int:
        """Return the number of batches on which the model has trained."""
        return int(keras.ops.convert_to_numpy(self.step))

    def _has_begun(self) -> bool:
        """Return whether the model has trained on a batch."""
        return self.steps_taken() > 0

    def completed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        callbacks = arguments.get("callbacks")
        if isinstance(callbacks, keras.callbacks.CallbackList):  # is complete
            return arguments
        callbacks = keras.tree.flatten(callbacks or [])
        wanted = self.averaging is not None and self.averaging.statistics == "recomputed"
        there = any(isinstance(callback, RecomputedStatistics) for callback in callbacks)
        if wanted and self._moving and not there:
            callbacks = [RecomputedStatistics(self, _batches(arguments)), *callbacks]
        return arguments | {"callbacks": [EpochLength(self), *callbacks]}

    def recompute_statistics(self, batches: Iterable[Batch]) -> None:
        """Set the averages of BatchNorm's statistics to their means over the images of batches.

        The network has the averaged weights in these passes. Its inputs other than the image, if
        there are any, have their defaults.
        """
        moving = self._moving
        if not moving:
            return
        averages = {id(w): a for w, a in zip(self._averaged, self.averages, strict=True)}
        before = [averages[id(statistic)].numpy() for statistic, _ in moving]
        sums = [np.zeros_like(value) for value in before]
        count, (statistics_after, calls) = 0, self._statistics_after
        for batch in batches:
            for total, value in zip(sums, statistics_after(batch["image"]), strict=True):
                total += value.numpy()
            count += 1
        for (statistic, momentum), old, total in zip(moving, before, sums, strict=True):
            # A call of its layer moves a statistic from `old` to momentum * old + (1 - momentum) *
            # batch's. A layer that is shared is called several times in a pass.
            kept = momentum ** calls[id(statistic)]
            if count and kept < 1:
                mean = (total / count - kept * old) / (1.0 - kept)
                averages[id(statistic)].assign(mean)

    @property
    def _moving(self) -> list[tuple[Any, float]]:
        """BatchNorm's statistics that are averaged, each with its momentum.

        With a momentum of 1 a statistic never moves, and so has no value to recompute.
        """
        averaged = {id(weight) for weight in self._averaged}
        return [
            (statistic, layer.momentum)
            for layer in layers_of(self.network)
            if hasattr(layer, "moving_mean") and layer.momentum < 1
            for statistic in (layer.moving_mean, layer.moving_variance)
            if id(statistic) in averaged
        ]

    @functools.cached_property
    def _statistics_after(self) -> tuple[Callable[[tf.Tensor], list[tf.Tensor]], Counter[int]]:
        """The function from images to the statistics after a pass, traced once for all epochs.

        Beside it stands how often a pass calls the layer of a statistic, by the statistic's id.
        """
        calls: Counter[int] = Counter()

        def counted(layer: keras.Layer, _: Any, outputs: Any) -> Any:
            if hasattr(layer, "moving_mean"):
                calls.update([id(layer.moving_mean), id(layer.moving_variance)])
            return outputs

        @tf.function
        def after(images: tf.Tensor) -> list[tf.Tensor]:
            calls.clear()
            with self._as_evaluated() as scope, after_layers(counted):
                self.forward(self.inputs({}, images), "train")
                return [scope.get_current_value(statistic) for statistic, _ in self._moving]

        return after, calls

    def evaluated_weights(self) -> list[np.ndarray]:
        """Return the weights with which the network is validated, for its `set_weights`."""
        pairs = zip(self._averaged, self.averages, strict=True) if self._has_begun() else ()
        averages = {id(w): a for w, a in pairs}
        weights = self.network.weights
        return [tf.cast(averages.get(id(w), w).value, w.dtype).numpy() for w in weights]

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Export the network alone as Keras does, with the weights that `predict` uses."""
        user_path("filepath", filepath)
        filepath = os.path.expanduser(filepath)  # a Path would shorten gs://
        trained = self.network.get_weights()
        self.network.set_weights(self.evaluated_weights())
        try:
            self.network.export(filepath, *args, **kwargs)
        finally:
            self.network.set_weights(trained)

    @property
    def _averaged(self) -> list[Any]:
        """The weights that are averaged, those of frozen layers too; Dropout's seeds never are."""
        if self.averaging is None:
            return []
        weights = self.network.weights
        if self.averaging.statistics == "current":
            trained = {id(w) for layer in layers_of(self.network) for w in trained_by(layer)}
            weights = [weight for weight in weights if id(weight) in trained]
        return [weight for weight in weights if tf.as_dtype(weight.dtype).is_floating]

    def _as_evaluated(self) -> Any:
        """Return a context in which the network's weights are their averages, if there are any.

        Before the first step these are the weights themselves.
        """
        if not self.averages:
            return contextlib.nullcontext()
        pairs = zip(self._averaged, self.averages, strict=True)
        has_begun = tf.convert_to_tensor(self.step) > 0
        return keras.StatelessScope(
            [
                (weight, tf.where(has_begun, tf.cast(average.value, weight.dtype), weight.value))
                for weight, average in pairs
            ]
        )


class EpochLength(keras.callbacks.Callback):
    """A callback that warns of a `steps_per_epoch` of the model that is not that of `fit`.

    Args:
        model: The model, which counts its epochs by `steps_per_epoch`.
    """

    def __init__(self, model: AveragedModel):
        super().__init__()
        self.trained = model

    def on_train_begin(self, logs: Any = None) -> None:
        steps, counted = self.params.get("steps"), self.trained.steps_per_epoch
        if steps is None or counted is None:
            return
        left = counted - self.trained.steps_taken() % counted  # fewer in an epoch that goes on
        if steps != left:
            line = "steps_per_epoch: expected %d, the batches of an epoch of this fit, received %d"
            logging.warning(line, steps, counted)


class RecomputedStatistics(keras.callbacks.Callback):
    """A callback that takes BatchNorm's statistics from the training images after each epoch.

    It acts before the validation, from the start of an averaging whose `statistics` are
    "recomputed" (Izmailov et al., 2018, arXiv:1803.05407). `fit` adds one for its data unless its
    list has one, which must come before callbacks that keep the weights or log the time.

    Args:
        model: The model whose weights are averaged.
        batches: The function from the number of an epoch, from 0, to its training batches.
    """

    def __init__(self, model: AveragedModel, batches: Callable[[int], Iterable[Batch]]):
        super().__init__()
        self.trained, self.batches = model, batches

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        averaging, self.due = self.trained.averaging, None
        if averaging is not None and averaging.statistics == "recomputed":
            passed = self.trained.steps_taken() // (self.trained.steps_per_epoch or 1)
            self.due = epoch if passed >= averaging.start_epoch else None

    def on_test_begin(self, logs: Any = None) -> None:
        self._recompute()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # there may be no validation
        self._recompute()

    def _recompute(self) -> None:
        if self.due is not None:
            self.trained.recompute_statistics(self.batches(self.due))
            self.due = None


def _batches(arguments: Mapping[str, Any]) -> Callable[[int], Iterable[Batch]]:
    """Return the function from an epoch to the training images of `fit`'s arguments, in batches.

    Raises a UserError for a generator, which gives its batches only once.
    """
    x: Any = arguments["x"]
    steps: Any = arguments.get("steps_per_epoch")
    images: Any = x.get("image") if isinstance(x, Mapping) else x
    expected = "arrays, a tf.data.Dataset or a PyDataset, as statistics are recomputed"
    fits = isinstance(images, np.ndarray | tf.data.Dataset | keras.utils.PyDataset)
    require(fits, "x", expected, type(images).__name__)

    def parts() -> Iterable[Any]:
        if isinstance(images, np.ndarray):
            size, held_out = arguments.get("batch_size"), arguments.get("validation_split")
            n, size = int(len(images) * (1.0 - (held_out or 0.0))), size or 32
            return (images[start : min(start + size, n)] for start in range(0, n, size))
        if isinstance(images, keras.utils.PyDataset):
            return (images[number] for number in range(images.num_batches or steps))
        return images

    def batches(_: int) -> Iterable[Batch]:
        for data in itertools.islice(parts(), steps):
            part = keras.utils.unpack_x_y_sample_weight(data)[0]
            image = part["image"] if isinstance(part, Mapping) else part
            yield {"image": tf.cast(image, tf.float32)}

    return batches
