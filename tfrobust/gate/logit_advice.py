"""Advice on how to turn a network with a softmax or sigmoids at its end into one of logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from tfrobust._compat import operation_of

SQUASHING = {"softmax": "probabilities", "sigmoid": "sigmoids", "hard_sigmoid": "sigmoids"}
SAVE = "network.save('logits.keras')"
REBUILT = (
    "build it again without its softmax or sigmoid, as new; "
    "network.save_weights('of.weights.h5'); new.load_weights('of.weights.h5'); "
    "new.save('logits.keras')"
)
OF_A_FUNCTION = "remove the softmax or sigmoid, or give log-probabilities"


class Ending(NamedTuple):
    """The last layer of a network whose outputs are probabilities or sigmoids.

    Attributes:
        layer: The layer.
        place: A Python expression for it.
        depth: The number of nested networks around it.
    """

    layer: keras.Layer
    place: str
    depth: int

    @property
    def gives(self) -> str:
        """The kind of outputs: "probabilities" or "sigmoids"."""
        return SQUASHING.get(_activation(self.layer), "probabilities")


def ending(network: Any) -> Ending | None:
    """Return the last layer of a functional or Sequential network if it is a softmax or sigmoids.

    Returns None for any other layer, and for networks whose last layer cannot be determined.
    """
    place, layer, depth = "network", network, 0
    while isinstance(layer, keras.Model) and isinstance(getattr(layer, "outputs", None), list):
        names = [inner.name for inner in layer.layers]  # a network may end in a network
        last = operation_of(layer.outputs[0]).name
        if last not in names:  # an operation, not a layer
            return None
        at = names.index(last)
        layer, depth = layer.layers[at], depth + 1
        place += ".layers[-1]" if at == len(names) - 1 else f".layers[{at}]"
    squashes = _activation(layer) in SQUASHING or isinstance(layer, keras.layers.Softmax)
    return Ending(layer, place, depth) if depth and squashes else None


def advice(network: Any) -> str:
    """Return a line of Python that removes the softmax or sigmoids of a Keras network and saves it;
    if one line is not enough, advice on how to build the network again."""
    if not isinstance(network, keras.Model):
        return OF_A_FUNCTION
    end = ending(network)
    if end is not None and _activation(end.layer) in SQUASHING:
        return f"{end.place}.activation = keras.activations.linear; {SAVE}"
    if end is not None and end.depth == 1:  # a Softmax layer
        return f"network = keras.Model(network.inputs, {end.place}.input); {SAVE}"
    return REBUILT


def _activation(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "")
