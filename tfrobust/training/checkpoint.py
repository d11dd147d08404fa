"""The state of a run on disk, in checkpoints that are complete or absent, and its resumption."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfrobust.distribution import worker
from tfrobust.errors import UserError, one_line, require, user_path
from tfrobust.io import literal, unwritable, write_text
from tfrobust.methods import RobustModel
from tfrobust.training.interrupt import Interruption, NotFinite
from tfrobust.training.monitors import History
from tfrobust.training.state import Stateful

KEEP = 2


class Checkpoints:
    """The last two checkpoints of a run, each in a folder of its own, such as step-000000429.

    A checkpoint is written under another name and then renamed, and has the checksums of its files.
    A damaged one is renamed to damaged-step-000000429.
    """

    def __init__(self, folder: str | Path):
        self.folder = folder = user_path("folder", folder)
        for partial in folder.glob(".step-*"):  # of a run that was killed while it wrote
            shutil.rmtree(partial)
        self.newest = self._newest()

    @property
    def note(self) -> dict[str, Any]:
        """The note of the newest complete checkpoint; empty if there is none."""
        if self.newest is None:
            return {}
        return dict(json.loads((self.newest / "note.json").read_text(encoding="utf-8")))

    @property
    def rollbacks(self) -> int:
        """The number of times that the run returned to a checkpoint with a lower learning rate."""
        try:
            return int((self.folder / "rollbacks.txt").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0

    @rollbacks.setter
    def rollbacks(self, count: int) -> None:
        write_text(self.folder / "rollbacks.txt", f"{count}\n")

    def save(self, step: int, state: tf.train.Checkpoint, note: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove the oldest.

        Args:
            step: The number of training steps taken.
            state: The variables.
            note: All else that is saved, as JSON.

        Raises:
            UserError: It cannot be written. The earlier checkpoints are left as they are.
        """
        temporary = self.folder / f".step-{step:09d}"
        try:
            temporary.mkdir(parents=True)
            state.write(str(temporary / "state"))
            write_text(temporary / "note.json", json.dumps(note, indent=2, default=float) + "\n")
            sums = {file.name: _checksum(file) for file in sorted(temporary.iterdir())}
            write_text(temporary / "sha256.json", json.dumps(sums, indent=2) + "\n")
            path = self.folder / temporary.name[1:]
            shutil.rmtree(path, ignore_errors=True)  # one of this step, from before an interruption
            self.newest = temporary.rename(path)
            for old in self._folders()[:-KEEP]:
                shutil.rmtree(old)
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            last = f"the last one is {self.newest.name}" if self.newest else "there is none yet"
            expected = f"expected a place to write a checkpoint in ({last})"
            line = one_line(unwritable(error) or error)
            raise UserError(f"{self.folder}: {expected}: {line}") from None

    def rewind(self, step: int) -> None:
        """Make the checkpoint of a step, the newest that all workers have, the newest one.

        Raises UserError if there is none, or if another worker has no checkpoint at all.
        """
        if step == self.step:
            return
        where, received = str(self.folder), f"step {self.step}"
        anew = "remove the folders of all workers to begin anew"
        require(step, where, f"a checkpoint on every worker, another has none; {anew}", received)
        path = self.folder / f"step-{step:09d}"
        expected = f"a complete checkpoint of step {step}, the newest that all workers have; {anew}"
        require(_is_complete(path), where, expected, received)
        self.newest = path

    @property
    def step(self) -> int:
        """The step of the newest complete checkpoint; 0 if there is none."""
        return 0 if self.newest is None else int(self.newest.name.removeprefix("step-"))

    def read(self, state: tf.train.Checkpoint) -> None:
        """Assign the newest complete checkpoint, if there is one, to the variables of `state`.

        Raises UserError if it is of another network or optimizer.
        """
        if self.newest is None:
            return
        try:
            with literal(self.newest) as folder:
                state.read(str(folder / "state")).assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            expected = "a checkpoint of this network and optimizer; remove the folder"
            raise UserError(f"{self.newest}: expected {expected}: {one_line(error)}") from None

    def _folders(self) -> list[Path]:
        """Return the folders of checkpoints by rising step, without "step-000000429 copy"."""
        folders = self.folder.glob("step-*")
        return sorted(path for path in folders if re.fullmatch(r"step-\d+", path.name))

    def _newest(self) -> Path | None:
        """Return the newest complete checkpoint, and rename damaged ones that are newer."""
        for folder in reversed(self._folders()):
            if _is_complete(folder):
                return folder
            logging.warning("%s: the checkpoint is damaged; the one before it is used", folder)
            damaged = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(damaged, ignore_errors=True)
            folder.rename(damaged)
        return None


