"""What every test shares: a quiet TensorFlow on the CPU, one seed, and the data sets on disk."""

from __future__ import annotations

import os

# TensorFlow reads them when it is first imported. To use a GPU: CUDA_VISIBLE_DEVICES=0 pytest.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_XLA_FLAGS", "")  # compiled programs are not kept
# Two workers of pytest-xdist with a thread each are faster than two that contend for the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import functools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
SEED = 2026

# The first call of a tf.function is slow, which says nothing about the example it was given.
# Each run of the fast suite tries the same examples; the nightly run tries new ones.
hypothesis.settings.register_profile("fast", deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a whole module to one worker of pytest-xdist, and so what its tests share.

    The tests of two devices share runs of a process across modules, so they are one group.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shares_devices = "on_two_devices" in getattr(item, "fixturenames", ())
            group = "two devices" if shares_devices else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from one seed, whatever ran before it."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(SEED)
    else:  # a test without Keras does not pay for its import
        random.seed(SEED)
        np.random.seed(SEED)


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """The folder of prepared tensorflow-datasets: TFDS_DATA_DIR."""
    named = os.environ.get("TFDS_DATA_DIR")
    if not named or not Path(named).is_dir():
        pytest.skip("no prepared data sets: set TFDS_DATA_DIR to a folder of them")
    return Path(named)


@pytest.fixture(scope="session")
def on_two_devices() -> Callable[[str], dict[str, Any]]:
    """What a function of two_devices.py prints, by its name: TensorFlow splits its CPU only before
    it is first used."""

    @functools.cache
    def printed(name: str) -> dict[str, Any]:
        path = {"PYTHONPATH": str(TESTS.parent), "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, str(TESTS / "unit" / "two_devices.py"), name]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | path, timeout=900
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
