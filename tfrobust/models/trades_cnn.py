"""The MNIST network of TRADES (Zhang et al., 2019, arXiv:1901.08573)."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.models.layers import Dropout, MaxPool, input_image, logits
from tfrobust.models.neutral import neutral
from tfrobust.registry import require


@neutral()
def trades_cnn(image_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two pairs of 3 x 3 convolutions (32, 32 and 64, 64 filters, no padding), each pair pooled
    2 x 2; two dense layers of 200 units with dropout of one half between them; logits.

    As in the authors' code; with it their MNIST figures, and those of many papers after, were made.
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
