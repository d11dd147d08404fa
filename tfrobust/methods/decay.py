"""The coupled weight decay of the papers, l2 / 2 * ||w||^2."""

from __future__ import annotations

import keras
import tensorflow as tf

DECAYED = ("all", "kernels")


def is_kernel(weight: keras.Variable) -> bool:
    """Return whether a weight has more than one axis and is no scale or offset."""
    return len(weight.shape) > 1 and weight.name not in ("gamma", "beta")


def half_square(network: keras.Model, on: str) -> tf.Tensor:
    """Return ||w||^2 / 2 over the network's trainable weights that `on` names."""
    weights = [w for w in network.trainable_variables if on == "all" or is_kernel(w)]
    return tf.add_n([0.0, *(tf.nn.l2_loss(weight.value) for weight in weights)])
