"""The recomputation of BatchNorm's statistics for averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras

from tfrobust.methods import RobustModel


class RecomputedStatistics(keras.callbacks.Callback):
    """A callback that takes BatchNorm's statistics from the training images after each epoch.

    It acts before the validation, from the start of an averaging whose `statistics` are
    "recomputed" (Izmailov et al., 2018, arXiv:1803.05407). In fit's list it must come before
    callbacks that keep the weights or log the time.

    Args:
        model: The model whose weights are averaged.
        batches: The function from the number of an epoch, from 0, to its training batches.
    """

    def __init__(self, model: RobustModel, batches: Callable[[int], Iterable[dict[str, Any]]]):
        super().__init__()
        self.trained, self.batches = model, batches

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        averaging = self.trained.averaging
        self.due: int | None = None
        if averaging is not None and averaging.statistics == "recomputed":
            self.due = epoch if epoch >= averaging.start_epoch else None

    def on_test_begin(self, logs: Any = None) -> None:
        self._recompute()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # there may be no validation
        self._recompute()

    def _recompute(self) -> None:
        if self.due is not None:
            self.trained.recompute_statistics(self.batches(self.due))
            self.due = None
