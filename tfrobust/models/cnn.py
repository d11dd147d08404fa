"""Small networks of convolutions and dense layers."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.errors import require
from tfrobust.models.arguments import checked, require_known
from tfrobust.models.conditional import slim
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import Dropout, MaxPool, input_image, logits
from tfrobust.models.residual import start_network


@checked
@neutral()
def small_cnn(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    filters: list[int] | None = None,
    kernel: int = 5,
    pool: bool = True,
    units: int = 1024,
    activation: str = "relu",
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """Return a small CNN: convolutions, one dense layer, logits.

    By default this is the 4-layer MNIST network of the ATLAS paper. The paper does not give its
    sizes; 32 and 64 filters of 5 x 5 and 1024 units are those of Madry et al. (2018).

    Args:
        filters: The number of filters in each convolution, [32, 64] by default.
        kernel: The height and width of the filters.
        pool: Whether each convolution is followed by max pooling over 2 x 2 windows.
        units: The number of units in the dense layer.
        activation: Relu, silu or softplus, after each convolution and the dense layer.
        lambdas: The lambdas of a once-for-all network with inputs {"image", "strength"}, which has
            dual BatchNorm and FiLM after each convolution.
        encoding: How lambda is encoded; see `tfrobust.models.conditional.Encoding`.
        widths: The shares of its filters and units to which a once-for-all network can be slimmed.
            Its inputs are {"image", "strength", "width"}.
    """
    filters = [32, 64] if filters is None else filters
    require_known(image_shape)
    builder = start_network(image_shape, lambdas, encoding, widths, activation)
    poolings = min(image_shape[:2]).bit_length() - 1
    expected = f"at most {poolings} poolings of {image_shape[0]} x {image_shape[1]} images"
    require(not pool or len(filters) <= poolings, "filters", expected, filters)
    x = builder.image
    for size in filters:
        if builder.condition is None:
            x = layers.Conv2D(size, kernel, padding="same", activation=activation)(x)
        else:
            x = builder.active(layers.Conv2D(size, kernel, padding="same", use_bias=False)(x))
        x = MaxPool()(x) if pool else x
    x = slim(layers.Dense(units, activation=activation)(layers.Flatten()(x)), builder.condition)
    return builder.model(x, num_classes, "small_cnn")


@checked
@neutral()
def trades_cnn(image_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Return the MNIST network of TRADES (Zhang et al., 2019, arXiv:1901.08573), as in their code.

    It has two pairs of 3 x 3 convolutions (32, 32 and 64, 64 filters, no padding), each pair
    followed by 2 x 2 max pooling, two dense layers of 200 units with a dropout of 0.5 between them,
    and the logits. The MNIST results of TRADES and of many later papers are from this network.
    Images must be at least 16 x 16.
    """
    require_known(image_shape)
    require(min(image_shape[:2]) >= 16, "image_shape", "at least 16 x 16", image_shape)
    x = image = input_image(image_shape)
    for filters in (32, 64):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, activation="relu")(x)
        x = MaxPool()(x)
    x = layers.Dense(200, activation="relu")(layers.Flatten()(x))
    x = layers.Dense(200, activation="relu")(Dropout(0.5)(x))
    return keras.Model(image, logits(x, num_classes), name="trades_cnn")
