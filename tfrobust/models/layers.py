"""Layers that the networks share. All are twice differentiable and can be saved by Keras.

BatchNorm, Dropout and MaxPool compute what Keras's layers compute. In files that load with Keras
alone, Keras's layers take their place (`tfrobust.models.keras_layers`).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfrobust import noise
from tfrobust.errors import number, require
from tfrobust.serialization import serializable

LEAST_EPSILON = 1e-5  # the least epsilon that the fused kernels of all devices take
ACTIVATIONS = ("relu", "silu", "softplus")
# The initial weights. "keras": convolutions are He-normal of the fan-in, truncated, and the last
# layer is Glorot-uniform. "he": convolutions are He-normal of the fan-out, and the last layer is as
# in torch but with a bias of 0, as in the WideResNet code of TRADES and AWP. "torch": all are
# uniform within 1 / sqrt(fan-in), torch's default, as in the ResNet and PreActResNet code.
INITS = ("keras", "he", "torch")
# The zeros around the input of a convolution. "torch": kernel // 2 on each side. "same": the fewest
# that give ceil(H / stride) rows, as in TensorFlow and JAX. For stride 2 and an even size, there
# are then none at the start.
PADDINGS = ("torch", "same")


@serializable
class MaxPool(layers.Layer):
    """A layer that takes the max over 2 x 2 windows: [B, H, W, C] -> [B, H // 2, W // 2, C].

    The first of equal values in a window gets the gradient. The layer differs from Keras's
    MaxPooling2D in its second-order gradient, which is written by hand: under XLA, TensorFlow's is
    wrong in float32 and does not compile in half precision, and it is slower. XLA has no
    deterministic gradient of max pooling: with op determinism on, Keras trains without XLA.
    """

    def call(self, x: Any) -> Any:
        return _max_pool(tf.convert_to_tensor(x))

    def compute_output_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return (shape[0], shape[1] // 2, shape[2] // 2, shape[3])


@serializable
class Dropout(layers.Dropout):
    """Keras's Dropout with one mask for the global batch, of which each replica takes its rows.

    Keras's own layer gives all replicas the same mask. `rate` is in [0, 1), and `noise_shape` must
    be None.
    """

    def __init__(self, rate: float, **kwargs: Any):
        super().__init__(number("rate", rate, at_least=0, below=1), **kwargs)
        require(self.noise_shape is None, "noise_shape", "none", self.noise_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not (training and self.rate):
            return inputs
        seed = tf.cast(self.seed_generator.next(), tf.int32)

        def mask(shape: Any) -> Any:
            is_kept = noise.fraction(shape, seed) >= self.rate
            return tf.where(is_kept, tf.cast(1.0 / (1.0 - self.rate), inputs.dtype), 0)

        return inputs * noise.of_layer(mask, tf.shape(inputs))


WINDOWS = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}


def _max_pool_gradient(x: Any, dy: Any) -> Any:
    """Return dy at the places of the maxima.

    The maxima are computed again, because oneDNN's kernel needs them in the same function.
    """
    y = tf.raw_ops.MaxPool(input=x, **WINDOWS)
    return tf.raw_ops.MaxPoolGrad(orig_input=x, orig_output=y, grad=dy, **WINDOWS)


@tf.custom_gradient
def _max_pool(x: Any) -> Any:
    y = tf.raw_ops.MaxPool(input=x, **WINDOWS)

    def spread(dy: Any) -> Any:
        if tf.executing_eagerly():
            return _max_pool_gradient(x, dy)
        # A separate function is outside the loop of an attack's steps. In the loop, whose graph has
        # no fixed order, TensorFlow takes oneDNN's kernel in some processes, and in others its own
        # kernel, which is ten times slower.
        separate = tf.function(_max_pool_gradient, experimental_attributes={"_noinline": True})
        return separate(x, dy)

    @tf.custom_gradient
    def gradient(dy: Any) -> Any:
        def second(u: Any) -> Any:
            """Return the sum over each window of u at its maximum."""
            return 4 * tf.raw_ops.AvgPool(value=u * spread(tf.ones_like(y)), **WINDOWS)

        return spread(dy), second

    return y, gradient


_differentiable = contextvars.ContextVar("differentiable", default=False)


@contextlib.contextmanager
def differentiable_statistics() -> Iterator[None]:
    """Return a context in which gradients flow through what BatchNorm assigns to its averages."""
    token = _differentiable.set(True)
    try:
        yield
    finally:
        _differentiable.reset(token)


@serializable
class BatchNorm(layers.BatchNormalization):
    """Keras's BatchNormalization of [B, H, W, C] by TensorFlow's fused kernel.

    It has the same function, moving averages and gradients as Keras's layer. In bfloat16 on CPU it
    halves the time of a forward pass of a WideResNet. Keras's layer does what the kernel cannot,
    such as `synchronized` or inputs of another rank.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is not None or not self._is_fused(len(inputs.shape)):
            return super().call(inputs, training=training, mask=mask)
        mean = tf.cast(self.moving_mean.value, tf.float32)
        variance = tf.cast(self.moving_variance.value, tf.float32)
        scale = tf.cast(self.gamma.value, tf.float32) if self.scale else tf.ones_like(mean)
        offset = tf.cast(self.beta.value, tf.float32) if self.center else tf.zeros_like(mean)
        if not (training and self.trainable):
            scale = scale * tf.math.rsqrt(variance + self.epsilon)
            return _affine(inputs, scale, offset - mean * scale)
        if _differentiable.get():
            wide = tf.cast(inputs, tf.float32)
            mean = tf.reduce_mean(wide, [0, 1, 2])
            # tf.nn.moments stops the gradient here, which the second derivative needs.
            variance = tf.reduce_mean(tf.square(wide - mean), [0, 1, 2])
            scale = scale * tf.math.rsqrt(variance + self.epsilon)
            out = _affine(inputs, scale, offset - mean * scale)
        else:
            out, mean, variance = _normalized(inputs, scale, offset, self.epsilon)
            mean, variance = tf.stop_gradient(mean), tf.stop_gradient(variance)
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(self.momentum * average.value + (1.0 - self.momentum) * value)
        return out

    def _is_fused(self, rank: int) -> bool:
        """Return whether the fused kernel computes this layer for inputs of a rank."""
        if self.synchronized or self.renorm or self.epsilon < LEAST_EPSILON:
            return False
        return rank == 4 and self.axis in (-1, 3)


def _normalized(x: Any, scale: Any, offset: Any, epsilon: float) -> Any:
    """Normalise x by the mean and the variance of its batch, then scale and shift it.

    The second-order gradient is written by hand: TensorFlow's splits the kernel into operations and
    takes three times as long. Let g = dL/dy, n the number of values of a channel, h = (x - mean) r
    with r = 1 / sqrt(variance + epsilon), and P(v) = v - mean(v) - h mean(v h). The first-order
    gradient in x is scale r P(g). Let u be the gradient of a second loss in this gradient, and a
    and b its gradients in the first-order gradients of scale and offset. Then its gradients are

        in g: scale r P(u) + a h + b;  in scale: r n K, with K = mean(u P(g));
        in x: (a r - scale r^2 mean(u h)) P(g) - scale r^2 (K h + mean(g h) P(u)).

    Returns:
        y, which is like x, and the mean [C] and biased variance [C], float32.
    """
    options = {"epsilon": epsilon, "is_training": True}

    @tf.custom_gradient
    def forward(x: Any, scale: Any, offset: Any) -> Any:
        none = tf.zeros([0])
        y, mean, variance, *reserved = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=none, variance=none, **options
        )
        count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
        variance *= (count - 1.0) / count  # the kernel gives the unbiased one
        inverse = tf.math.rsqrt(variance + epsilon)
        spaces = {f"reserve_space_{k}": value for k, value in enumerate(reserved, 1)}

        def kernel(g: Any, x: Any, scale: Any) -> Any:
            """Return scale r P(g), sum(g h) and sum(g)."""
            return tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=g, x=x, scale=scale, **spaces, **options
            )[:3]

        @tf.custom_gradient
        def backward(g: Any, x: Any, scale: Any) -> Any:
            first, gh, g_sum = kernel(g, x, scale)

            def second(u: Any, a: Any, b: Any) -> Any:
                pu, uh, u_sum = kernel(u, x, scale)
                ug = tf.reduce_sum(tf.cast(u * g, tf.float32), axes)
                k = (ug - (u_sum * g_sum + uh * gh) / count) / count
                of_g = a * inverse - scale * inverse**2 * uh / count
                of_h = -scale * inverse**2 * k - of_g * gh / count
                of_pu = inverse * gh / count
                in_g = pu + _fused_affine(x, inverse * a, b, mean)
                in_x = _fused_affine(x, inverse * of_h, -of_g * g_sum / count, mean)
                in_x = in_x + g * tf.cast(of_g, x.dtype) - pu * tf.cast(of_pu, x.dtype)
                return in_g, in_x, inverse * count * k

            return (first, gh, g_sum), second

        axes = list(range(len(x.shape) - 1))
        return (y, mean, variance), lambda g, *_: backward(g, x, scale)

    return forward(x, scale, offset)


