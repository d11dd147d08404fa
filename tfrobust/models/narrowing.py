"""The network of one width, cut out of a once-for-all network with `widths`."""

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
    """{"image", "strength"} -> the logits that `network` gives at `width`, by the channels in use
    alone: about width^2 of its weights and of its work.

    network: of inputs {"image", "strength", "width"} (`tfrobust.models.conditional`). width: one of
    those that it was built with. Raises UserError for any other network or width.
    """
    found = [la for la in getattr(network, "layers", ()) if la.name == "widths"]
    fits = found and isinstance(found[0], Encoding)
    require(fits, "network", "one that was built with widths", getattr(network, "name", network))
    widths = list(found[0].lambdas)
    require(width in widths, "width", f"one of the network's, {widths}", width)
    last = operation_of(network.outputs[0]).name

    def thin(layer: Any) -> Any:
        config = layer.get_config()
        for size in ("filters", "units"):
            if size in config and layer.name != last:
                config[size] = channels(width, config[size])
        if isinstance(layer, FiLM):
            config["widths"] = None
        return type(layer).from_config(config)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, Slim):
            return args[0][0]  # all that is left is in use
        inputs = args[0][:-1] if isinstance(layer, DualBatchNorm | FiLM) else args[0]
        return layer(inputs, *args[1:], **kwargs)

    copy = keras.models.clone_model(network, clone_function=thin, call_function=call)
    inputs = {name: value for name, value in copy.input.items() if name != "width"}
    result = keras.Model(inputs, copy.outputs[0], name=network.name)
    for layer in result.layers:
        source = network.get_layer(layer.name)
        cut = [
            _first(weight, thinner.shape, parts)
            for weight, thinner, parts in zip(
                _at(source, widths.index(width), len(widths)),
                layer.weights,
                _parts(source),
                strict=True,
            )
        ]
        layer.set_weights(cut)
    return result


def _at(layer: Any, place: int, count: int) -> list[np.ndarray]:
    """The weights of a layer, of DualBatchNorm those of one of `count` widths."""
    weights = layer.get_weights()
    if isinstance(layer, DualBatchNorm):  # a row for each kind of lambda and each width
        return [weight[place::count] for weight in weights]
    return weights


def _parts(layer: Any) -> list[tuple[int, ...]]:
    """Of each axis of each weight, as how many parts of all channels it is laid out."""
    if isinstance(layer, FiLM):  # mu and sigma; the code stays whole
        return [(1, 2), (2,), (2, 2), (2,)]
    plain = [(1,) * len(weight.shape) for weight in layer.weights]
    if isinstance(layer, layers.Dense):
        before = operation_of(layer.input)
        if isinstance(before, layers.Flatten):  # all channels at each place
            plain[0] = (math.prod(before.input.shape[1:-1]), 1)
    return plain


def _first(weight: np.ndarray, shape: tuple[int, ...], parts: tuple[int, ...]) -> np.ndarray:
    """Of each part of each axis its first entries, as many as fill `shape`."""
    for axis, (size, count) in enumerate(zip(shape, parts, strict=True)):
        apart = np.split(weight, count, axis)
        kept = [np.take(part, np.arange(size // count), axis) for part in apart]
        weight = np.concatenate(kept, axis)
    return weight
