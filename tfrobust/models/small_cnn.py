"""A small CNN: convolutions and two dense layers."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.models.layers import MaxPool, input_image, logits
from tfrobust.registry import require


def small_cnn(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    filters: list[int] | None = None,
    kernel: int = 5,
    pool: bool = True,
    units: int = 1024,
) -> keras.Model:
    """Convolutions with ReLU, each pooled 2 x 2 unless `pool` is off, a dense layer, logits.

    By default the 4-layer MNIST network of the ATLAS paper, whose sizes the paper leaves out:
    32 and 64 filters of 5 x 5 and 1024 units, as in the networks of Madry et al. (2018).
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
    for size in filters:
        x = layers.Conv2D(size, kernel, padding="same", activation="relu")(x)
        x = MaxPool()(x) if pool else x
    x = layers.Dense(units, activation="relu")(layers.Flatten()(x))
    return keras.Model(image, logits(num_classes)(x), name="small_cnn")
