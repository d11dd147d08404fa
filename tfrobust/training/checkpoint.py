"""A run's state on disk: checkpoints that are whole or absent, and going on from the last one."""

from __future__ import annotations

import hashlib
import json
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
from tfrobust.errors import UserError, require
from tfrobust.io import write_text
from tfrobust.methods import RobustModel
from tfrobust.training.interrupt import Interruption, NotFinite
from tfrobust.training.monitors import History
from tfrobust.training.state import Kept

KEEP = 2


class Checkpoints:
    """The last two checkpoints in a folder, one folder each: step-000000429, say.

    Each is written aside and renamed, and holds the checksums of its files; a damaged one is set
    aside as damaged-step-000000429.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        for left in folder.glob(".step-*"):  # by a run that was killed while it wrote
            shutil.rmtree(left)
        self.newest = self._newest()

    @property
    def note(self) -> dict[str, Any]:
        """What was noted with the newest whole checkpoint; empty without one."""
        if self.newest is None:
            return {}
        return dict(json.loads((self.newest / "note.json").read_text(encoding="utf-8")))

    @property
    def rollbacks(self) -> int:
        """How often the run went back to a checkpoint and lowered its rate, in all its starts."""
        try:
            return int((self.folder / "rollbacks.txt").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0

    @rollbacks.setter
    def rollbacks(self, count: int) -> None:
        write_text(self.folder / "rollbacks.txt", f"{count}\n")

    def save(self, step: int, state: tf.train.Checkpoint, note: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove the oldest. Raises UserError where it cannot be written,
        which leaves those before as they are."""
        aside = self.folder / f".step-{step:09d}"
        try:
            aside.mkdir(parents=True)
            state.write(str(aside / "state"))
            write_text(aside / "note.json", json.dumps(note, indent=2, default=float) + "\n")
            sums = {file.name: _sum(file) for file in sorted(aside.iterdir())}
            write_text(aside / "sha256.json", json.dumps(sums, indent=2) + "\n")
            whole = self.folder / aside.name[1:]
            shutil.rmtree(whole, ignore_errors=True)  # of the same step, before an interruption
            self.newest = aside.rename(whole)
            for old in sorted(self.folder.glob("step-*"))[:-KEEP]:
                shutil.rmtree(old)
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            kept = f"the one before stands: {self.newest.name}" if self.newest else "there is none"
            raise UserError(
                f"{self.folder}: expected a place to write a checkpoint in ({kept}): "
                f"{' '.join(str(error).split())[:200]}"
            ) from None

    def back_to(self, step: int) -> None:
        """Make the one of this step the newest. Raises UserError where it is not there."""
        if step != self.step:
            wanted = self.folder / f"step-{step:09d}"
            expected = f"a whole checkpoint of step {step}, the newest that all workers have"
            require(step and _whole(wanted), str(self.folder), expected, f"step {self.step}")
            self.newest = wanted

    @property
    def step(self) -> int:
        """Of the newest whole checkpoint; 0 without one."""
        return 0 if self.newest is None else int(self.newest.name.removeprefix("step-"))

    def read(self, state: tf.train.Checkpoint) -> None:
        """The newest whole checkpoint, if there is one, to the variables of `state`. Raises
        UserError for that of another network or optimizer."""
        if self.newest is None:
            return
        try:
            state.read(str(self.newest / "state")).assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            line = " ".join(str(error).split())[:200]
            expected = "a checkpoint of this network and optimizer; remove the folder"
            raise UserError(f"{self.newest}: expected {expected}: {line}") from None

    def _newest(self) -> Path | None:
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            if _whole(folder):
                return folder
            logging.warning("%s: a damaged checkpoint, the one before it is used", folder)
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        return None


