"""A line that says how long a training still takes."""

from __future__ import annotations

import time
from typing import Any

import keras

from tfrobust.report import duration

SECONDS = 10  # the least time between two lines


class TimeLeft(keras.callbacks.Callback):
    """A callback that prints after an epoch about how long the others will take.

    Args:
        epochs: The number of epochs of the training.
    """

    def __init__(self, epochs: int):
        super().__init__()
        self.epochs = epochs

    def on_train_begin(self, logs: Any = None) -> None:
        self.began, self.done = time.perf_counter(), 0
        self.printed = self.began - SECONDS

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Print the line here: at the end of an epoch it would be within Keras's."""
        now = time.perf_counter()
        if self.done and now - self.printed >= SECONDS:
            left = (now - self.began) / self.done * (self.epochs - epoch)
            print(
                f"train: {epoch} of {self.epochs} epochs, about {duration(left)} left", flush=True
            )
            self.printed = now

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.done += 1
