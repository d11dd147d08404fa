"""Keras's global switches do not affect what is built and trained here."""

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
    config = keras.config
    return config.image_data_format(), config.floatx(), config.dtype_policy().name


@contextlib.contextmanager
def users(switch: str | None) -> Iterator[None]:
    with neutral():
        if switch is not None:
            STATES[switch]()
        before = state()
        yield
        assert state() == before


def small(**options: Any) -> keras.Model:
    return small_cnn((8, 8, 1), 4, filters=[2], units=3, **options)


FAST: dict[str, Any] = {"threat": THREAT, "validation_attack": FGSM()}
MADE: dict[str, Callable[[], RobustModel]] = {
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
    with users(switch):
        model = MADE[name]()
        model.compile("adam", run_eagerly=True)  # no time goes into graphs
        logs = model.fit(X, Y, batch_size=4, shuffle=False, verbose=0).history
        logs |= model.evaluate(X, Y, verbose=0, return_dict=True)
        assert {v.dtype for v in model.variables} <= {"float32", "int64", "int32", "uint32"}
        return [*model.get_weights(), model.predict(X, verbose=0), *logs.values()]


@pytest.fixture(scope="module", params=MADE)
def plain(request: pytest.FixtureRequest) -> tuple[str, list[Any]]:
    return request.param, trained(request.param, None)


@pytest.mark.parametrize("switch", slow_but(STATES, ["channels_first", "mixed_float16"]))
def test_training_is_bit_identical(plain: tuple[str, list[Any]], switch: str) -> None:
    name, expected = plain
    for ours, theirs in zip(trained(name, switch), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def all_at_once() -> None:
    for switch in ("channels_first", "float64", "mixed_float16"):
        STATES[switch]()


@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_float32_and_channels_last(name: str) -> None:
    with neutral():
        all_at_once()
        network = MODELS[name]((32, 32, 3), 4, **SMALL.get(name, {}))
    assert {layer.compute_dtype for layer in layers_of(network)} == {"float32"}
    formats = {getattr(layer, "data_format", "channels_last") for layer in network.layers}
    assert formats == {"channels_last"} and network.input.dtype == "float32"


def test_what_is_loaded_and_narrowed_too(tmp_path: Path) -> None:
    network = small(lambdas=[0.0, 1.0], widths=[0.5, 1.0])
    network.save(tmp_path / "model.keras")
    inputs = {"image": X, "strength": np.ones(8, "float32")}
    expected, thin = load_network(tmp_path)(X), narrow(network, 0.5)(inputs)
    with neutral():
        all_at_once()
        np.testing.assert_array_equal(load_network(tmp_path)(X), expected)
        np.testing.assert_array_equal(narrow(network, 0.5)(inputs), thin)


def run(code: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, *code]
    env = {**os.environ, **path, **environment}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_another_backend_is_one_line() -> None:
    """Another backend is an error of one line, also one that does not exist."""
    done = run(["-c", "import tfrobust"], KERAS_BACKEND="theano")
    assert done.stderr.splitlines()[-1] == (
        "ImportError: Keras's backend: expected tensorflow, received theano from KERAS_BACKEND; "
        "set KERAS_BACKEND=tensorflow before Keras is imported"
    )
    done = run(["-m", "pipelines.run", "evaluate"], KERAS_BACKEND="theano")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: Keras's backend: expected tensorflow, received theano")
    assert done.stderr.count("\n") == 1


def test_the_backend_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    done = run(["-c", "import tfrobust"], KERAS_HOME=str(tmp_path), KERAS_BACKEND="")
    assert f"received jax from {tmp_path}/keras.json; set KERAS" in done.stderr.splitlines()[-1]
