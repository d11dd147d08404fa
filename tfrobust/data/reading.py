"""What pipelines of tf.data share: Python functions in them, and no tuning of their threads."""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

READERS: set[int] = set()  # the threads that are in such a function
EXITING = threading.Event()  # set when the process ends
QUIET = 10  # the number of successive checks that must see no reader


def untuned(data: tf.data.Dataset) -> tf.data.Dataset:
    """Return the data without TensorFlow's tuning of their threads and buffers while they are read.

    The pipelines here are too short to gain by it. The thread of the tuning may also sleep when the
    reading ends. The deletion of the iterator then waits for it, for up to a minute.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def call_python(function: Callable[[Any], np.ndarray], array: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Return function(array), which tf.data may call in several threads."""
    _wait_at_exit()

    def call(value: Any) -> np.ndarray:
        READERS.add(threading.get_ident())
        try:
            if EXITING.is_set():
                raise RuntimeError("the process ends")
            return function(value)
        finally:
            READERS.discard(threading.get_ident())

    # If it were stateful, TensorFlow would make one call at a time.
    return tf.numpy_function(call, [array], dtype, stateful=False)


@functools.cache
def _wait_at_exit() -> None:
    """Let the threads that read ahead finish before Python exits.

    A thread of TensorFlow that waited for an interpreter that has ended would wait for ever, and
    the process would wait for the thread.
    """

    def wait() -> None:
        EXITING.set()  # every further call fails, until no more batches are requested
        quiet = 0
        while quiet < QUIET:
            time.sleep(0.01)
            quiet = 0 if READERS else quiet + 1

    atexit.register(wait)
