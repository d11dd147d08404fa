"""Layers of once-for-all networks, whose second input is lambda (Wang et al., 2020,
arXiv:2010.11828): one network, steered between clean and robust accuracy when it is used."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfrobust.registry import choose, require, serializable

WIDTH = 128
ENCODINGS = ("random", "dct", "onehot", "none")


class Condition(NamedTuple):
    """lambda in a network: as it is [B], and encoded [B, D]."""

    strength: Any
    code: Any


def condition(lambdas: list[float], encoding: str) -> Condition:
    """The input "strength", lambda, and its encoding ("lambda" is no name that a SavedModel's
    function could be called with). Raises UserError for numbers outside [0, 1]."""
    inside = lambdas and all(0 <= value <= 1 for value in lambdas)
    require(inside, "lambdas", "numbers in [0, 1]", lambdas)
    require(sorted(set(lambdas)) == lambdas, "lambdas", "rising numbers", lambdas)
    strength = keras.Input((), name="strength")
    return Condition(strength, Encoding(lambdas, encoding)(strength))


@serializable
class Encoding(layers.Layer):
    """[B] -> [B, D]: lambda itself, D = 1 ("none"), or a row for each of `lambdas`, the nearest.

    The rows are the first of a random orthogonal matrix of 128 ("random"), of a cosine transform of
    as many ("dct"), or of the identity ("onehot"). Only "none" tells a lambda that was not trained
    from its neighbours.
    """

    def __init__(self, lambdas: list[float], encoding: str = "random", **kwargs: Any):
        super().__init__(**kwargs)
        self.lambdas, self.encoding = lambdas, choose("encoding", encoding, ENCODINGS)
        self.rows = self.add_weight(
            shape=self._rows().shape,
            initializer=lambda shape, dtype=None: keras.ops.convert_to_tensor(self._rows(), dtype),
            trainable=False,
            name="rows",
        )

    def _rows(self) -> np.ndarray:
        n = len(self.lambdas)
        if self.encoding == "random":
            draw = np.random.default_rng(0).normal(size=(WIDTH, WIDTH))
            return np.linalg.qr(draw)[0][:n]
        if self.encoding == "dct":  # not normalised: a row for each frequency
            return tf.signal.dct(tf.eye(WIDTH)).numpy().T[:n]
        return np.eye(n if self.encoding == "onehot" else 1)

    def call(self, strength: Any) -> Any:
        if self.encoding == "none":
            return strength[:, None]
        apart = keras.ops.abs(strength[:, None] - keras.ops.cast(self.lambdas, strength.dtype))
        return keras.ops.take(self.rows, keras.ops.argmin(apart, axis=1), axis=0)

    def get_config(self) -> dict[str, Any]:
        own = {"lambdas": list(self.lambdas), "encoding": self.encoding}
        return super().get_config() | own


@serializable
class DualBatchNorm(layers.Layer):
    """BatchNorm with statistics, scale and offset of its own for examples of lambda 0 and others.

    Each example is routed by its lambda, so any batch may hold both, in any order.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(**kwargs)
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, shape: Any) -> None:
        size = (2, shape[0][-1])
        values = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}
        self.gamma, self.beta, self.moving_mean, self.moving_variance = (
            self.add_weight(
                shape=size,
                initializer=keras.initializers.Constant(value),
                trainable=name in ("gamma", "beta"),
                autocast=False,
                name=name,
            )
            for name, value in values.items()
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x, strength = inputs
        wide = tf.cast(x, tf.float32)
        kind = tf.one_hot(tf.cast(strength > 0, tf.int32), 2)  # [B, 2]
        axes = list(range(1, len(x.shape) - 1))
        mean, variance = self.moving_mean.value, self.moving_variance.value
        if training:
            places = tf.cast(tf.size(x[0]) // x.shape[-1], tf.float32)
            counts = places * tf.reduce_sum(kind, axis=0)[:, None]
            share = tf.math.divide_no_nan(1.0, counts)
            own = share * tf.matmul(kind, tf.reduce_sum(wide, axes), transpose_a=True)
            centred = wide - self._spread(kind, own, x)
            spread = share * tf.matmul(kind, tf.reduce_sum(centred**2, axes), transpose_a=True)
            for average, now in ((self.moving_mean, own), (self.moving_variance, spread)):
                moved = self.momentum * average.value + (1 - self.momentum) * tf.stop_gradient(now)
                average.assign(tf.where(counts > 0, moved, average.value))
            mean, variance = own, spread
        scale = self.gamma.value * tf.math.rsqrt(variance + self.epsilon)
        offset = self.beta.value - mean * scale
        scaled = wide * self._spread(kind, scale, x) + self._spread(kind, offset, x)
        return tf.cast(scaled, x.dtype)

    @staticmethod
    def _spread(kind: Any, values: Any, x: Any) -> Any:
        """Of [2, C] each example's row, shaped to broadcast against x."""
        shape = [-1, *[1] * (len(x.shape) - 2), x.shape[-1]]
        return tf.reshape(tf.matmul(kind, values), shape)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape[0]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"momentum": self.momentum, "epsilon": self.epsilon}


@serializable
class FiLM(layers.Layer):
    """[B, ..., C], code [B, D] -> x * mu + sigma, both channels' numbers from the code by a small
    network of one hidden layer, as the authors' code (mu is not 1 + ...)."""

    def build(self, shape: Any) -> None:
        channels = shape[0][-1]
        self.hidden, self.out = (
            layers.Dense(2 * channels, dtype=self.dtype_policy, name=name)
            for name in ("hidden", "out")
        )
        self.hidden.build(shape[1])
        self.out.build((None, 2 * channels))

    def call(self, inputs: Any) -> Any:
        x, code = inputs
        made = _leaky(self.out(_leaky(self.hidden(code))))
        shape = [-1, *[1] * (len(x.shape) - 2), x.shape[-1]]
        mu, sigma = (keras.ops.reshape(part, shape) for part in keras.ops.split(made, 2, axis=-1))
        return x * mu + sigma

    def compute_output_shape(self, shape: Any) -> Any:
        return shape[0]


def _leaky(x: Any) -> Any:
    return keras.ops.leaky_relu(x, negative_slope=0.01)  # torch's default