def _checksum(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _is_complete(folder: Path) -> bool:
    """Return whether a checkpoint has its files, with their checksums."""
    try:
        sums = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        return bool(sums) and all(_checksum(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


class Best(Stateful, keras.callbacks.Callback):
    """A callback that keeps the network's weights of the epoch with the highest `monitor`.

    They are the weights that were validated. Among equal epochs the last one counts. Epochs without
    the monitor count only if none has it; then it is the last epoch of all. The weights are part of
    the checkpoints, so they always agree with the rest of the state.
    """

    state_names = ("best",)

    def __init__(self, model: RobustModel, monitor: str):
        super().__init__()
        self.trained, self.monitor, self.best = model, monitor, -np.inf
        with tf.device("CPU"):
            self.variables = [tf.Variable(w, trainable=False) for w in model.evaluated_weights()]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        value = (logs or {}).get(self.monitor)  # None in an epoch without validation
        if np.isinf(self.best) if value is None else float(value) >= self.best:
            self.best = -np.inf if value is None else float(value)
            weights = self.trained.evaluated_weights()
            for variable, weight in zip(self.variables, weights, strict=True):
                variable.assign(weight)

    def restore(self) -> None:
        """Set the network's weights to the best ones."""
        self.trained.network.set_weights([variable.numpy() for variable in self.variables])


class Resume(keras.callbacks.Callback):
    """A callback that saves a checkpoint after every epoch and every `minutes`, and resumes.

    A checkpoint holds the weights, the optimizer, Dropout's seeds, the metrics, and the state of
    the callbacks. This callback must come after all others in fit's list, because their
    on_train_begin resets them. After a signal it saves at the end of the batch and raises
    Interrupted. Several workers save only after epochs, all together, each in a folder of its own.

    Args:
        model: A built model with a built optimizer.
        checkpoints: The checkpoints. The run resumes from the newest one.
        others: The other callbacks. Those with `get_state` and `set_state` (`Stateful`) are
            restored by the names of their classes. Their `variables` are restored too.
        steps_per_epoch: The number of training batches in an epoch.
        minutes: The time between two checkpoints within an epoch.
        interruption: The receiver of the signals.
        history: The history file, whose lines are saved too.
        note: Further entries of the checkpoints' note.
    """

    def __init__(
        self,
        model: keras.Model,
        checkpoints: Checkpoints,
        others: Sequence[keras.callbacks.Callback],
        steps_per_epoch: int,
        *,
        minutes: float = 10.0,
        interruption: Interruption | None = None,
        history: History | None = None,
        note: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.checkpoints, self.others, self.steps = checkpoints, others, steps_per_epoch
        self.has_workers = worker()[1] > 1
        self.minutes, self.interruption = minutes, interruption or Interruption()
        self.history = history
        # Dropout's seeds are variables but not weights, so the model does not track them.
        weights = {id(v) for v in model.weights}
        self.metrics = [v.value for v in model.metrics_variables]
        self.state = tf.train.Checkpoint(
            model=model,
            optimizer=model.optimizer,
            seeds=[v.value for v in model.variables if id(v) not in weights],
            metrics=self.metrics,
            others=[v for callback in others for v in getattr(callback, "variables", [])],
        )
        checkpoints.read(self.state)
        fresh: dict[str, Any] = {"step": 0, "stopped": False, "callbacks": {}}
        self.note = fresh | checkpoints.note | dict(note or {})
        stateful = [callback for callback in others if hasattr(callback, "set_state")]
        self.stateful = {type(callback).__name__: callback for callback in stateful}
        distinct = len(self.stateful) == len(stateful)
        require(distinct, "others", "callbacks with a state of different classes", others)
        if isinstance(self.note["callbacks"], list):  # the first format, which is by position
            self.note["callbacks"] = dict(zip(self.stateful, self.note["callbacks"], strict=False))
        missing = sorted(self.stateful.keys() - self.note["callbacks"].keys())
        if self.step and missing:
            line = "%s: has no state of %s, which start anew"
            logging.warning(line, checkpoints.newest, ", ".join(missing))
        # fit resets the metrics when an epoch begins.
        self.partial = [v.numpy() for v in self.metrics] if self.batch else None

    @property
    def step(self) -> int:
        """The number of training steps already taken."""
        return int(self.note["step"])

    @property
    def epoch(self) -> int:
        """The number of complete epochs."""
        return self.step // self.steps

    @property
    def batch(self) -> int:
        """The number of batches already trained on in the epoch that was interrupted."""
        return self.step % self.steps

    @property
    def stopped(self) -> bool:
        """Whether a callback ended the run."""
        return bool(self.note["stopped"])

    def on_train_begin(self, logs: Any = None) -> None:
        self.saved_at = time.monotonic()
        self._restore()

    def _restore(self) -> None:
        for name, state in self.note["callbacks"].items():
            if name in self.stateful:
                self.stateful[name].set_state(state)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.first_batch = self.batch  # fit counts the batches of a resumed epoch from 0
        self.current_epoch = epoch
        if self.partial is not None:
            for variable, value in zip(self.metrics, self.partial, strict=True):
                variable.assign(value)
            self.partial = None
            self._restore()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        batches = self.first_batch + batch + 1
        step = self.current_epoch * self.steps + batches
        if not _finite(logs, "loss"):
            where = f"batch {batches} of {self.steps} of epoch {self.current_epoch + 1}"
            raise NotFinite(f"{where} (step {step})", self.step)
        if batches == self.steps:  # on_epoch_end saves
            return
        is_due = time.monotonic() - self.saved_at > 60 * self.minutes
        if not (is_due or self.interruption.signal):
            return
        if self.has_workers:  # all workers would have to save, and the others have no signal
            self.interruption.heed(self.epoch, self.batch)
        else:
            self._save(step)
            self.interruption.heed(self.current_epoch, batches)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not _finite(logs, "val_loss"):
            raise NotFinite(f"the validation after epoch {epoch + 1}", self.step)
        self._save((epoch + 1) * self.steps)
        if self.history:
            self.history.publish()
        self.interruption.heed(epoch + 1, 0)

    def _save(self, step: int) -> None:
        counter = getattr(self.model, "step", None)  # only our models have one
        trained = step if counter is None else int(keras.ops.convert_to_numpy(counter))
        if trained != step:  # Keras takes errors such as a damaged program for the end of the data
            hint = "emptying the folder of compiled programs (docs/performance.md) may help"
            raise UserError(f"train: expected {step} steps, received {trained}; {hint}")
        states = {name: callback.get_state() for name, callback in self.stateful.items()}
        if not all(np.isfinite(weight).all() for weight in self.model.get_weights()):
            raise NotFinite(f"the weights after step {step}", self.step)
        stopped = bool(self.model.stop_training)
        lines = self.history.lines if self.history else []
        self.note |= {"step": step, "stopped": stopped, "callbacks": states, "history": lines}
        self.checkpoints.save(step, self.state, self.note)
        self.saved_at = time.monotonic()


def _finite(logs: Any, name: str) -> bool:
    """Return whether a value of the logs is finite, or is not in them."""
    return bool(np.isfinite(float((logs or {}).get(name, 0.0))))
