"""Keras's global switches do not change the networks and methods."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.contract.test_models import SMALL
from tests.products import slow_but
from tfrobust import FGSM, PGD, Adv, Atlas, RobustModel, Threat, load_network
from tfrobust._compat import layers_of
from tfrobust.methods import METHODS, Ema
from tfrobust.models import MODELS, narrow, small_cnn, small_resnet
from tfrobust.models.keras_defaults import neutral

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
X, Y = RNG.random((8, 8, 8, 1)).astype("float32"), RNG.integers(0, 4, 8)
THREAT = Threat("linf", 0.1)
STATES: dict[str, Callable[[], None]] = {
    "channels_first": lambda: keras.config.set_image_data_format("channels_first"),
    "float16": lambda: keras.config.set_floatx("float16"),
    "float64": lambda: keras.config.set_floatx("float64"),
    "mixed_float16": lambda: keras.config.set_dtype_policy("mixed_float16"),
    "mixed_bfloat16": lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
    "policy float64": lambda: keras.config.set_dtype_policy("float64"),
}


def state() -> tuple[str, str, str]:
    """Return the image format, the float type and the policy of Keras."""
    config = keras.config
    return config.image_data_format(), config.floatx(), config.dtype_policy().name


@contextlib.contextmanager
def switched(switch: str | None) -> Iterator[None]:
    """Switch Keras for the block, which must leave the switches as they are."""
    with neutral():
        if switch is not None:
            STATES[switch]()
        before = state()
        yield
        assert state() == before


def small(**options: Any) -> keras.Model:
    """Return a network for images [8, 8, 1] of four classes."""
    return small_cnn((8, 8, 1), 4, filters=[2], units=3, **options)


FAST: dict[str, Any] = {"threat": THREAT, "validation_attack": FGSM()}
MODELS_OF: dict[str, Callable[[], RobustModel]] = {
    "adv": lambda: Adv(small(), averaging=Ema(decay=0.9), steps_per_epoch=2, **FAST),
    "atlas": lambda: Atlas(
        small_resnet((8, 8, 1), 4, groups=[2], mean=[0.5], std=[0.25]), alpha=1e-3, beta=1.0, **FAST
    ),
    "gkl": lambda: METHODS["gkl"](small(), attack=PGD(steps=1), steps_per_epoch=2, **FAST),
    "oat": lambda: METHODS["oat"](small(lambdas=[0.0, 1.0]), attack=PGD(steps=1), **FAST),
}


def trained(name: str, switch: str | None) -> list[Any]:
    """Return the weights after two steps, then predictions and the logs."""
    keras.utils.set_random_seed(0)
    with switched(switch):
        model = MODELS_OF[name]()
        model.compile("adam", run_eagerly=True)  # no time goes into graphs
        logs = model.fit(X, Y, batch_size=4, shuffle=False, verbose=0).history
        logs |= model.evaluate(X, Y, verbose=0, return_dict=True)
        assert {v.dtype for v in model.variables} <= {"float32", "int64", "int32", "uint32"}
        return [*model.get_weights(), model.predict(X, verbose=0), *logs.values()]


@pytest.fixture(scope="module", params=MODELS_OF)
def plain(request: pytest.FixtureRequest) -> tuple[str, list[Any]]:
    """Return the name of a model, and its results with Keras's default switches."""
    return request.param, trained(request.param, None)


@pytest.mark.parametrize("switch", slow_but(STATES, ["channels_first", "mixed_float16"]))
def test_training_does_not_depend_on_the_switches_of_keras(
    plain: tuple[str, list[Any]], switch: str
) -> None:
    name, expected = plain
    for result, by_default in zip(trained(name, switch), expected, strict=True):
        np.testing.assert_array_equal(result, by_default)


def switch_all() -> None:
    """Change the image format, the float type and the policy."""
    for switch in ("channels_first", "float64", "mixed_float16"):
        STATES[switch]()


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_float32_and_channels_last_under_any_switch(name: str) -> None:
    with neutral():
        switch_all()
        shape = (32, 3) if name == "conv1d" else (32, 32, 3)
        network = MODELS[name](shape, 4, **SMALL.get(name, {}))
    assert {layer.compute_dtype for layer in layers_of(network)} == {"float32"}
    formats = {getattr(layer, "data_format", "channels_last") for layer in network.layers}
    assert formats == {"channels_last"} and network.input.dtype == "float32"


def test_loading_and_narrowing_do_not_depend_on_the_switches(tmp_path: Path) -> None:
    network = small(lambdas=[0.0, 1.0], widths=[0.5, 1.0])
    network.save(tmp_path / "model.keras")
    inputs = {"image": X, "strength": np.ones(8, "float32")}
    expected, thin = load_network(tmp_path)(X), narrow(network, 0.5)(inputs)
    with neutral():
        switch_all()
        np.testing.assert_array_equal(load_network(tmp_path)(X), expected)
        np.testing.assert_array_equal(narrow(network, 0.5)(inputs), thin)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    path = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    env = os.environ | path | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_other_backend_is_refused_in_one_line() -> None:
    """Keras need not know the backend."""
    process = python("-c", "import tfrobust", KERAS_BACKEND="theano")
    assert process.stderr.splitlines()[-1] == (
        "ImportError: Keras's backend: expected tensorflow, received theano from KERAS_BACKEND; "
        "set KERAS_BACKEND=tensorflow before Keras is imported"
    )
    process = python("-m", "pipelines.run", "evaluate", KERAS_BACKEND="theano")
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("error: Keras's backend: expected tensorflow, received theano")
    assert process.stderr.count("\n") == 1


def test_other_backend_of_keras_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    process = python("-c", "import tfrobust", KERAS_HOME=str(tmp_path), KERAS_BACKEND="")
    assert f"received jax from {tmp_path}/keras.json; set KERAS" in process.stderr.splitlines()[-1]