def _sum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        return bool(sums) and all(_sum(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


class Best(Kept, keras.callbacks.Callback):
    """Keeps the network's weights, as they are validated, of the epoch where `monitor` was highest,
    the last of equals; of the last epoch where it is not measured.

    They are part of the checkpoints, so that what is best never disagrees with the rest.
    """

    kept = ("best",)

    def __init__(self, model: RobustModel, monitor: str):
        super().__init__()
        self.trained, self.monitor, self.best = model, monitor, -np.inf
        with tf.device("CPU"):
            self.variables = [tf.Variable(w, trainable=False) for w in model.evaluated_weights()]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        value = float((logs or {}).get(self.monitor, np.inf))
        if value >= self.best:
            self.best = value
            for kept, weight in zip(self.variables, self.trained.evaluated_weights(), strict=True):
                kept.assign(weight)

    def restore(self) -> None:
        """Give the network the best weights."""
        self.trained.network.set_weights([kept.numpy() for kept in self.variables])


class Resume(keras.callbacks.Callback):
    """Saves after every epoch and every `minutes` within one, and takes up where the last
    checkpoint stands: weights, optimizer, Dropout's seeds, metrics, and the callbacks that steer.

    model: built, with a built optimizer. others: callbacks, of which those that have `get_state`
    and `set_state` (`Kept`) are restored, by the names of their classes; their `variables` too.
    history: its lines are kept. Must come after all of them in fit's list: their own on_train_begin
    resets them. An interruption is heeded after a batch, saved first, and raised. Several workers
    save after epochs alone, all at once and each in a folder of its own.
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
        self.together = worker()[1] > 1
        self.minutes, self.interruption = minutes, interruption or Interruption()
        self.history = history
        # The seeds of Dropout are variables, but no weights: the model does not track them.
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
        alone = len(self.stateful) == len(stateful)
        require(alone, "others", "callbacks with a state of different classes", others)
        if isinstance(self.note["callbacks"], list):  # as it was first: by position
            names = [type(callback).__name__ for callback in others]
            self.note["callbacks"] = dict(zip(names, self.note["callbacks"], strict=False))
        lacking = sorted(self.stateful.keys() - self.note["callbacks"].keys())
        if self.step and lacking:
            told = ", ".join(lacking)
            logging.warning("%s: no state of %s in it; begun anew", checkpoints.newest, told)
        # fit sets the metrics to zero when an epoch begins.
        self.partial = [v.numpy() for v in self.metrics] if self.batch else None

    @property
    def step(self) -> int:
        """Training steps already done."""
        return int(self.note["step"])

    @property
    def epoch(self) -> int:
        """Epochs already done."""
        return self.step // self.steps

    @property
    def batch(self) -> int:
        """Batches already done of the epoch that was left."""
        return self.step % self.steps

    @property
    def stopped(self) -> bool:
        """Whether a callback had ended the run."""
        return bool(self.note["stopped"])

    def on_train_begin(self, logs: Any = None) -> None:
        self.saved_at = time.monotonic()
        self._restore()

    def _restore(self) -> None:
        for name, state in self.note["callbacks"].items():
            if name in self.stateful:
                self.stateful[name].set_state(state)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.first = self.batch  # of this epoch's batches, the ones that fit does not count
        self.now = epoch
        if self.partial is not None:
            for variable, value in zip(self.metrics, self.partial, strict=True):
                variable.assign(value)
            self.partial = None
            self._restore()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        done = self.first + batch + 1
        step = self.now * self.steps + done
        if not _finite(logs, "loss"):
            where = f"batch {done} of {self.steps} of epoch {self.now + 1} (step {step})"
            raise NotFinite(where, self.step)
        last = done == self.steps  # on_epoch_end saves it
        late = time.monotonic() - self.saved_at > 60 * self.minutes
        if last or not (late or self.interruption.signal):
            return
        if self.together:  # the other workers know nothing of it, and a save takes them all
            self.interruption.heed(*divmod(self.step, self.steps))
        else:
            self._save(step)
            self.interruption.heed(self.now, done)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not _finite(logs, "val_loss"):
            raise NotFinite(f"the validation after epoch {epoch + 1}", self.step)
        self._save((epoch + 1) * self.steps)
        if self.history:
            self.history.publish()
        self.interruption.heed(epoch + 1, 0)

    def _save(self, step: int) -> None:
        counted = getattr(self.model, "step", None)  # other models than ours have none
        trained = step if counted is None else int(keras.ops.convert_to_numpy(counted))
        if trained != step:  # Keras takes some errors, as of a damaged program, for the data's end
            hint = "an emptied folder of compiled programs (docs/performance.md) may help"
            raise UserError(f"train: expected {step} steps behind it, received {trained}; {hint}")
        states = {name: callback.get_state() for name, callback in self.stateful.items()}
        if not all(np.isfinite(weight).all() for weight in self.model.get_weights()):
            raise NotFinite(f"the weights after step {step}", self.step)
        stopped = bool(self.model.stop_training)
        lines = self.history.lines if self.history else []
        self.note |= {"step": step, "stopped": stopped, "callbacks": states, "history": lines}
        self.checkpoints.save(step, self.state, self.note)
        self.saved_at = time.monotonic()


def _finite(logs: Any, name: str) -> bool:
    return bool(np.isfinite(float((logs or {}).get(name, 0.0))))
