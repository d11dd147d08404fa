"""How a network that ends in a softmax or in sigmoids becomes one of logits."""

from __future__ import annotations

import keras

SQUASHING = ("softmax", "sigmoid", "hard_sigmoid")
SAVE = "network.save('logits.keras')"
REBUILT = (
    "build it again without its softmax or sigmoid, as new; "
    "new.set_weights(network.get_weights()); new.save('logits.keras')"
)


def advice(network: keras.Model) -> str:
    """The Python line that takes the softmax or the sigmoids off a network and saves it; where its
    last layer is neither, what to do about the code that builds it."""
    place, layer, depth = "network", network, 0
    while isinstance(getattr(layer, "outputs", None), list):  # a network may end in a network
        names = [inner.name for inner in layer.layers]
        last = layer.outputs[0]._keras_history.operation.name
        if last not in names:  # an operation that is no layer
            return REBUILT
        at = names.index(last)
        layer, depth = layer.layers[at], depth + 1
        place += ".layers[-1]" if at == len(names) - 1 else f".layers[{at}]"
    if getattr(getattr(layer, "activation", None), "__name__", None) in SQUASHING:
        return f"{place}.activation = keras.activations.linear; {SAVE}"
    if isinstance(layer, keras.layers.Softmax) and depth == 1:
        return f"network = keras.Model(network.inputs, {place}.input); {SAVE}"
    return REBUILT
