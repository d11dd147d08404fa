"""The extraction of the network of one width from a once-for-all network with `widths`."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from tfrobust._compat import operation_of
from tfrobust.errors import require
from tfrobust.models.conditional import DualBatchNorm, Encoding, FiLM, Slim, channels
from tfrobust.models.keras_defaults import neutral


@neutral()
def narrow(network: keras.Model, width: float) -> keras.Model:
    """Return the network {"image", "strength"} -> logits that equals `network` at one width.

    It has only the channels in use, which are about width^2 of the weights and of the work.

    Args:
        network: A network with inputs {"image", "strength", "width"}; see
            `tfrobust.models.conditional`.
        width: One of the widths that it was built with.

    Raises:
        UserError: The network has no widths, or not this one.
    """
    layers_by_name = {layer.name: layer for layer in getattr(network, "layers", ())}
    encoding: Any = layers_by_name.get("widths")
    fits = isinstance(encoding, Encoding)
    require(fits, "network", "one that was built with widths", getattr(network, "name", network))
    widths = list(encoding.lambdas)
    require(width in widths, "width", f"one of the network's, {widths}", width)
    last = operation_of(network.outputs[0]).name

    def narrowed(layer: Any) -> Any:
        config = layer.get_config()
        for size in ("filters", "units"):
            if size in config and layer.name != last:
                config[size] = channels(width, config[size])
        if isinstance(layer, FiLM):
            config["widths"] = None
        return type(layer).from_config(config)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, Slim):
            return args[0][0]  # all channels that are left are in use
        inputs = args[0][:-1] if isinstance(layer, DualBatchNorm | FiLM) else args[0]
        return layer(inputs, *args[1:], **kwargs)

    copy = keras.models.clone_model(network, clone_function=narrowed, call_function=call)
    inputs = {name: value for name, value in copy.input.items() if name != "width"}
    result = keras.Model(inputs, copy.outputs[0], name=network.name)
    for layer in result.layers:
        source = network.get_layer(layer.name)
        weights = _weights_at(source, widths.index(width), len(widths))
        shapes = [weight.shape for weight in layer.weights]
        pieces = zip(weights, shapes, _parts(source), strict=True)
        layer.set_weights([_first(weight, shape, parts) for weight, shape, parts in pieces])
    return result


def _weights_at(layer: Any, number: int, count: int) -> list[np.ndarray]:
    """Return a layer's weights: all, or those of one of the `count` widths of a DualBatchNorm."""
    weights: list[np.ndarray] = layer.get_weights()
    if isinstance(layer, DualBatchNorm):  # one row for each kind of lambda and each width
        return [weight[number::count] for weight in weights]
    return weights


def _parts(layer: Any) -> list[tuple[int, ...]]:
    """Return, for each axis of each weight, how often the channels repeat along it."""
    if isinstance(layer, FiLM):  # once for mu and once for sigma; the code is not cut
        return [(1, 2), (2,), (2, 2), (2,)]
    parts = [(1,) * len(weight.shape) for weight in layer.weights]
    if isinstance(layer, layers.Dense):
        previous = operation_of(layer.input)
        if isinstance(previous, layers.Flatten):  # all channels at every pixel
            parts[0] = (math.prod(previous.input.shape[1:-1]), 1)
    return parts


def _first(weight: np.ndarray, shape: tuple[int, ...], parts: tuple[int, ...]) -> np.ndarray:
    """Return the first entries of each part of each axis, as many as fill `shape`."""
    for axis, (size, count) in enumerate(zip(shape, parts, strict=True)):
        indices = np.arange(size // count)
        first = [np.take(part, indices, axis) for part in np.split(weight, count, axis)]
        weight = np.concatenate(first, axis)
    return weight
