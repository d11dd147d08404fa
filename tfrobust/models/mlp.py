"""Small networks for tables and series."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.errors import choose, require
from tfrobust.models.arguments import checked, require_known
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import ACTIVATIONS, logits


@checked
@neutral()
def mlp(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    units: list[int] | None = None,
    activation: str = "relu",
) -> keras.Model:
    """Return a multilayer perceptron for inputs of any shape, which are flattened.

    Args:
        units: The number of units in each hidden layer, [64, 64] by default.
        activation: Relu, silu or softplus, after each hidden layer.
    """
    units = [64, 64] if units is None else units
    require_known(image_shape)
    choose("activation", activation, ACTIVATIONS)
    image = keras.Input(image_shape, name="image")
    x = layers.Flatten()(image)
    for size in units:
        x = layers.Dense(size, activation=activation)(x)
    return keras.Model(image, logits(x, num_classes), name="mlp")


@checked
@neutral()
def conv1d(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    filters: list[int] | None = None,
    kernel: int = 5,
    units: int = 64,
    activation: str = "relu",
) -> keras.Model:
    """Return a network of convolutions over time and one dense layer, for series [B, T, C].

    Args:
        filters: The number of filters in each convolution, [32, 64] by default. Each convolution
            halves the number of places in time.
        kernel: The number of places in time that a filter covers.
        units: The number of units in the dense layer.
        activation: Relu, silu or softplus, after each convolution and the dense layer.
    """
    filters = [32, 64] if filters is None else filters
    choose("activation", activation, ACTIVATIONS)
    require_known(image_shape)
    require(len(image_shape) == 2, "image_shape", "series (T, C)", tuple(image_shape))
    x = image = keras.Input(image_shape, name="image")
    for size in filters:
        x = layers.Conv1D(size, kernel, 2, padding="same", activation=activation)(x)
    x = layers.Dense(units, activation=activation)(layers.Flatten()(x))
    return keras.Model(image, logits(x, num_classes), name="conv1d")
