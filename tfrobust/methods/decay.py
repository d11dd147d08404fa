"""The penalties on the weights: the network's, and the papers' coupled decay l2 / 2 * ||w||^2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

DECAYED = ("all", "kernels")


def is_kernel(weight: keras.Variable) -> bool:
    """Return whether a weight has more than one axis and is no scale or offset.

    The biases of attention and of GRU have two axes.
    """
    return len(weight.shape) > 1 and weight.name not in ("gamma", "beta", "bias")


def half_square(network: keras.Model, on: str) -> tf.Tensor:
    """Return ||w||^2 / 2 over the network's trainable weights that `on` names."""
    weights = [w for w in network.trainable_variables if on == "all" or is_kernel(w)]
    return total(tf.nn.l2_loss(weight.value) for weight in weights)


def total(terms: Iterable[Any]) -> tf.Tensor:
    """Return the sum of terms of any precision, float32; 0 if there are none."""
    return tf.add_n([0.0, *(tf.cast(term, tf.float32) for term in terms)])
