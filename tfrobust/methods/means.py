"""The means that training and validation report, and the direction in which each is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfrobust._compat import CompileMetrics, set_direction

# Keras's EarlyStopping, ModelCheckpoint and ReduceLROnPlateau ask a metric for its direction. For a
# metric that is not listed here they need a `mode`.
DIRECTIONS = {
    "up": ("accuracy", "robust_accuracy", "fgsm_accuracy", "radius", "margin", "alignment"),
    "down": ("jacobian", "kl", "squeeze", "linearity_gap"),
}


class Means(CompileMetrics):
    """Weighted means of values [B] by name: sum(weight * value) / sum(weight), or 0 without weight.

    It is a CompileMetrics because Keras's callbacks look for directions in no other class.
    """

    def __init__(self, names: Iterable[str]):
        super().__init__(None, None)
        self.means = {name: keras.metrics.Mean(name=name, dtype="float32") for name in names}
        for direction, metrics in DIRECTIONS.items():
            for name in self.means.keys() & set(metrics):
                set_direction(self.means[name], direction)
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return list(self.means.values())

    def result(self) -> dict[str, tf.Tensor]:
        return {name: mean.result() for name, mean in self.means.items()}

    def reset_state(self) -> None:
        for mean in self.means.values():
            mean.reset_state()

    def measure(
        self, loss: keras.metrics.Mean, terms: Mapping[str, Any], weight: Any = 1.0
    ) -> dict[str, tf.Tensor]:
        """Add a batch to the means, and return the means so far.

        Args:
            loss: The metric of the term "loss", which belongs to Keras.
            terms: The values [B] by name. A term that only some examples have is a pair (values
                [B], presence [B]), where presence is 1 for examples with the term and else 0.
            weight: The weights of the examples, [B], or one number for all.
        """
        means = {"loss": loss, **self.means}
        for name, term in terms.items():
            values, presence = term if isinstance(term, tuple) else (term, 1.0)
            values = tf.cast(values, tf.float32)
            means[name].update_state(values, tf.broadcast_to(weight * presence, tf.shape(values)))
        return {name: means[name].result() for name in terms}


def for_keras(logs: dict[str, Any]) -> dict[str, Any]:
    """Return logs that Keras can reduce, which are vectors if there are several machines."""
    if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}
    return logs
