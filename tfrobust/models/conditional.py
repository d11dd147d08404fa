"""Layers of once-for-all networks (Wang et al., 2020, arXiv:2010.11828).

The second input of such a network is lambda, by which its user trades clean against robust
accuracy. With `widths` (OATS in the paper) the third input is the share of the channels in use. The
other channels of an example are set to 0, so a batch may hold several widths.
`tfrobust.models.narrowing` cuts out the network of one width.

Keras has no such layers: a saved once-for-all network loads only after `import tfrobust`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfrobust.errors import choose, require
from tfrobust.serialization import serializable

CODE_LENGTH = 128  # of a random or cosine code of lambda
ENCODINGS = ("random", "dct", "onehot", "none")


class Condition(NamedTuple):
    """The inputs of a once-for-all network beside its image.

    Attributes:
        inputs: The inputs by name: "strength", which is lambda [B], and "width" [B] if there are
            `widths`.
        code: The encoded lambda, [B, D].
        widths: The n widths of the network; None for a network of one width.
        size: A list of one tensor [B, n], the width as a one-hot row. It is empty for a network of
            one width.
    """

    inputs: dict[str, Any]
    code: Any
    widths: list[float] | None
    size: list[Any]


def conditional_inputs(
    lambdas: list[float] | None, encoding: str, widths: list[float] | None
) -> Condition | None:
    """Create the inputs "strength" and "width" and their encodings.

    Lambda is called "strength" because "lambda" is a keyword of Python, which cannot name an
    argument of a SavedModel's function.

    Args:
        lambdas: The values of lambda in [0, 1], in rising order. None for an ordinary network.
        encoding: One of ENCODINGS; see `Encoding`.
        widths: The shares of the channels in (0, 1], in rising order, ending with 1. None for a
            network of one width.

    Returns:
        The condition; None for an ordinary network.

    Raises:
        UserError: The lambdas or the widths are not such numbers.
    """
    if lambdas is None:
        require(widths is None, "widths", "none in a network without lambdas", widths)
        return None
    in_range = lambdas and all(0 <= value <= 1 for value in lambdas)
    require(in_range, "lambdas", "numbers in [0, 1]", lambdas)
    require(sorted(set(lambdas)) == lambdas, "lambdas", "rising numbers", lambdas)
    fits = len(lambdas) <= CODE_LENGTH or encoding in ("onehot", "none")
    expected = f"at most {CODE_LENGTH}, as encoding {encoding} has no more codes"
    require(fits, "lambdas", expected, len(lambdas))
    strength = keras.Input((), name="strength")
    code = Encoding(lambdas, encoding)(strength)
    if widths is None:
        return Condition({"strength": strength}, code, None, [])
    rising = bool(widths) and sorted(set(widths)) == widths
    in_range = rising and widths[0] > 0 and widths[-1] == 1
    require(in_range, "widths", "rising numbers above 0, the last of them 1", widths)
    width = keras.Input((), name="width")
    size = Encoding(widths, "onehot", name="widths")(width)
    return Condition({"strength": strength, "width": width}, code, widths, [size])


def slim(x: Any, condition: Condition | None) -> Any:
    """Return x [B, ..., C] with channels beyond the width set to 0, in a network with widths."""
    if condition is None or condition.widths is None:
        return x
    return Slim(condition.widths)([x, *condition.size])


def channels(width: float, count: int) -> int:
    """Return how many of a layer's `count` channels, from the first on, are in use at a width."""
    return max(1, round(width * count))


