"""Python functions in a tf.data pipeline, which end before Python does."""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

READING: set[int] = set()  # the threads that run a function now
ENDING = threading.Event()  # set when the process ends
QUIET = 10  # successive checks that must find no thread reading


def by_python(function: Callable[[Any], np.ndarray], argument: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Return the result of a function of one array, which tf.data may call in several threads."""
    _wait_at_exit()

    def call(value: Any) -> np.ndarray:
        READING.add(threading.get_ident())
        try:
            if ENDING.is_set():
                raise RuntimeError("the process ends")
            return function(value)
        finally:
            READING.discard(threading.get_ident())

    # Not stateful, or TensorFlow would make one call at a time.
    return tf.numpy_function(call, [argument], dtype, stateful=False)


@functools.cache
def _wait_at_exit() -> None:
    """Let the threads that read ahead finish before Python ends.

    A thread of TensorFlow that waits for an interpreter that has ended waits for ever, and the
    process waits for the thread.
    """

    def wait() -> None:
        ENDING.set()  # every further call fails, until no more batches are requested
        quiet = 0
        while quiet < QUIET:
            time.sleep(0.01)
            quiet = 0 if READING else quiet + 1

    atexit.register(wait)
