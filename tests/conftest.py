"""Settings of all tests: a quiet TensorFlow on the CPU, one seed, and the data sets on disk."""

from __future__ import annotations

import os

# TensorFlow reads these when it is first imported. To use a GPU: CUDA_VISIBLE_DEVICES=0 pytest.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # several workers share a GPU
os.environ.setdefault("TF_XLA_FLAGS", "")  # compiled programs are not kept
# Workers of pytest-xdist with a thread each are faster than two that contend for the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import fcntl
import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
SEED = 2026
QUICK_ON_TWO_DEVICES = (
    *("drawn", "weighted", "uneven", "refused", "evaluated"),
    *("clipped", "overflowing", "unsuitable"),
)

# There is no deadline, since the first call of a tf.function is slow. Each run of the fast suite
# tries the same examples; the nightly run tries new ones.
hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


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


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator of random numbers that is the same for every test."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """Return the folder of prepared tensorflow-datasets, TFDS_DATA_DIR."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no prepared data sets: set TFDS_DATA_DIR to a folder of them")
    return Path(folder)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def on_two_devices(shared_folder: Path) -> Callable[[str], Any]:
    """Return a function that runs a function of two_devices.py by its name.

    It runs in another process, because TensorFlow can split its CPU only before its first use. The
    quick functions share one process; each of the others has a process of its own.
    """

    def result(name: str) -> Any:
        names = QUICK_ON_TWO_DEVICES if name in QUICK_ON_TWO_DEVICES else (name,)
        file = shared_folder / f"{names[0]}_on_two_devices.json"
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                file.write_text(computed(names))
        return json.loads(file.read_text())[name]

    return result


def computed(names: Sequence[str]) -> str:
    """Return the results of functions of two_devices.py by their names, as JSON."""
    command = [sys.executable, str(TESTS / "unit" / "two_devices.py"), *names]
    environment = {"PYTHONPATH": str(TESTS.parent), "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, timeout=900
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.splitlines()[-1]


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
