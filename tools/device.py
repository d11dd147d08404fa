"""The device of a benchmark: its choice, its name, its peak, and waiting for it."""

from __future__ import annotations

import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfrobust import provenance

SIZES = {"cpu": 4096, "gpu": 8192}  # rows of the matrices whose product measures the peak
# The number of steps between two waits for the device; on a GPU a step takes a few ms.
TOGETHER = {"cpu": 1, "gpu": 5}


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
        run: Starts a step.
        wait: Waits for its result.
        xla: Whether XLA compiles the step.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any] = lambda result: None
    xla: bool = False

    def seconds(self, times: int) -> float:
        """Return the mean seconds of a step, over a number of steps."""
        start = time.perf_counter()
        for _ in range(times):
            result = self.run()
        self.wait(result)
        return (time.perf_counter() - start) / times


def use(device: str | None) -> str:
    """Let TensorFlow compute on "cpu" or "gpu", by default on a GPU if it sees one.

    Raises:
        SystemExit: If a GPU is asked for and there is none.
    """
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    if device == "gpu" and not has_gpu:
        raise SystemExit("--device gpu: expected a GPU that TensorFlow sees, found none")
    device = device or ("gpu" if has_gpu else "cpu")
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    # By default TensorFlow takes all memory of a GPU, and torch gets none.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    return device


@functools.cache
def has_torch(device: str) -> bool:
    """Return whether torch is installed and computes on "cpu" or "gpu"."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return device == "cpu" or torch.cuda.is_available()


def name_of(device: str) -> str:
    """Return the name of the GPU, or "CPU"."""
    return provenance.device() if device == "gpu" else "CPU"


def torch_device(device: str) -> str:
    """Return torch's name for "cpu" or "gpu"."""
    return "cuda" if device == "gpu" else "cpu"


def peaks(dtype: str, device: str, torch: bool) -> dict[str, float]:
    """Return the FLOP/s of a large matrix product, in TensorFlow and, if asked, in torch."""
    size = SIZES[device]
    a = tf.cast(tf.random.normal([size, size]), dtype)
    sides = {"tensorflow": Side(lambda: tf.matmul(a, a), lambda product: product[0, 0].numpy())}
    if torch:
        import torch_step

        where = torch_device(device)
        torch_step.prepare(where)
        multiply = torch_step.product(where, dtype, size)
        sides["torch"] = Side(multiply, lambda _: torch_step.wait(where))
    rates = {}
    for name, side in sides.items():
        side.seconds(1)
        seconds = [side.seconds(TOGETHER[device]) for _ in range(5)]
        rates[name] = 2 * size**3 / statistics.median(seconds)
    return rates


def versions(device: str) -> dict[str, str]:
    """Return the versions of TensorFlow and, where it is installed, of torch."""
    numbers = {"tensorflow": tf.__version__}
    if has_torch(device):
        import torch

        numbers["torch"] = torch.__version__
    return numbers
