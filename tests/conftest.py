"""Settings of all tests: a quiet TensorFlow on the CPU, one seed, and the data sets on disk."""

from __future__ import annotations

import os

# TensorFlow reads these when it is first imported. To use a GPU: CUDA_VISIBLE_DEVICES=0 pytest.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_XLA_FLAGS", "")  # compiled programs are not kept
# Two workers of pytest-xdist with a thread each are faster than two that contend for the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import gc
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
SHARED_RUNS = {"on_two_devices", "smoke_run"}
QUICK_ON_TWO_DEVICES = ("drawn", "weighted", "refused", "evaluated")

# There is no deadline, since the first call of a tf.function is slow. Each run of the fast suite
# tries the same examples; the nightly run tries new ones.
hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Assign tests that share a costly fixture to one worker of pytest-xdist.

    The tests of a module are a group, and so are all tests that use the same run of the session.
    """
    for item in items:
        shared = SHARED_RUNS.intersection(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group(min(shared, default=str(item.path))))


def pytest_collection_finish() -> None:
    """Exempt what was imported from garbage collection, which would search it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same seed."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(SEED)
    else:  # a test without Keras does not pay for its import
        random.seed(SEED)
        np.random.seed(SEED)


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """Return the folder of prepared tensorflow-datasets, TFDS_DATA_DIR."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no prepared data sets: set TFDS_DATA_DIR to a folder of them")
    return Path(folder)


@pytest.fixture(scope="session")
def on_two_devices() -> Callable[[str], Any]:
    """Return a function that runs a function of two_devices.py by its name.

    It runs in another process, because TensorFlow can split its CPU only before its first use. The
    quick functions share one process; each of the others has a process of its own.
    """
    results: dict[str, Any] = {}

    def result(name: str) -> Any:
        if name not in results:
            names = QUICK_ON_TWO_DEVICES if name in QUICK_ON_TWO_DEVICES else (name,)
            command = [sys.executable, str(TESTS / "unit" / "two_devices.py"), *names]
            environment = {"PYTHONPATH": str(TESTS.parent), "CUDA_VISIBLE_DEVICES": "-1"}
            process = subprocess.run(
                command, capture_output=True, text=True, env=os.environ | environment, timeout=900
            )
            assert process.returncode == 0, process.stderr[-3000:]
            results.update(json.loads(process.stdout.splitlines()[-1]))
        return results[name]

    return result


@pytest.fixture
def short_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out most of what follows the attacks of an evaluation: checks, curves and pictures."""
    from tfrobust.evaluation import sanity_checks
    from tfrobust.evaluation.closing import Closing
    from tfrobust.evaluation.pictures import Pictures

    monkeypatch.setattr(sanity_checks, "CHECKS", sanity_checks.CHECKS[:1])
    monkeypatch.setattr(Closing, "_eps_curve", lambda closing: [])
    monkeypatch.setattr(Pictures, "valley", lambda pictures: None)
    monkeypatch.setattr(Pictures, "landscape", lambda pictures, results: None)


@pytest.fixture
def xla() -> Iterator[None]:
    """Switch off op determinism, which an earlier test may have left on.

    XLA has no deterministic gradient of pooling.
    """
    from tensorflow.python.framework import config

    was_on = config.is_op_determinism_enabled()
    config.disable_op_determinism()
    yield
    if was_on:
        config.enable_op_determinism()
