"""Files of our networks load with Keras alone; loaded with tfrobust they have our layers again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.products import slow_but
from tfrobust._compat import layers_of
from tfrobust.errors import UserError
from tfrobust.methods import Adv
from tfrobust.models import (
    iaat_wide_resnet,
    load_keras,
    preact_resnet,
    resnet,
    small_cnn,
    small_resnet,
    trades_cnn,
    wide_resnet,
    with_keras_layers,
)
from tfrobust.models.keras_layers import with_tfrobust_layers
from tfrobust.models.layers import BatchNorm, Dropout, MaxPool
from tfrobust.threat import Threat

NETWORKS: dict[str, Any] = {
    "small_cnn": lambda: small_cnn((8, 8, 3), 4, filters=[2, 3], kernel=3, units=5),
    "trades_cnn": lambda: trades_cnn((16, 16, 1), 4),
    "small_resnet": lambda: small_resnet((8, 8, 3), 4, groups=[2, 3], mean=[0.4, 0.5, 0.6]),
    "wide_resnet": lambda: wide_resnet((8, 8, 3), 4, depth=10, width=1, dropout=0.3),
    "resnet": lambda: resnet((8, 8, 3), 4, width=2, stem="imagenet", activation="silu"),
    "preact_resnet": lambda: preact_resnet((8, 8, 3), 4, width=2, activation="softplus"),
    "iaat_wide_resnet": lambda: iaat_wide_resnet((8, 8, 3), 4, depth=8, width=1),
}
ALONE = """
import sys
import keras
import numpy as np

for name in sys.argv[1:]:
    network = keras.saving.load_model(f"{name}.keras")
    np.save(f"{name}.logits.npy", network(np.load(f"{name}.images.npy")))
assert not [module for module in sys.modules if module.startswith("tfrobust")]
"""


def varied(network: keras.Model) -> keras.Model:
    """Return the network with BatchNorm averages that differ between channels."""
    random = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, BatchNorm):
            layer.set_weights([random.uniform(0.5, 2.0, w.shape) for w in layer.get_weights()])
    return network


def kinds(network: keras.Model) -> list[tuple[str, str]]:
    """Return the class and the name of each layer."""
    return [(type(layer).__name__, layer.name) for layer in network.layers]


def test_saved_networks_load_with_keras_alone(rng: np.random.Generator, tmp_path: Path) -> None:
    """The logits are those of the saved network to the bit, in a process without tfrobust.

    They are also those of our network, up to the rounding of BatchNorm.
    """
    expected = {}
    for name, make in NETWORKS.items():
        network = varied(make())
        images = rng.random((3, *network.input_shape[1:])).astype("float32")
        saved = with_keras_layers(network)
        saved.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.images.npy", images)
        ours, expected[name] = network(images).numpy(), saved(images).numpy()
        if any(isinstance(layer, BatchNorm) for layer in network.layers):
            np.testing.assert_allclose(ours, expected[name], rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours, expected[name])
    hidden = {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(
        [sys.executable, "-c", ALONE, *NETWORKS], cwd=tmp_path, env=os.environ | hidden, check=True
    )
    for name, logits in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.logits.npy"), logits)


@pytest.mark.parametrize("name", slow_but(NETWORKS, ("small_cnn", "small_resnet", "wide_resnet")))
def test_loaded_network_has_our_layers_again(
    rng: np.random.Generator, name: str, tmp_path: Path
) -> None:
    """Names, weights and logits are those of the saved network, to the bit."""
    network = varied(NETWORKS[name]())
    images = rng.random((3, *network.input_shape[1:])).astype("float32")
    network(images, training=True)  # the seeds of Dropout move; Keras saves none of them
    saved = with_keras_layers(network)
    for actual, expected in zip(saved.variables, network.variables, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert not any(isinstance(layer, BatchNorm | Dropout | MaxPool) for layer in saved.layers)
    saved.save(tmp_path / "model.keras")
    loaded = load_keras(tmp_path)
    assert kinds(loaded) == kinds(network)
    for actual, expected in zip(loaded.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(loaded(images), network(images))


def test_layers_of_nested_networks_are_replaced(rng: np.random.Generator) -> None:
    inner = small_cnn((8, 8, 3), 4, filters=[2], kernel=3, units=3)
    outer = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(2.0), inner])
    images = rng.random((3, 8, 8, 3)).astype("float32")
    saved = with_keras_layers(outer)
    pools = [layer for layer in layers_of(saved) if layer.name.startswith("max_pool")]
    assert [type(pool) for pool in pools] == [keras.layers.MaxPooling2D]
    again = with_tfrobust_layers(saved)
    assert kinds(again.layers[-1]) == kinds(inner)
    np.testing.assert_array_equal(again(images), outer(images))


def test_networks_of_keras_layers_are_not_changed() -> None:
    """Pooling that our layer cannot do stays too, although it has the name of ours."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.MaxPooling2D()(image))
    network = keras.Model(image, keras.layers.Dropout(0.5)(x))
    assert with_keras_layers(network) is network
    assert with_tfrobust_layers(network) is network
    pooled = keras.layers.MaxPooling2D(3, 2, "same", name="max_pool")(image)
    assert kinds(with_tfrobust_layers(keras.Model(image, pooled)))[1][0] == "MaxPooling2D"


def test_networks_that_need_tfrobust_are_refused() -> None:
    conditional = small_cnn((8, 8, 3), 4, filters=[2], units=3, lambdas=[0.0, 1.0])
    with pytest.raises(UserError, match="received DualBatchNorm, Encoding, FiLM; save the network"):
        with_keras_layers(conditional)
    with pytest.raises(UserError, match="network: expected layers .*, received Adv"):
        with_keras_layers(Adv(NETWORKS["small_cnn"](), threat=Threat("linf", 0.1)))
