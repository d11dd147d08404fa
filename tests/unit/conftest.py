"""Small networks with closed forms, and one run on two devices."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def linear() -> Callable[..., Any]:
    """linear(W, power=1): the network z = (x W)^power of images [2, 2, 1] seen as vectors [4].

    Its Jacobian is W^T for power 1, and 2 diag(x W) W^T for power 2.
    """
    import keras

    def build(weights: np.ndarray, power: int = 1, shape: tuple[int, ...] = (2, 2, 1)) -> Any:
        image = keras.Input(shape)
        dense = keras.layers.Dense(weights.shape[1], use_bias=False)
        z = dense(keras.layers.Flatten()(image))
        network = keras.Model(image, z**power if power > 1 else z)
        dense.set_weights([weights])
        return network

    return build


@pytest.fixture(scope="session")
def on_two_devices() -> Callable[[str], dict[str, Any]]:
    """What a function of two_devices.py prints, by its name: TensorFlow splits its CPU only before
    it is first used."""

    @functools.cache
    def printed(name: str) -> dict[str, Any]:
        path = {"PYTHONPATH": str(HERE.parents[1]), "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, str(HERE / "two_devices.py"), name]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | path, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return printed


@pytest.fixture
def xla() -> Iterator[None]:
    """With op determinism off: another test may have left it on, and XLA has no deterministic
    gradient of pooling."""
    from tensorflow.python.framework import config

    was_on = config.is_op_determinism_enabled()
    config.disable_op_determinism()
    yield
    if was_on:
        config.enable_op_determinism()
