"""Small networks of convolutions and dense layers."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.errors import require
from tfrobust.models.conditional import condition, slim
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import Dropout, MaxPool, input_image, logits
from tfrobust.models.residual import model, norm_relu


@neutral()
def small_cnn(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    filters: list[int] | None = None,
    kernel: int = 5,
    pool: bool = True,
    units: int = 1024,
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """Convolutions with ReLU, each pooled 2 x 2 unless `pool` is off, a dense layer, logits.

    By default the 4-layer MNIST network of the ATLAS paper, whose sizes the paper leaves out:
    32 and 64 filters of 5 x 5 and 1024 units, as in the networks of Madry et al. (2018). lambdas: a
    once-for-all network, of inputs {"image", "strength"}, with dual BatchNorm and FiLM after each
    convolution; widths: one that can be slimmed to these shares of its filters and units, of inputs
    {"image", "strength", "width"}.
    """
    filters = [32, 64] if filters is None else filters
    sizes = [*filters, kernel, units]
    require(filters and min(sizes) >= 1, "filters, kernel, units", "numbers >= 1", sizes)
    most = min(image_shape[:2]).bit_length() - 1
    require(
        not pool or len(filters) <= most,
        "filters",
        f"at most {most} poolings of {image_shape[0]} x {image_shape[1]} images",
        filters,
    )
    x = image = input_image(image_shape)
    under = condition(lambdas, encoding, widths)
    for size in filters:
        if under is None:
            x = layers.Conv2D(size, kernel, padding="same", activation="relu")(x)
        else:
            x = norm_relu(layers.Conv2D(size, kernel, padding="same", use_bias=False)(x), under)
        x = MaxPool()(x) if pool else x
    x = slim(layers.Dense(units, activation="relu")(layers.Flatten()(x)), under)
    return model(image, under, x, num_classes, "small_cnn")


@neutral()
def trades_cnn(image_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two pairs of 3 x 3 convolutions (32, 32 and 64, 64 filters, no padding), each pair pooled
    2 x 2; two dense layers of 200 units with dropout of one half between them; logits.

    The MNIST network of TRADES (Zhang et al., 2019, arXiv:1901.08573), as in the authors' code;
    with it their MNIST figures, and those of many papers after, were made.
    Images are at least 16 x 16.
    """
    require(min(image_shape[:2]) >= 16, "image_shape", "at least 16 x 16", image_shape)
    x = image = input_image(image_shape)
    for filters in (32, 64):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, activation="relu")(x)
        x = MaxPool()(x)
    x = layers.Dense(200, activation="relu")(layers.Flatten()(x))
    x = layers.Dense(200, activation="relu")(Dropout(0.5)(x))
    return keras.Model(image, logits(num_classes)(x), name="trades_cnn")
