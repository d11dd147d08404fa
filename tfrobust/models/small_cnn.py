"""A small CNN: convolutions and two dense layers."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.models.layers import MaxPool, input_image, logits


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
    32 and 64 filters of 5 x 5 and 1024 units, as in the networks of Madry et al. (2018). On images
    of few pixels pooling costs much robustness.
    """
    x = image = input_image(image_shape)
    for size in filters or [32, 64]:
        x = layers.Conv2D(size, kernel, padding="same", activation="relu")(x)
        x = MaxPool()(x) if pool else x
    x = layers.Dense(units, activation="relu")(layers.Flatten()(x))
    return keras.Model(image, logits(num_classes)(x), name="small_cnn")
