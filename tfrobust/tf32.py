"""TensorFloat-32: products of float32 numbers that use 10 bits of their mantissas, on GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

_experimental = tf.config.experimental


def in_use() -> bool:
    """Return whether float32 products are in TF32, as on GPUs unless it is switched off."""
    gpus = tf.config.list_physical_devices("GPU")
    return bool(gpus) and _experimental.tensor_float_32_execution_enabled()


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Return a context that computes in full float32, as for the verdict on an image."""
    was_on = _experimental.tensor_float_32_execution_enabled()
    _experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        _experimental.enable_tensor_float_32_execution(was_on)
