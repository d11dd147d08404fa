"""A small CNN: convolutions and two dense layers."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.models.conditional import condition, slim
from tfrobust.models.layers import MaxPool, input_image
from tfrobust.models.neutral import neutral
from tfrobust.models.residual import model, norm_relu
from tfrobust.registry import require


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
