"""Layers shared by the networks; all are twice differentiable and serializable."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tfrobust.registry import require, serializable


@serializable
class MaxPool(layers.Layer):
    """Max over 2 x 2 windows: [B, H, W, C] -> [B, H // 2, W // 2, C].

    By pairwise maxima, rows then columns. The second-order gradient of MaxPooling2D is wrong under
    XLA in float32; this one is right with and without, and on CPU faster than both MaxPooling2D
    (second order) and a reduce-max over windows (all orders).
    """

    def call(self, x: Any) -> Any:
        _, height, width, channels = x.shape
        h, w = height // 2, width // 2
        x = ops.reshape(x[:, : 2 * h, : 2 * w, :], (-1, h, 2, 2 * w, channels))
        x = ops.maximum(*ops.unstack(x, axis=2))
        x = ops.reshape(x, (-1, h, w, 2, channels))
        return ops.maximum(*ops.unstack(x, axis=3))

    def compute_output_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return (shape[0], shape[1] // 2, shape[2] // 2, shape[3])


def normalize(x: Any, mean: list[float] | None, std: list[float] | None) -> Any:
    """(x - mean) / std per channel, inside the network: attacks and users see [0, 1]."""
    if mean is None and std is None:
        return x
    channels = x.shape[-1]
    mean, std = mean or [0.0] * channels, std or [1.0] * channels
    counts = (len(mean), len(std))
    require(counts == (channels, channels), "mean, std", f"{channels} numbers each", counts)
    return layers.Normalization(mean=mean, variance=[s * s for s in std], name="normalize")(x)


def conv(filters: int, kernel: int, stride: int = 1, use_bias: bool = False) -> layers.Conv2D:
    """A "same" convolution with He initialisation."""
    return layers.Conv2D(
        filters, kernel, stride, "same", use_bias=use_bias, kernel_initializer="he_normal"
    )


def batch_norm() -> layers.BatchNormalization:
    """BatchNorm with the constants of the papers' code (torch: momentum 0.1, epsilon 1e-5)."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)


def logits(classes: int) -> layers.Dense:
    """The last layer: raw scores, float32 under every precision."""
    return layers.Dense(classes, dtype="float32", name="logits")


def norm_relu(x: Any) -> Any:
    """BatchNorm, then ReLU: what stands before a pre-activation convolution."""
    return layers.ReLU()(batch_norm()(x))


def input_image(shape: tuple[int, ...]) -> Any:
    """The network's input: [B, H, W, C] in [0, 1]."""
    return keras.Input(shape, name="image")
