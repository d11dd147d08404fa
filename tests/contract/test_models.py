"""The contract of every network in the registry."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tests.products import slow_but
from tfrobust import Atlas, Threat
from tfrobust.models import MODELS, PRECISIONS, with_precision
from tfrobust.registry import parameters

SMALL: dict[str, dict[str, Any]] = {
    "conv1d": {"filters": [4], "kernel": 3, "units": 8},
    "iaat_wide_resnet": {"depth": 8, "width": 1},
    "keras_application": {"application": "VGG16"},
    "preact_resnet": {"width": 4},
    "resnet": {"width": 4},
    "small_cnn": {"filters": [4], "kernel": 3, "units": 8},
    "small_resnet": {"groups": [4, 8]},
    "wide_resnet": {"depth": 10, "width": 1},
}
X = np.random.default_rng(0).random((4, 32, 32, 3)).astype("float32")
LISTS = [4, "ab", {}, [None], ["3"], [[1]], [True]]
# Values that each annotation of a parameter does not take; a builder checks its texts itself.
WRONG: dict[Any, list[Any]] = {
    int: [True, 2.5, "3", None, [1], 0],
    bool: ["no", 1, None],
    tuple[int, ...]: [8, None, "abc", (), (0, 8, 3), (8.0, 8, 3), (True, 8, 3), (8, 8, None)],
    list[int] | None: [*LISTS, [], [2.5], [0]],
    list[float] | None: [*LISTS, [math.nan]],
    float: ["much", None, [0.5], math.nan, True],
    str: [3, None, "unknown"],
}
OF_IMAGES = [name for name in MODELS if name != "conv1d"]


def inputs_of(network: keras.Model) -> np.ndarray:
    """Return images or, for a network of series, series [4, 32, 96]."""
    return X.reshape(4, *network.input_shape[1:])


@pytest.fixture(scope="module", params=MODELS)
def network(request: pytest.FixtureRequest) -> keras.Model:
    """Return each network of the registry in turn, small, for five classes."""
    keras.utils.set_random_seed(1)
    shape = (32, 96) if request.param == "conv1d" else (32, 32, 3)
    return MODELS[request.param](shape, 5, **SMALL.get(request.param, {}))


def test_network_returns_float32_logits(network: keras.Model) -> None:
    logits = network(inputs_of(network))
    assert logits.shape == (4, 5) and logits.dtype == tf.float32
    assert network.output_shape == (None, 5)
    # Logits are not probabilities, which sum to one.
    assert not np.allclose(np.sum(logits, axis=1), 1.0)


@pytest.mark.parametrize("precision", slow_but(PRECISIONS, ["float32"]))
def test_network_trains_a_step_of_atlas_in_any_precision(
    network: keras.Model, precision: str
) -> None:
    mixed = with_precision(network, precision)
    before = mixed.get_weights()
    model = Atlas(mixed, threat=Threat("linf", 0.05), alpha=1e-3, beta=1.0)
    # Keras's own first scale of 32768 may overflow in float16, and the step is then skipped.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=256.0)
    model.compile(optimizer)
    x = tf.constant(inputs_of(network))
    logs = model.train_step((x, tf.constant([0, 1, 2, 3])))
    assert all(np.isfinite(value) for value in logs.values())
    after = mixed.get_weights()
    moved = [not np.array_equal(a, b) for a, b in zip(after, before, strict=True)]
    still = [weight.path for weight, moves in zip(mixed.weights, moved, strict=True) if not moves]
    assert not still
    assert mixed(x).dtype == tf.float32


def test_network_is_saved_and_loaded(network: keras.Model, tmp_path: Path) -> None:
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = inputs_of(network)
    np.testing.assert_array_equal(loaded(x), network(x))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_network_takes_any_image_shape_and_number_of_classes(name: str) -> None:
    assert list(parameters(MODELS[name]))[:2] == ["image_shape", "num_classes"]
    channels = 3 if name == "keras_application" else 1
    network = MODELS[name]((33, 32, channels), 2, **SMALL.get(name, {}))  # odd sizes too
    assert network(X[..., :channels].repeat(2, axis=1)[:, :33]).shape == (4, 2)


@pytest.mark.parametrize("name", MODELS)
def test_network_takes_tables_and_series_or_says_what_it_takes(name: str) -> None:
    for shape in ((30,), (20, 3)):
        if name == "mlp" or (name == "conv1d" and len(shape) == 2):
            assert MODELS[name](shape, 2)(np.zeros((4, *shape))).shape == (4, 2)
        else:
            line = error_line(lambda shape=shape: MODELS[name](shape, 2, **SMALL.get(name, {})))
            assert line.startswith("image_shape: expected ")


@pytest.mark.parametrize("name", MODELS)
def test_builder_refuses_arguments_of_a_wrong_type(name: str) -> None:
    shape = (32, 96) if name == "conv1d" else (32, 32, 3)
    arguments = {"image_shape": shape, "num_classes": 5, **SMALL.get(name, {})}
    for key, parameter in parameters(MODELS[name]).items():
        for value in WRONG[parameter.annotation]:
            changed = arguments | {key: value}
            line = error_line(lambda changed=changed: MODELS[name](**changed))
            assert re.match(rf"{key}(\[0\])?: expected ", line), line


def test_builder_takes_numpys_types_and_tuples() -> None:
    numbers = {"groups": np.array([4, 8]), "blocks": np.int64(1), "std": np.ones(3)}
    network = MODELS["small_resnet"](tf.TensorShape([32, 32, 3]), 5, mean=(0, 0, 0), **numbers)
    assert (
        network.count_params()
        == MODELS["small_resnet"]((32, 32, 3), 5, groups=[4, 8], mean=[0.0] * 3).count_params()
    )


@pytest.mark.parametrize("name", ["conv1d", "mlp", "small_cnn", "trades_cnn"])
def test_builder_of_dense_layers_needs_the_size_of_its_inputs(name: str) -> None:
    shape = (None, 3) if name == "conv1d" else (None, None, 3)
    line = error_line(lambda: MODELS[name](shape, 5))
    assert line.startswith("image_shape: expected a known size of the inputs, received (None")
