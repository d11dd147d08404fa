"""BatchNorm's moving averages: a pass that the authors make twice on the same images costs one."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust._compat import layers_of


class RepeatablePass:
    """Watch how the one pass in mode "train" in this context moves the averages of BatchNorm.

        with RepeatablePass(network) as clean:
            logits = logits_fn(x)
        clean.repeat()

    A pass moves each average a to momentum * a + (1 - momentum) * s, where s is the batch's mean or
    variance. `repeat` does so again with the same s, as a second pass on the same images would.
    """

    def __init__(self, network: keras.Model):
        self.averages = [
            (average, layer.momentum)
            for layer in layers_of(network)
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for average in (layer.moving_mean, layer.moving_variance)
        ]

    def __enter__(self) -> RepeatablePass:
        self.before = [tf.identity(average.value) for average, _ in self.averages]
        return self

    def __exit__(self, *_: Any) -> None:
        pairs = zip(self.averages, self.before, strict=True)
        self.shares = [average.value - momentum * old for (average, momentum), old in pairs]

    def repeat(self) -> None:
        """Move the averages as the pass did."""
        for (average, momentum), share in zip(self.averages, self.shares, strict=True):
            average.assign(momentum * average.value + share)
