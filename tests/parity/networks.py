"""The small fixed network of the references, an adversarially trained digits CNN.

Its weights are in references/network.npz; `tools/make_references.py` builds the same network in
torch.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from tfrobust.data import DATASETS

REFERENCES = Path(__file__).parent / "references"
EPS = {"linf": 0.1, "l2": 0.4, "l1": 2.0}
EXAMPLES = 200  # the first of the test split


def digits_network() -> keras.Model:
    """Return the network for 8x8x1 images in [0, 1], with two convolutions and two dense layers."""
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv1"),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu", name="conv2"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu", name="dense1"),
            keras.layers.Dense(10, name="dense2"),
        ]
    )
    with np.load(REFERENCES / "network.npz") as weights:
        for layer in network.layers:
            if layer.weights:
                layer.set_weights([weights[f"{layer.name}_{n}"] for n in ("kernel", "bias")])
    return network


def reference(name: str) -> dict[str, np.ndarray]:
    """Return the frozen arrays of references/NAME.npz by name."""
    with np.load(REFERENCES / f"{name}.npz") as arrays:
        return dict(arrays)


def images() -> tuple[np.ndarray, np.ndarray]:
    """Return images [200, 8, 8, 1] in [0, 1] and labels [200] of the digits test split."""
    test = DATASETS["digits"]().load("test")
    return test.as_float()[:EXAMPLES], test.labels[:EXAMPLES]
