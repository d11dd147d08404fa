"""Small networks that the tests of several modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def linear() -> Callable[..., Any]:
    """Return a function linear(W, power=1) that builds the network z = (x W)^power.

    An image [2, 2, 1] is a vector x [4]. The Jacobian is W^T for power 1 and 2 diag(x W) W^T for
    power 2.
    """
    import keras

    def build(weights: np.ndarray, power: int = 1, shape: tuple[int, ...] = (2, 2, 1)) -> Any:
        image = keras.Input(shape)
        dense = keras.layers.Dense(weights.shape[1], use_bias=False)
        z = dense(keras.layers.Flatten()(image))
        network = keras.Model(image, z**power if power > 1 else z)
        dense.set_weights([weights])
        return network

    return build


@pytest.fixture
def normed() -> Any:
    """Return a network of three classes: BatchNorm of the image [2, 2, 1], and a dense layer."""
    import keras

    image = keras.Input((2, 2, 1))
    x = keras.layers.BatchNormalization(momentum=0.9)(image)
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
