"""Copies of a network compute the same logits, whatever its layers derive from their weights."""

from pathlib import Path

import keras
import numpy as np

from tfrobust.models import load_keras, with_precision


def adapted(images: np.ndarray) -> keras.Model:
    """Return a network with an adapted Normalization, and a layer named as one of ours."""
    normalization = keras.layers.Normalization()
    normalization.adapt(images)
    return keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            normalization,
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(name="batch_norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )


def test_another_precision_and_back_keeps_an_adapted_normalization(
    rng: np.random.Generator,
) -> None:
    images = 0.1 * rng.random((64, 8, 8, 1), np.float32)
    network = adapted(images)
    copy = with_precision(network, "mixed_bfloat16")
    np.testing.assert_allclose(copy(images), network(images), atol=0.1)
    again = with_precision(copy, "float32")
    np.testing.assert_array_equal(again(images), network(images))


def test_a_loaded_network_keeps_an_adapted_normalization(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    images = 0.1 * rng.random((64, 8, 8, 1), np.float32)
    network = adapted(images)
    network.save(tmp_path / "network.keras")
    loaded = load_keras(tmp_path / "network.keras")
    np.testing.assert_allclose(loaded(images), network(images), rtol=1e-4, atol=1e-5)