@tf.custom_gradient
def _affine(x: Any, scale: Any, offset: Any) -> Any:
    """Return scale * x + offset, with one number for each channel, in one pass.

    The gradient is written by hand, because the kernel's gradient is slower.
    """
    y = _fused_affine(x, scale, offset, mean=tf.zeros_like(scale))

    def gradient(dy: Any) -> Any:
        axes = list(range(len(x.shape) - 1))
        wide = tf.cast(dy, tf.float32)
        of_scale = tf.reduce_sum(wide * tf.cast(x, tf.float32), axes)
        return dy * tf.cast(scale, dy.dtype), of_scale, tf.reduce_sum(wide, axes)

    return y, gradient


def _fused_affine(x: Any, scale: Any, offset: Any, mean: Any) -> Any:
    """Return (x - mean) * scale + offset, with one number for each channel, in one pass."""
    half = tf.fill(tf.shape(scale), 0.5)
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=mean,
        variance=half,
        epsilon=0.5,
        is_training=False,
    )[0]


def normalize(x: Any, mean: list[float] | None, std: list[float] | None) -> Any:
    """Return (x - mean) / std, with one number for each channel, or x if both are None.

    This is part of the network, so that attacks and users see images in [0, 1].
    """
    if mean is None and std is None:
        return x
    channels = x.shape[-1]
    mean = [0.0] * channels if mean is None else mean
    std = [1.0] * channels if std is None else std
    counts = (len(mean), len(std))
    require(counts == (channels, channels), "mean, std", f"{channels} numbers each", counts)
    require(min(std) > 0, "std", "numbers > 0", std)
    return layers.Normalization(mean=mean, variance=[s * s for s in std], name="normalize")(x)


