"""Callbacks that observe a run: time per batch, the history file, catastrophic overfitting."""

from __future__ import annotations

import csv
import io
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfrobust.errors import user_path
from tfrobust.io import write_text
from tfrobust.overfitting import ONE_STEP, ROBUST, Overfitting
from tfrobust.training.state import Stateful

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class BatchTimer(Stateful, keras.callbacks.Callback):
    """A callback that adds times and the learning rate to the logs.

    They are `training_seconds`, the time of training and validation since the callback was made;
    `seconds_per_batch`, the median time of a batch; `validation_share`, the share of the epoch's
    time that validation took; and the learning rate at the beginning of the epoch. A resumed run
    goes on from the seconds of its checkpoint: neither the pause counts, nor the time of steps that
    are not in the checkpoint.
    """

    state_names = ("learning_rate", "training_seconds")

    def __init__(self) -> None:
        super().__init__()
        self.seconds_before, self.since = 0.0, time.perf_counter()
        self.has_begun = False

    @property
    def training_seconds(self) -> float:
        """The time of training so far."""
        return self.seconds_before + time.perf_counter() - self.since

    @training_seconds.setter
    def training_seconds(self, seconds: float) -> None:
        if not self.has_begun:  # `Resume` restores again later, but the clock is never set back
            self.seconds_before, self.since = seconds, time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.has_begun = True
        self.seconds: list[float] = []
        self.started, self.validated = time.perf_counter(), 0.0
        self.learning_rate = _number(self.model.optimizer.learning_rate)

    def on_test_begin(self, logs: Any = None) -> None:
        self.validated -= time.perf_counter()

    def on_test_end(self, logs: Any = None) -> None:
        self.validated += time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.first, self.batch_started = batch, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self.batch_started
        batches = batch - self.first + 1  # `steps_per_execution` of them
        self.seconds.append(seconds / batches)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs["seconds_per_batch"] = statistics.median(self.seconds)
            logs["validation_share"] = self.validated / (time.perf_counter() - self.started)
            logs["training_seconds"] = self.training_seconds
            logs["learning_rate"] = self.learning_rate


class TableQuantiles(keras.callbacks.Callback):
    """A callback that logs quantiles of the method's tables, such as radius_q50, the median radius.

    Args:
        rows: The rows of the training examples. Those of held-out examples do not count.
    """

    def __init__(self, rows: np.ndarray):
        super().__init__()
        self.rows = rows

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is None:
            return
        for name, table in self.model.tables().items():
            values = keras.ops.convert_to_numpy(table.table)[self.rows]
            for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
                logs[f"{name}_q{round(100 * share):02d}"] = float(value)


class History(keras.callbacks.Callback):
    """A callback that writes history.csv and the same curves for TensorBoard.

    The file has one row for each epoch with `epoch`, `step`, `finished_at` (UTC) and the logs.
    `Resume` publishes a row only when a checkpoint holds it, so a killed run never takes one back.

    Args:
        path: The path of the file.
        lines: The lines of the earlier epochs, from the last checkpoint. The file and TensorBoard's
            curves begin with them, so that neither has gaps or duplicates.
        tensorboard: The folder of TensorBoard's curves.
    """

    def __init__(self, path: str | Path, lines: Sequence[str], tensorboard: str | Path):
        super().__init__()
        self.path = user_path("path", path)
        self.tensorboard = user_path("tensorboard", tensorboard)
        self.lines = list(lines)
        self.boards: dict[str, Any] = {}
        if self.lines:
            self._write()
            self.on_train_begin()  # fit does not call it if no epoch is left

    def on_train_begin(self, logs: Any = None) -> None:
        if self.boards:
            return
        for name in ("train", "validation"):
            shutil.rmtree(self.tensorboard / name, ignore_errors=True)
            self.boards[name] = tf.summary.create_file_writer(str(self.tensorboard / name))
        for row in csv.DictReader(self.lines):
            self._show(row)

    def _show(self, row: Mapping[str, Any]) -> None:
        """Write a row as TensorBoard's scalars, both splits of a metric in one chart."""
        for name, value in row.items():
            if name in ("epoch", "step", "finished_at") or value == "":
                continue
            board = self.boards["validation" if name.startswith("val_") else "train"]
            with board.as_default():
                tag = f"train/{name.removeprefix('val_')}"
                tf.summary.scalar(tag, float(value), int(row["epoch"]))
        for board in self.boards.values():
            board.flush()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": int(_number(self.model.step)),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **{name: f"{float(value):.8g}" for name, value in sorted((logs or {}).items())},
        }
        if not self.lines:
            self.lines.append(_csv_line(list(row)))
        columns = next(csv.reader(self.lines[:1]))
        self.lines.append(_csv_line([row.get(column, "") for column in columns]))
        self.last = row

    def publish(self) -> None:
        """Write the file, and the last row to TensorBoard."""
        self._write()
        self._show(self.last)

    def _write(self) -> None:
        write_text(self.path, "\n".join(self.lines) + "\n")


def _number(variable: Any) -> float:
    """Return a variable's value, for which float(variable) fails under a MirroredStrategy."""
    return float(keras.ops.convert_to_numpy(variable))


def _csv_line(cells: list[Any]) -> str:
    """Return cells as a line of a CSV file, without its end."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()


class CatastrophicOverfitting(Overfitting, Stateful, keras.callbacks.Callback):
    """A callback that warns after every epoch that shows catastrophic overfitting."""

    state_names = ("best", "gap_at_best", "last_eps", "fallen")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = logs or {}
        if self.shown_by(logs):
            robust = float(logs[ROBUST])
            logging.warning(
                "catastrophic overfitting at epoch %d: validation robust accuracy %.1f %%, "
                "%.1f points below its best, while FGSM accuracy is %.1f points higher; "
                "Jacobian estimate %.3g (raise alpha, lower beta, or stop early)",
                epoch,
                100 * robust,
                100 * (self.best - robust),
                100 * (float(logs[ONE_STEP]) - robust),
                logs["val_jacobian"],
            )
