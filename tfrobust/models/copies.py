"""The state of a copy of a network."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust._compat import layers_of


def copy_state(copy: keras.Model, network: keras.Model) -> None:
    """Give a copy of a network its weights and seeds, and what its layers derive from weights.

    Weights alone are not enough: `keras.layers.Normalization` computes with a mean and a variance
    that it derives from its weights only when they are loaded.

    Args:
        copy: A network with the same layers in the same order, or others with the same weights.
        network: The network to copy from.
    """
    for variable, original in zip(copy.variables, network.variables, strict=True):
        variable.assign(keras.ops.convert_to_numpy(original))
    # This sets the weights once more, as Keras derives the rest only where it loads them.
    for layer, original in zip(layers_of(copy), layers_of(network), strict=True):
        state: dict[str, Any] = {}
        original.save_own_variables(state)
        layer.load_own_variables(state)
