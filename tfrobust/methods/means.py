"""The averages that training and validation report, and which way each of them is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfrobust._compat import CompileMetrics, set_direction

# Keras's EarlyStopping, ModelCheckpoint and ReduceLROnPlateau ask a metric for its direction;
# of one that is named nowhere here they ask for a `mode`.
DIRECTIONS = {
    "up": ("accuracy", "robust_accuracy", "fgsm_accuracy", "radius", "margin", "alignment"),
    "down": ("jacobian", "kl", "squeeze", "linearity_gap"),
}


class Means(CompileMetrics):
    """Weighted means of numbers [B], by name: sum(weight * value) / sum(weight), 0 without weight.

    A CompileMetrics, as Keras's callbacks look for directions in nothing else.
    """

    def __init__(self, names: Iterable[str]):
        super().__init__(None, None)
        self.means = {name: keras.metrics.Mean(name=name, dtype="float32") for name in names}
        for direction, better in DIRECTIONS.items():
            for name in self.means.keys() & set(better):
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
        """Average terms [B], each example with its weight, and return the averages so far.

        Args:
            loss: the mean of the term "loss", which Keras keeps itself.
            terms: the numbers by name; of a term that not all examples have a pair, with 1 [B] for
                those that have it and 0 for the others.
            weight: [B].
        """
        means = {"loss": loss, **self.means}
        for name, term in terms.items():
            values, present = term if isinstance(term, tuple) else (term, 1.0)
            values = tf.cast(values, tf.float32)
            means[name].update_state(values, tf.broadcast_to(weight * present, tf.shape(values)))
        return {name: means[name].result() for name in terms}
