"""A context in which our code does not depend on the user's global settings of Keras."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras


@contextlib.contextmanager
def neutral() -> Iterator[None]:
    """Return a context or a decorator in which Keras has its own defaults.

    They are channels last, and float32 for `floatx` and the dtype policy. Afterwards the user's
    settings are restored.
    """
    former = keras.config.image_data_format(), keras.config.floatx(), keras.config.dtype_policy()
    _set("channels_last", "float32", "float32")
    try:
        yield
    finally:
        _set(*former)


def _set(image_data_format: str, floatx: str, policy: Any) -> None:
    keras.config.set_image_data_format(image_data_format)
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
