"""Functions compiled by XLA, in which all shapes are fixed."""

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

    def traced(*args: Any) -> Any:
        with fixed_shapes():
            return function(*args)

    part: Any = traced_apart(traced)
    part.__name__ = getattr(function, "__name__", traced.__name__)
    return tf.function(part, jit_compile=True, autograph=False)


def traced_apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as a partial, whose tracings TensorFlow counts apart.

    It counts those of all functions with the same code together, and warns after a few, as if one
    function were traced again and again. A partial has no code.
    """
    return functools.partial(function)


@contextlib.contextmanager
def fixed_shapes() -> Iterator[None]:
    """Return a context in which shapes stay fixed, as XLA needs: no example leaves its batch."""
    token = _fixed.set(True)
    try:
        yield
    finally:
        _fixed.reset(token)


def has_fixed_shapes() -> bool:
    """Return whether the code that is traced must keep all shapes fixed."""
    return _fixed.get()


def is_choice(value: object) -> bool:
    """Return whether the value is valid for `jit_compile`: True, False or "auto"."""
    return isinstance(value, bool) or value == "auto"


def on_gpus(strategy: tf.distribute.Strategy) -> bool:
    """Return whether all devices of a strategy are GPUs.

    The default strategy computes on a GPU if the machine has one.
    """
    try:
        devices = strategy.extended.worker_devices
    except RuntimeError:  # the default strategy names none
        return bool(tf.config.list_logical_devices("GPU"))
    return all("GPU" in device for device in devices)
