"""Resume: everything a run is after an epoch, in one TensorFlow checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

# The state of the callbacks that steer a run; a callback without these has none.
STATE = ("best", "wait", "cooldown_counter", "best_epoch", "stopped_epoch", "gap_at_best")


class Resume(keras.callbacks.Callback):
    """Saves after every epoch and takes up where the last checkpoint stands.

    model: built, with a built optimizer. others: the callbacks whose state belongs to the run.
    Must come after them in fit's list: their own on_train_begin resets them.
    """

    def __init__(self, model: keras.Model, folder: Path, others: list[keras.callbacks.Callback]):
        super().__init__()
        self.others = others
        self.note = tf.Variable("{}", dtype=tf.string, trainable=False)
        # The seeds of Dropout are variables, but no weights: the model does not track them.
        weights = {id(v) for v in model.weights}
        seeds = [v.value for v in model.variables if id(v) not in weights]
        checkpoint = tf.train.Checkpoint(
            model=model, optimizer=model.optimizer, note=self.note, seeds=seeds
        )
        self.manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=2)
        self.saved: dict[str, Any] = {"epochs": 0, "stopped": False, "callbacks": []}
        if self.manager.latest_checkpoint:
            checkpoint.restore(self.manager.latest_checkpoint).expect_partial()
            self.saved = json.loads(self.note.numpy())

    @property
    def first_epoch(self) -> int:
        """Epochs already done."""
        return int(self.saved["epochs"])

    @property
    def stopped(self) -> bool:
        """Whether a callback had ended the run."""
        return bool(self.saved["stopped"])

    def on_train_begin(self, logs: Any = None) -> None:
        for callback, state in zip(self.others, self.saved["callbacks"], strict=False):
            for name, value in state.items():
                setattr(callback, name, value)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        states = [
            {n: v for n in STATE if (v := getattr(c, n, None)) is not None} for c in self.others
        ]
        self.saved = {
            "epochs": epoch + 1,
            "stopped": bool(self.model.stop_training),
            "callbacks": states,
        }
        self.note.assign(json.dumps(self.saved, default=float))
        self.manager.save(epoch + 1)
