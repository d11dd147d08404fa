"""Keras's global switches, which are the user's: what is built here does not depend on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras


@contextlib.contextmanager
def neutral() -> Iterator[None]:
    """Inside, or in a function that it decorates, Keras has its own defaults: channels last, and
    float32 for `floatx` and as the dtype policy. After it all are again as the user set them."""
    users = keras.config.image_data_format(), keras.config.floatx(), keras.config.dtype_policy()
    _set("channels_last", "float32", "float32")
    try:
        yield
    finally:
        _set(*users)


def _set(image_data_format: str, floatx: str, policy: Any) -> None:
    keras.config.set_image_data_format(image_data_format)
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
