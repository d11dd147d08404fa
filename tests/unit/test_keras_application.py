"""Networks of keras.applications equal the application after its preprocessing."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.errors import error_line
from tests.products import slow_but
from tfrobust.models import keras_application

SIZE = (32, 32, 3)
X = np.random.default_rng(0).random((2, *SIZE), np.float32)
# One of each preprocessing: caffe, tf, torch, and two that have a layer for it.
KINDS = ("VGG16", "MobileNet", "DenseNet121", "MobileNetV3Small", "ConvNeXtTiny")


def backbone(network: keras.Model) -> keras.Model:
    """Return the application in the network."""
    return next(layer for layer in network.layers if isinstance(layer, keras.Model))


@pytest.mark.parametrize("name", slow_but(KINDS, ("VGG16", "MobileNet")))
def test_images_are_preprocessed_as_the_application_wants(name: str) -> None:
    network = keras_application(SIZE, 5, application=name)
    module: Any = importlib.import_module(getattr(keras.applications, name).__module__)
    features = backbone(network)(module.preprocess_input(255 * X))
    np.testing.assert_allclose(network(X), network.layers[-1](features), rtol=1e-5, atol=1e-6)
    assert network.output_shape == (None, 5) and network.input_shape == (None, *SIZE)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_are_loaded_from_a_file(tmp_path: Path, suffix: str) -> None:
    features = keras.applications.MobileNet(SIZE, include_top=False, weights=None, pooling="avg")
    file = tmp_path / f"notop{suffix}"
    save = features.save if suffix == ".keras" else features.save_weights
    save(file)
    network = keras_application(SIZE, 5, application="MobileNet", weights=str(file))
    for actual, expected in zip(backbone(network).weights, features.weights, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_weights_of_another_application_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "notop.weights.h5"
    keras.applications.MobileNet(SIZE, include_top=False, weights=None).save_weights(file)
    line = error_line(lambda: keras_application(SIZE, 5, application="VGG16", weights=str(file)))
    assert re.search("expected what VGG16 takes, .*notop", line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"application": "ConvNextTiny"}, "application: .*did you mean 'ConvNeXtTiny'"),
        ({"image_shape": (16, 16, 3)}, "expected what MobileNet takes, .*at least 32x32"),
        ({"image_shape": (32, 32, 1)}, "image_shape: expected images of three channels"),
        ({"weights": "imagnet"}, "weights: expected none, imagenet or a file, received 'imagnet'"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"image_shape": SIZE, "num_classes": 5, "application": "MobileNet"}
    assert re.search(message, error_line(lambda: keras_application(**arguments | changes)))