def conv(
    x: Any,
    filters: int,
    kernel: int,
    stride: int = 1,
    *,
    init: str = "keras",
    padding: str = "torch",
) -> Any:
    """Return the convolution of x without bias.

    By default there are kernel // 2 zeros on each side, as in torch.

    Args:
        x: Feature maps [B, H, W, C].
        filters: The number of filters.
        kernel: The height and width of the filters, odd.
        stride: The stride; the result has ceil(H / stride) rows.
        init: One of INITS.
        padding: One of PADDINGS. They differ only where the stride is more than 1.
    """
    if stride == 1:
        padding = "same"
    if padding == "torch":
        x = layers.ZeroPadding2D(kernel // 2)(x) if kernel > 1 else x
        padding = "valid"
    start = _torch_uniform() if init == "torch" else _normal(init)
    options = {"use_bias": False, "kernel_initializer": start}
    return layers.Conv2D(filters, kernel, stride, padding, **options)(x)


def _normal(init: str) -> keras.initializers.Initializer:
    """Return N(0, 2 / fan), with the fan-out for "he", and the fan-in, truncated, for "keras"."""
    if init == "he":
        return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    return keras.initializers.HeNormal()


def _torch_uniform() -> keras.initializers.Initializer:
    """Return U(-b, b) with b = 1 / sqrt(fan-in), torch's default for all weights."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def max_pool(x: Any) -> Any:
    """Return the max over 3 x 3 windows around every second pixel, with torch's padding of 1.

    With a stride of 2, Keras pads an even size only at the end. A border of zeros would be right
    for x >= 0, as after ReLU, but not after SiLU.
    """
    return layers.MaxPooling2D(1, 2)(layers.MaxPooling2D(3, 1, "same")(x))


def activate(x: Any, activation: str) -> Any:
    """Apply one of ACTIVATIONS. oneDNN fuses Keras's ReLU layer with the operation before it."""
    return layers.ReLU()(x) if activation == "relu" else layers.Activation(activation)(x)


def batch_norm(affine: bool = True) -> BatchNorm:
    """Return a BatchNorm with the constants of the papers' code.

    They are momentum 0.1 of torch, which is 0.9 in Keras, and epsilon 1e-5. Unless `affine`, the
    layer has neither scale nor offset.
    """
    return BatchNorm(momentum=0.9, epsilon=1e-5, scale=affine, center=affine)


def logits(x: Any, classes: int, init: str = "keras") -> Any:
    """Return the logits [B, classes] of the last layer, which are float32 in every precision.

    Args:
        x: Features [B, D].
        classes: The number of classes.
        init: One of INITS.
    """
    bound = x.shape[-1] ** -0.5
    kernel = keras.initializers.GlorotUniform() if init == "keras" else _torch_uniform()
    bias = keras.initializers.RandomUniform(-bound, bound) if init == "torch" else "zeros"
    dense = layers.Dense(
        classes, kernel_initializer=kernel, bias_initializer=bias, dtype="float32", name="logits"
    )
    return dense(x)


def input_image(shape: tuple[int, ...]) -> Any:
    """Return a network's input: [B, H, W, C] in [0, 1], for `shape` (H, W, C)."""
    expected = "images (H, W, C) (mlp takes any inputs, conv1d series)"
    require(len(shape) == 3, "image_shape", expected, tuple(shape))
    return keras.Input(shape, name="image")
