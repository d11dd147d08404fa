"""Networks against those of the authors with the same random weights.

`tools/make_network_references.py` computed the authors' logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from tests.parity import random_weights
from tests.parity.networks import REFERENCES, reference
from tests.parity.random_weights import Draws
from tests.products import slow_but
from tfrobust.models import iaat_wide_resnet, load_keras, preact_resnet, resnet, wide_resnet

NORMALISATION = {
    "mean": [125.3 / 255, 123.0 / 255, 113.9 / 255],
    "std": [63.0 / 255, 62.1 / 255, 66.7 / 255],
}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "wide_resnet": (wide_resnet, {"depth": 10, "width": 2}),
    "wide_resnet_8": (wide_resnet, {"depth": 8, "width": 2}),
    "iaat": (iaat_wide_resnet, {"depth": 8, "width": 1, **NORMALISATION}),
    "preact": (preact_resnet, {}),
    "preact_50": (preact_resnet, {"depth": 50}),
    "n_fgsm": (preact_resnet, {"active_shortcut": False}),
    "gradalign": (preact_resnet, {"active_shortcut": False, "last_norm": False}),
    "resnet": (resnet, {}),
    "imagenet": (resnet, {"depth": 50, "stem": "imagenet"}),
}
FAST = ["wide_resnet", "wide_resnet_8", "iaat", "n_fgsm", "resnet"]


def layers_of(network: keras.Model, kind: type[keras.Layer]) -> Iterator[keras.Layer]:
    """Yield the layers of a kind in the order of their making, which their names number."""

    def number(layer: keras.Layer) -> int:
        end = layer.name.rpartition("_")[2]
        return int(end) if end.isdigit() else 0

    return iter(sorted((layer for layer in network.layers if isinstance(layer, kind)), key=number))


def fill(network: keras.Model) -> None:
    """Give the network the random weights of the authors' network."""
    draws = Draws(0)
    for layer in layers_of(network, keras.layers.Conv2D):
        kernel, _, channels, filters = layer.kernel.shape
        weights = random_weights.convolution(draws, filters, channels, kernel)
        layer.set_weights([weights.transpose(2, 3, 1, 0)])
    for layer in layers_of(network, keras.layers.BatchNormalization):
        channels = layer.moving_mean.shape[0]
        layer.set_weights(random_weights.batch_norm(draws, channels, layer.scale))
    for layer in layers_of(network, keras.layers.Dense):
        channels, classes = layer.kernel.shape
        weights, bias = random_weights.dense(draws, classes, channels)
        layer.set_weights([weights.T, bias])


@pytest.mark.parametrize("name", slow_but(NETWORKS, FAST))
def test_logits_are_those_of_the_authors_network(name: str) -> None:
    build, options = NETWORKS[name]
    size = 128 if name == "imagenet" else 32
    network = build((size, size, 3), 10, **options)
    fill(network)
    theirs = reference("residual")[name]
    ours = network(random_weights.images(size))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_networks_of_earlier_versions_keep_their_logits() -> None:
    """`earlier.keras` is a small_resnet whose convolutions do not yet pad as torch's do."""
    network, stored = load_keras(REFERENCES / "earlier.keras"), reference("earlier")
    np.testing.assert_allclose(network(stored["images"]), stored["logits"], rtol=1e-5)
    strided = [layer for layer in network.layers if getattr(layer, "strides", None) == (2, 2)]
    assert {layer.padding for layer in strided} == {"same"}
