"""Layers that the networks share. All are twice differentiable and can be saved by Keras.

BatchNorm, Dropout and MaxPool do what Keras's own layers do, which take their place in files that
load with Keras alone (`tfrobust.models.keras_layers`).
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
from tfrobust.errors import require
from tfrobust.serialization import serializable

LEAST_EPSILON = 1e-5  # the least that the fused kernels of all devices take
ACTIVATIONS = ("relu", "silu", "softplus")
# How the weights start. "keras": convolutions He-normal of the fan-in, truncated; the last layer
# Glorot-uniform. "he": convolutions He-normal of the fan-out, and the last layer as in torch but
# without a bias, as in the WideResNet code of TRADES and AWP. "torch": torch's defaults, uniform
# within 1 / sqrt(fan-in), as in the ResNet and PreActResNet code.
INITS = ("keras", "he", "torch")
# Where a convolution's zeros are. "torch": kernel // 2 on each side. "same": as few as give
# ceil(H / stride) rows, as in TensorFlow and JAX: of stride 2 on even sizes none at the start.
PADDINGS = ("torch", "same")


@serializable
class MaxPool(layers.Layer):
    """Max over 2 x 2 windows: [B, H, W, C] -> [B, H // 2, W // 2, C].

    Of equal values in a window the first gets the gradient. Keras's MaxPooling2D, but for its
    second-order gradient, which is written by hand: TensorFlow's is wrong under XLA in float32,
    does not compile there in half precision, and is slower. As for any max pooling, XLA has no
    deterministic gradient: with op determinism on, Keras trains without XLA.
    """

    def call(self, x: Any) -> Any:
        return _max_pool(tf.convert_to_tensor(x))

    def compute_output_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return (shape[0], shape[1] // 2, shape[2] // 2, shape[3])


@serializable
class Dropout(layers.Dropout):
    """Keras's Dropout with one mask for the global batch, of which each replica takes its rows.

    Keras's own layer gives all replicas the same mask. `rate` is in [0, 1), and there is no
    `noise_shape`.
    """

    def __init__(self, rate: float, **kwargs: Any):
        super().__init__(rate, **kwargs)
        require(0 <= rate < 1, "rate", "a number in [0, 1)", rate)
        require(self.noise_shape is None, "noise_shape", "none", self.noise_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not (training and self.rate):
            return inputs
        seed = tf.cast(self.seed_generator.next(), tf.int32)

        def mask(shape: Any) -> Any:
            kept = noise.fraction(shape, seed) >= self.rate
            return tf.where(kept, tf.cast(1.0 / (1.0 - self.rate), inputs.dtype), 0)

        return inputs * noise.sliced(mask, tf.shape(inputs))


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
        # A function of its own, outside the loop of an attack's steps. In the loop, whose graph is
        # not a sequence, TensorFlow takes oneDNN's kernel in some processes and in others its own,
        # which is ten times slower.
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
    """Let gradients flow through the values that BatchNorm assigns to its averages."""
    token = _differentiable.set(True)
    try:
        yield
    finally:
        _differentiable.reset(token)


@serializable
class BatchNorm(layers.BatchNormalization):
    """Keras's BatchNormalization of [B, H, W, C] by TensorFlow's fused kernel.

    It has the same function, moving averages and gradients as Keras's layer. In bfloat16 on CPU it
    halves the time of a forward pass of a WideResNet. What the kernel does not do, such as
    `synchronized` or inputs of another rank, is left to Keras's layer.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is not None or not self._is_fused(len(inputs.shape)):
            return super().call(inputs, training=training, mask=mask)
        mean, variance = (
            tf.cast(v.value, tf.float32) for v in (self.moving_mean, self.moving_variance)
        )
        scale = tf.cast(self.gamma.value, tf.float32) if self.scale else tf.ones_like(mean)
        offset = tf.cast(self.beta.value, tf.float32) if self.center else tf.zeros_like(mean)
        if not (training and self.trainable):
            scale = scale * tf.math.rsqrt(variance + self.epsilon)
            return _affine(inputs, scale, offset - mean * scale)
        if _differentiable.get():
            wide = tf.cast(inputs, tf.float32)
            mean = tf.reduce_mean(wide, [0, 1, 2])
            # tf.nn.moments stops a gradient here, which its second derivative needs.
            variance = tf.reduce_mean(tf.square(wide - mean), [0, 1, 2])
            scale = scale * tf.math.rsqrt(variance + self.epsilon)
            out = _affine(inputs, scale, offset - mean * scale)
        else:
            out, mean, variance = _normalized(inputs, scale, offset, self.epsilon)
            mean, variance = tf.stop_gradient(mean), tf.stop_gradient(variance)
        for average, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(self.momentum * average.value + (1.0 - self.momentum) * now)
        return out

    def _is_fused(self, rank: int) -> bool:
        """Return whether the fused kernel computes this layer for inputs of a rank."""
        if self.synchronized or self.renorm or self.epsilon < LEAST_EPSILON:
            return False
        return rank == 4 and self.axis in (-1, 3)


def _normalized(x: Any, scale: Any, offset: Any, epsilon: float) -> Any:
    """Normalise x by the mean and the variance of its batch, then scale and shift it.

    The second-order gradient is written by hand: TensorFlow's takes the kernel apart, and three
    times as long. Let g = dL/dy, n the number of values of a channel, h = (x - mean) r with
    r = 1 / sqrt(variance + epsilon), and P(v) = v - mean(v) - h mean(v h). The first-order gradient
    in x is scale r P(g). Take a loss whose gradient in that one is u, and whose gradients in those
    of scale and offset are a and b. Its gradients are

        in g: scale r P(u) + a h + b;  in scale: r n K, with K = mean(u P(g));
        in x: (a r - scale r^2 mean(u h)) P(g) - scale r^2 (K h + mean(g h) P(u)).

    Returns:
        y, like x; the mean [C] and the biased variance [C], float32.
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
    """Return scale * x + offset, one number a channel, in one pass.

    The gradient is written by hand, because the kernel's own is slower.
    """
    y = _fused_affine(x, scale, offset, mean=tf.zeros_like(scale))

    def gradient(dy: Any) -> Any:
        axes = list(range(len(x.shape) - 1))
        wide = tf.cast(dy, tf.float32)
        of_scale = tf.reduce_sum(wide * tf.cast(x, tf.float32), axes)
        return dy * tf.cast(scale, dy.dtype), of_scale, tf.reduce_sum(wide, axes)

    return y, gradient


def _fused_affine(x: Any, scale: Any, offset: Any, mean: Any) -> Any:
    """Return (x - mean) * scale + offset, one number a channel, in one pass."""
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
    """Return (x - mean) / std, one number a channel, or x if both are None.

    It is part of the network, so that attacks and users see images in [0, 1].
    """
    if mean is None and std is None:
        return x
    channels = x.shape[-1]
    mean, std = mean or [0.0] * channels, std or [1.0] * channels
    counts = (len(mean), len(std))
    require(counts == (channels, channels), "mean, std", f"{channels} numbers each", counts)
    return layers.Normalization(mean=mean, variance=[s * s for s in std], name="normalize")(x)


def conv(
    x: Any,
    filters: int,
    kernel: int,
    stride: int = 1,
    *,
    init: str = "keras",
    bias: bool = False,
    padding: str = "torch",
) -> Any:
    """Convolve x, by default with kernel // 2 zeros on each side, as torch's code does.

    Args:
        x: [B, H, W, C].
        filters: Number of filters.
        kernel: Height and width of the filters, odd.
        stride: The stride; the result has ceil(H / stride) rows.
        init: One of INITS.
        bias: Whether a bias is added.
        padding: One of PADDINGS. They differ only where the stride is more than 1.
    """
    if stride == 1:
        padding = "same"
    if padding == "torch":
        x = layers.ZeroPadding2D(kernel // 2)(x) if kernel > 1 else x
        padding = "valid"
    start = _torch_uniform() if init == "torch" else _normal(init)
    return layers.Conv2D(filters, kernel, stride, padding, use_bias=bias, kernel_initializer=start)(
        x
    )


def _normal(init: str) -> keras.initializers.Initializer:
    """Return N(0, 2 / fan): of the fan-out for "he", of the fan-in and truncated for "keras"."""
    if init == "he":
        return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    return keras.initializers.HeNormal()


def _torch_uniform() -> keras.initializers.Initializer:
    """Return U(-b, b) with b = 1 / sqrt(fan-in), torch's start of every weight."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def max_pool(x: Any) -> Any:
    """Take the max over 3 x 3 windows around every second pixel, as torch's code pads: (1, 1).

    Keras's own stride of 2 pads an even size only at the end. Zeros around x would do where x >= 0,
    as after ReLU, but not after SiLU.
    """
    return layers.MaxPooling2D(1, 2)(layers.MaxPooling2D(3, 1, "same")(x))


def activate(x: Any, activation: str) -> Any:
    """Apply one of ACTIVATIONS. ReLU is Keras's layer, which oneDNN joins with what precedes it."""
    return layers.ReLU()(x) if activation == "relu" else layers.Activation(activation)(x)


def batch_norm(affine: bool = True) -> BatchNorm:
    """Return a BatchNorm with the constants of the papers' code.

    In torch these are momentum 0.1, which is 0.9 in Keras, and epsilon 1e-5. If it is not `affine`,
    it has neither scale nor offset.
    """
    return BatchNorm(momentum=0.9, epsilon=1e-5, scale=affine, center=affine)


def logits(x: Any, classes: int, init: str = "keras") -> Any:
    """Apply the last layer to x [B, D]. Its logits are float32 under every precision.

    Args:
        x: [B, D].
        classes: Number of logits.
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
    return keras.Input(shape, name="image")