@serializable
class Encoding(layers.Layer):
    """An encoding of lambda, or of the width: [B] -> [B, D].

    With "none" the code is lambda itself, D = 1. Otherwise each of `lambdas` has a row, and the
    code is the row of the nearest of them. The rows are the first rows of a random orthogonal
    128 x 128 matrix ("random"), of a 128 x 128 cosine transform ("dct"), or of the identity
    ("onehot"). Only "none" distinguishes a lambda between two trained ones from its neighbours.

    Args:
        lambdas: The values that have a row: lambdas, or the widths of a network.
        encoding: "random", "dct", "onehot" or "none".
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
            draw = np.random.default_rng(0).normal(size=(CODE_LENGTH, CODE_LENGTH))
            return np.linalg.qr(draw)[0][:n]
        if self.encoding == "dct":  # not normalised; one row for each frequency
            return tf.signal.dct(tf.eye(CODE_LENGTH)).numpy().T[:n]
        return np.eye(n if self.encoding == "onehot" else 1)

    def call(self, strength: Any) -> Any:
        if self.encoding == "none":
            return strength[:, None]
        gaps = keras.ops.abs(strength[:, None] - keras.ops.cast(self.lambdas, strength.dtype))
        return keras.ops.take(self.rows, tf.argmin(gaps, axis=1), axis=0)

    def get_config(self) -> dict[str, Any]:
        config = {"lambdas": list(self.lambdas), "encoding": self.encoding}
        return super().get_config() | config


@serializable
class DualBatchNorm(layers.Layer):
    """BatchNorm with separate statistics, scale and offset for lambda = 0 and lambda > 0.

    It maps [x, strength] or [x, strength, width] to the normalised x, where x is [B, ..., C],
    strength is lambda [B], and width is a one-hot row [B, n]. With a width, there are two sets for
    each of the n widths. The set of each example is that of its lambda and width, so a batch may
    hold any mixture of them in any order.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(**kwargs)
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, shape: Any) -> None:
        widths = shape[2][-1] if len(shape) > 2 else 1
        size = (2 * widths, shape[0][-1])
        common: Any = {"shape": size, "autocast": False}
        fixed = common | {"trainable": False}
        self.gamma = self.add_weight(initializer="ones", name="gamma", **common)
        self.beta = self.add_weight(initializer="zeros", name="beta", **common)
        self.moving_mean = self.add_weight(initializer="zeros", name="moving_mean", **fixed)
        self.moving_variance = self.add_weight(initializer="ones", name="moving_variance", **fixed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x, strength, *size = inputs
        wide = tf.cast(x, tf.float32)
        kind = tf.one_hot(tf.cast(strength > 0, tf.int32), 2)
        if size:
            kind = kind[:, :, None] * tf.cast(size[0], tf.float32)[:, None]
            kind = tf.reshape(kind, [-1, self.gamma.shape[0]])  # [B, 2 n]
        axes = list(range(1, len(x.shape) - 1))
        mean, variance = self.moving_mean.value, self.moving_variance.value
        if training:
            places = tf.cast(tf.size(x[0]) // x.shape[-1], tf.float32)
            counts = places * tf.reduce_sum(kind, axis=0)[:, None]
            share = tf.math.divide_no_nan(1.0, counts)
            mean = share * tf.matmul(kind, tf.reduce_sum(wide, axes), transpose_a=True)
            centred = wide - _row_of_each(kind, mean, x)
            variance = share * tf.matmul(kind, tf.reduce_sum(centred**2, axes), transpose_a=True)
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                change = (1 - self.momentum) * tf.stop_gradient(value)
                moved = self.momentum * average.value + change
                average.assign(tf.where(counts > 0, moved, average.value))
        scale = self.gamma.value * tf.math.rsqrt(variance + self.epsilon)
        offset = self.beta.value - mean * scale
        scaled = wide * _row_of_each(kind, scale, x) + _row_of_each(kind, offset, x)
        return tf.cast(scaled, x.dtype)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape[0]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"momentum": self.momentum, "epsilon": self.epsilon}


@serializable
class FiLM(layers.Layer):
    """Feature-wise linear modulation: x [B, ..., C], code [B, D] -> x * mu + sigma.

    mu and sigma, one number for each channel, come from the code through a small network with one
    hidden layer, as in the authors' code (mu is not 1 + ...). With a third input, a one-hot width
    [B, n], the width's share of each half of the hidden layer is in use. The authors slice both
    halves as one, which gives a channel different numbers at each width.
    """

    def __init__(self, widths: list[float] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.widths = widths

    def build(self, shape: Any) -> None:
        count = shape[0][-1]
        self.hidden = layers.Dense(2 * count, dtype=self.dtype_policy, name="hidden")
        self.out = layers.Dense(2 * count, dtype=self.dtype_policy, name="out")
        self.hidden.build(shape[1])
        self.out.build((None, 2 * count))

    def call(self, inputs: Any) -> Any:
        x, code, *size = inputs
        hidden = _leaky(self.hidden(code))
        if size:
            rows = keras.ops.tile(_in_use(self.widths or [], x), (1, 2))
            hidden *= keras.ops.matmul(size[0], keras.ops.cast(rows, size[0].dtype))
        numbers = keras.ops.split(_leaky(self.out(hidden)), 2, axis=-1)
        shape = [-1, *[1] * (len(x.shape) - 2), x.shape[-1]]
        mu, sigma = (keras.ops.reshape(part, shape) for part in numbers)
        return x * mu + sigma

    def compute_output_shape(self, shape: Any) -> Any:
        return shape[0]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"widths": self.widths}


@serializable
class Slim(layers.Layer):
    """A layer that sets channels of x [B, ..., C] beyond the width, one-hot [B, n], to 0."""

    def __init__(self, widths: list[float], **kwargs: Any):
        super().__init__(**kwargs)
        self.widths = widths

    def call(self, inputs: Any) -> Any:
        x, size = inputs
        in_use = tf.cast(_in_use(self.widths, x), x.dtype)
        return x * _row_of_each(tf.cast(size, x.dtype), in_use, x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape[0]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"widths": list(self.widths)}


def _in_use(widths: list[float], x: Any) -> np.ndarray:
    """Return [n, C], 1 for the channels of x that are in use at each width and 0 for the others."""
    counts = np.array([channels(width, x.shape[-1]) for width in widths])
    return (np.arange(x.shape[-1]) < counts[:, None]).astype(np.float32)


def _row_of_each(kind: Any, values: Any, x: Any) -> Any:
    """Return each example's row of `values` [n, C], in a shape that broadcasts with x [B, ..., C].

    `kind` is the number of the row as a one-hot row, [B, n].
    """
    shape = [-1, *[1] * (len(x.shape) - 2), x.shape[-1]]
    return tf.reshape(tf.matmul(kind, values), shape)


def _leaky(x: Any) -> Any:
    return keras.ops.leaky_relu(x, negative_slope=0.01)  # torch's default
