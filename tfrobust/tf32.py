"""TensorFloat-32, in which a GPU multiplies float32 numbers with 10 bits of their mantissa."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

_experimental = tf.config.experimental


def in_use() -> bool:
    """Return whether float32 products are computed in TensorFloat-32: on GPUs, unless switched
    off."""
    gpus = tf.config.list_physical_devices("GPU")
    return bool(gpus) and _experimental.tensor_float_32_execution_enabled()


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Compute in full float32 inside, as for the verdict on an image."""
    was_on = _experimental.tensor_float_32_execution_enabled()
    _experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        _experimental.enable_tensor_float_32_execution(was_on)
