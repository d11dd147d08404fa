"""What every test shares: a quiet TensorFlow on the CPU, one seed, and the data sets on disk."""

from __future__ import annotations

import os

# TensorFlow reads both when it is first imported. To use a GPU: CUDA_VISIBLE_DEVICES=0 pytest.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import random
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

SEED = 2026

# The first call of a tf.function is slow, which says nothing about the example it was given.
hypothesis.settings.register_profile("tfrobust", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tfrobust")


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
