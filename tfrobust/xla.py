"""Functions that XLA compiles: all their shapes are fixed."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_fixed = contextvars.ContextVar("fixed", default=False)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled by XLA, once for each shape of its arguments."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with fixed_shapes():
            return function(*args)

    return tf.function(traced, jit_compile=True, autograph=False)


@contextlib.contextmanager
def fixed_shapes() -> Iterator[None]:
    """Have what is computed inside keep the shapes that XLA needs: no examples leave a batch."""
    token = _fixed.set(True)
    try:
        yield
    finally:
        _fixed.reset(token)


def has_fixed_shapes() -> bool:
    """Return whether what is being traced has to keep its shapes."""
    return _fixed.get()


def is_choice(value: object) -> bool:
    """Return whether it is what a `jit_compile` may be: true, false or "auto"."""
    return isinstance(value, bool) or value == "auto"


def on_gpus(strategy: tf.distribute.Strategy) -> bool:
    """Return whether a strategy computes on GPUs alone; the default one does where there is one."""
    try:
        devices = strategy.extended.worker_devices
    except RuntimeError:  # the default strategy names none
        return bool(tf.config.list_logical_devices("GPU"))
    return all("GPU" in device for device in devices)
