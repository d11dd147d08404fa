"""Count the passes through the network in one training step of each method.

    python tools/passes.py --steps 10

--steps is the number of steps of the training attack. A backward pass starts at the logits of a
forward pass; for the second derivatives of JAC, ATLAS, TradesJac, GradAlign and LLR it is twice as
deep.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tfrobust import PGD, Threat
from tfrobust.methods import METHODS, RobustModel
from tfrobust.registry import parameters
from tfrobust.report.text import markdown_table

# Arguments of some methods with which no attack ends early or warms up.
SETTINGS: dict[str, Any] = {"warmup_epochs": 0, "patience": [100], "patience_epochs": []}
SIZE = 6


def settings(name: str, steps: int) -> dict[str, Any]:
    """Return the arguments of a method under an attack with a number of steps."""
    method = METHODS[name]
    takes = parameters(method)
    arguments = {**method.example, **{k: v for k, v in SETTINGS.items() if k in takes}}
    if method.default_attack is not None and name != "fgsm_reg":  # FGSM always has one step
        arguments["attack"] = PGD(steps=steps)
    return arguments


def passes(name: str, steps: int) -> tuple[int, int]:
    """Return the number of (forward, backward) passes of one training step."""
    counted: Counter[str] = Counter()

    @tf.custom_gradient
    def watched(logits: tf.Tensor) -> Any:
        size = max(1, logits.shape[0] // SIZE)  # 2 if images and adversaries share a batch
        counted["forward"] += size

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            counted["backward"] += size
            return upstream

        return logits, gradient

    rng, forward = np.random.default_rng(0), RobustModel.forward
    facts: dict[str, Any] = {"num_examples": SIZE, "batch_size": SIZE, "steps_per_epoch": 1}
    arguments = facts | settings(name, steps)
    model = METHODS[name](_network(name), threat=Threat("linf", 0.1), **arguments)
    model.compile("sgd")
    images = tf.constant(rng.random((SIZE, 4, 4, 1)), tf.float32)
    data = {"image": images, "index": tf.range(SIZE)}
    with mock.patch.object(RobustModel, "forward", lambda *inputs: watched(forward(*inputs))):
        model.train_step((data, tf.range(SIZE) % 3))
    return counted["forward"], counted["backward"]


def _network(name: str) -> keras.Model:
    image, strength = keras.Input((4, 4, 1), name="image"), keras.Input((), name="strength")
    features = keras.layers.Flatten()(image)
    if "strength" not in METHODS[name].network_inputs:
        return keras.Model(image, keras.layers.Dense(3)(features))
    both = keras.layers.Concatenate()([features, keras.layers.Reshape((1,))(strength)])
    return keras.Model({"image": image, "strength": strength}, keras.layers.Dense(3)(both))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1, help="steps of the training attack")
    steps = parser.parse_args().steps
    rows = [[name, *map(str, passes(name, steps))] for name in METHODS]
    print(markdown_table(["method", "forward", "backward"], rows))


if __name__ == "__main__":
    main()
