"""Gradients of a loss with input gradients, through layers of Keras, against differences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.products import slow_but
from tfrobust import Atlas, Threat
from tfrobust.models.layers import BatchNorm

RNG = np.random.default_rng(0)
BATCH = {
    "image": tf.constant(RNG.normal(size=(4, 2, 2, 1)), tf.float32),
    "adv": tf.constant(RNG.normal(size=(4, 2, 2, 1)), tf.float32),
    "label": tf.constant([0, 1, 2, 1]),
    "projection": tf.linalg.l2_normalize(tf.constant(RNG.normal(size=(4, 3)), tf.float32), axis=1),
}


def image() -> keras.Layer:
    """Return a layer that turns eight numbers into an image, [1, 2, 4]."""
    return layers.Reshape((1, 2, 4))


def dense(activation: str) -> list[keras.Layer]:
    return [layers.Dense(4, activation)]


LAYERS: dict[str, Callable[[], list[keras.Layer]]] = {
    "batch, of images": lambda: [image(), layers.BatchNormalization()],
    "batch, of vectors": lambda: [layers.BatchNormalization()],
    "batch, of all devices": lambda: [layers.BatchNormalization(synchronized=True)],
    "ours, of vectors": lambda: [BatchNorm()],
    "group": lambda: [image(), layers.GroupNormalization(2)],
    "layer": lambda: [layers.LayerNormalization()],
    "resizing": lambda: [image(), layers.Resizing(3, 3)],
}
# TensorFlow's own gradients of these are right. A layer with a kink, such as ReLU, would need
# smaller steps.
ACTIVATIONS = ("gelu", "mish", "silu", "softmax", "softplus")
OTHERS: dict[str, Callable[[], list[keras.Layer]]] = {
    **{name: functools.partial(dense, name) for name in ACTIVATIONS},
    "average pooling": lambda: [image(), layers.AveragePooling2D((1, 2))],
    "convolution": lambda: [image(), layers.Conv2D(3, 3, padding="same")],
    "depthwise": lambda: [image(), layers.DepthwiseConv2D(3, padding="same")],
    "recurrent": lambda: [layers.Reshape((2, 4)), layers.GRU(3)],
    "root mean square": lambda: [layers.RMSNormalization()],
    "transposed": lambda: [image(), layers.Conv2DTranspose(3, 3, 2)],
    "unit": lambda: [layers.UnitNormalization()],
}


@pytest.mark.parametrize("name", slow_but(LAYERS | OTHERS, LAYERS))
def test_the_training_gradient_is_the_slope_of_the_loss(name: str) -> None:
    """The slope is along a random direction of the weights, and all terms have a similar size."""
    keras.utils.set_random_seed(1)
    start = [keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(8, "tanh")]
    end = [layers.Flatten(), layers.Dense(3, "tanh")]
    network = keras.Sequential([*start, *(LAYERS | OTHERS)[name](), *end])
    model = Atlas(network, alpha=1.0, beta=1.0, threat=Threat("linf", 0.1))
    model.compile(keras.optimizers.SGD(), run_eagerly=True)
    weights = network.trainable_variables
    values = [w.numpy() for w in weights]
    rng = np.random.default_rng(2)
    directions = [rng.normal(size=w.shape).astype("float32") for w in weights]

    def loss(h: float) -> Any:
        for weight, value, direction in zip(weights, values, directions, strict=True):
            weight.assign(value + h * direction)
        return tf.reduce_mean(model.robust_loss(BATCH)["loss"]).numpy()

    narrow, wide = ((loss(h) - loss(-h)) / (2 * h) for h in (0.005, 0.01))
    slope = (4 * narrow - wide) / 3  # an error of O(h^4)
    loss(0.0)
    pairs = zip(model.gradients(BATCH)[1], directions, strict=True)
    np.testing.assert_allclose(sum(np.sum(g * d) for g, d in pairs), slope, rtol=1e-3, atol=1e-4)
