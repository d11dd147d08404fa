"""Layers of once-for-all networks, whose second input is lambda (Wang et al., 2020,
arXiv:2010.11828): one network, steered between clean and robust accuracy when it is used. With
`widths` (their OATS) a third input is the share of the channels in use: an example's others are 0,
so that one batch may hold several widths (`tfrobust.models.narrowing` cuts one out)."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfrobust.errors import choose, require
from tfrobust.serialization import serializable

WIDTH = 128
ENCODINGS = ("random", "dct", "onehot", "none")


class Condition(NamedTuple):
    """What a network takes beside its image: lambda [B], as "strength", and "width" [B].

    code: lambda encoded [B, D]. size: the width as a one-hot row [B, n], of n `widths`; empty in a
    network of one width.
    """

    inputs: dict[str, Any]
    code: Any
    widths: list[float] | None
    size: list[Any]


def condition(
    lambdas: list[float] | None, encoding: str, widths: list[float] | None
) -> Condition | None:
    """The inputs "strength", lambda, and "width", and their encodings ("lambda" is no name that a
    SavedModel's function could be called with); None of a network without lambdas. Raises UserError
    for lambdas outside [0, 1], and for widths outside (0, 1] or without the whole one."""
    if lambdas is None:
        require(widths is None, "widths", "none in a network without lambdas", widths)
        return None
    inside = lambdas and all(0 <= value <= 1 for value in lambdas)
    require(inside, "lambdas", "numbers in [0, 1]", lambdas)
    require(sorted(set(lambdas)) == lambdas, "lambdas", "rising numbers", lambdas)
    strength = keras.Input((), name="strength")
    code = Encoding(lambdas, encoding)(strength)
    if widths is None:
        return Condition({"strength": strength}, code, None, [])
    rising = sorted(set(widths)) == widths
    whole = rising and widths and widths[0] > 0 and widths[-1] == 1
    require(whole, "widths", "rising numbers above 0, the last of them 1", widths)
    width = keras.Input((), name="width")
    size = Encoding(widths, "onehot", name="widths")(width)
    return Condition({"strength": strength, "width": width}, code, widths, [size])


def slim(x: Any, under: Condition | None) -> Any:
    """0 in the channels beyond the width, of a network that has widths."""
    return x if under is None or under.widths is None else Slim(under.widths)([x, *under.size])


def channels(width: float, count: int) -> int:
    """How many of the `count` channels of a layer, the first, a width leaves in use."""
    return max(1, round(width * count))


@serializable
class Encoding(layers.Layer):
    """[B] -> [B, D]: lambda itself, D = 1 ("none"), or a row for each of `lambdas`, the nearest
    (for the width, of the widths).

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
    """BatchNorm with statistics, scale and offset of its own for examples of lambda 0 and others,
    and with a third input, a one-hot width [B, n], for each width: [x, strength] or [x, strength,
    width] -> x normalised.

    Each example is routed by its lambda and width, so any batch may hold all, in any order.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(**kwargs)
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, shape: Any) -> None:
        widths = shape[2][-1] if len(shape) > 2 else 1
        size = (2 * widths, shape[0][-1])
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
        x, strength, *size = inputs
        wide = tf.cast(x, tf.float32)
        kind = tf.one_hot(tf.cast(strength > 0, tf.int32), 2)
        if size:
            both = kind[:, :, None] * tf.cast(size[0], tf.float32)[:, None]
            kind = tf.reshape(both, [-1, self.gamma.shape[0]])  # [B, 2 n]
        axes = list(range(1, len(x.shape) - 1))
        mean, variance = self.moving_mean.value, self.moving_variance.value
        if training:
            places = tf.cast(tf.size(x[0]) // x.shape[-1], tf.float32)
            counts = places * tf.reduce_sum(kind, axis=0)[:, None]
            share = tf.math.divide_no_nan(1.0, counts)
            own = share * tf.matmul(kind, tf.reduce_sum(wide, axes), transpose_a=True)
            centred = wide - _spread(kind, own, x)
            spread = share * tf.matmul(kind, tf.reduce_sum(centred**2, axes), transpose_a=True)
            for average, now in ((self.moving_mean, own), (self.moving_variance, spread)):
                moved = self.momentum * average.value + (1 - self.momentum) * tf.stop_gradient(now)
                average.assign(tf.where(counts > 0, moved, average.value))
            mean, variance = own, spread
        scale = self.gamma.value * tf.math.rsqrt(variance + self.epsilon)
        offset = self.beta.value - mean * scale
        scaled = wide * _spread(kind, scale, x) + _spread(kind, offset, x)
        return tf.cast(scaled, x.dtype)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape[0]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"momentum": self.momentum, "epsilon": self.epsilon}


@serializable
class FiLM(layers.Layer):
    """[B, ..., C], code [B, D] -> x * mu + sigma, both channels' numbers from the code by a small
    network of one hidden layer, as the authors' code (mu is not 1 + ...).

    A third input, a one-hot width [B, n], leaves its share of both halves of the hidden layer in
    use; the authors' slices of both halves as one give a channel other numbers at each width.
    """

    def __init__(self, widths: list[float] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.widths = widths

    def build(self, shape: Any) -> None:
        count = shape[0][-1]
        self.hidden, self.out = (
            layers.Dense(2 * count, dtype=self.dtype_policy, name=name)
            for name in ("hidden", "out")
        )
        self.hidden.build(shape[1])
        self.out.build((None, 2 * count))

    def call(self, inputs: Any) -> Any:
        x, code, *size = inputs
        hidden = _leaky(self.hidden(code))
        if size:
            rows = keras.ops.tile(_in_use(self.widths or [], x), (1, 2))
            hidden *= keras.ops.matmul(size[0], keras.ops.cast(rows, size[0].dtype))
        made = _leaky(self.out(hidden))
        shape = [-1, *[1] * (len(x.shape) - 2), x.shape[-1]]
        mu, sigma = (keras.ops.reshape(part, shape) for part in keras.ops.split(made, 2, axis=-1))
        return x * mu + sigma

    def compute_output_shape(self, shape: Any) -> Any:
        return shape[0]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"widths": self.widths}


@serializable
class Slim(layers.Layer):
    """[B, ..., C], a one-hot width [B, n] -> x with 0 in the channels beyond the width."""

    def __init__(self, widths: list[float], **kwargs: Any):
        super().__init__(**kwargs)
        self.widths = widths

    def call(self, inputs: Any) -> Any:
        x, size = inputs
        return x * _spread(tf.cast(size, x.dtype), tf.cast(_in_use(self.widths, x), x.dtype), x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape[0]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"widths": list(self.widths)}


def _in_use(widths: list[float], x: Any) -> np.ndarray:
    """[n, C] of 1 and 0: the channels of x that each width leaves in use."""
    counts = np.array([channels(width, x.shape[-1]) for width in widths])
    return (np.arange(x.shape[-1]) < counts[:, None]).astype(np.float32)


def _spread(kind: Any, values: Any, x: Any) -> Any:
    """Of values [n, C] the row of each example, whose one-hot kind is [B, n], shaped to broadcast
    against x."""
    shape = [-1, *[1] * (len(x.shape) - 2), x.shape[-1]]
    return tf.reshape(tf.matmul(kind, values), shape)


def _leaky(x: Any) -> Any:
    return keras.ops.leaky_relu(x, negative_slope=0.01)  # torch's default
