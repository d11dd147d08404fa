"""Resume to the bit, checkpoints that are whole or absent, and what ends a run early."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from tfrobust import PGD, Atlas, Natural, Threat
from tfrobust.data import Split, batches
from tfrobust.errors import UserError
from tfrobust.methods import Awp, Free, Gkl, Iaat, Mma, RobustModel
from tfrobust.training import (
    MONITOR,
    SCHEDULES,
    BatchTimer,
    Best,
    CatastrophicOverfitting,
    Checkpoints,
    Guided,
    History,
    Interrupted,
    Interruption,
    NotFinite,
    Resume,
    Schedule,
)

GUIDED = Guided(patience=1, stop=30)


class Signal(keras.callbacks.Callback):
    """A signal during a batch: the `at`-th, counted over the whole process."""

    def __init__(self, interruption: Interruption, at: int):
        super().__init__()
        self.interruption, self.left = interruption, at

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        self.interruption.signal = None if self.left else signal.SIGTERM


FACTS = {"num_examples": 24, "batch_size": 8, "steps_per_epoch": 3}
# Methods with a state of their own: tables, averages, counters.
STATEFUL: dict[str, tuple[type[RobustModel], dict[str, Any]]] = {
    "iaat": (Iaat, {"warmup_epochs": 1, "attack": PGD(steps=2)}),
    "mma": (Mma, {"max_margin": 0.2, "attack": PGD(steps=2)}),
    "free": (Free, {"replays": 2}),
    "gkl": (Gkl, {"attack": PGD(steps=2)}),
    "awp of iaat": (Awp, {"method": {"name": "iaat", "warmup_epochs": 1}, "warmup_epochs": 2}),
    "moving average": (Atlas, {"alpha": 0.01, "beta": 1.0, "ema": 0.9}),
}


def run(
    folder: Path,
    epochs: int = 4,
    signal_at: int = 0,
    schedule: Schedule = GUIDED,
    method: tuple[type[RobustModel], dict[str, Any]] = (Atlas, {"alpha": 0.01, "beta": 1.0}),
) -> tuple[np.ndarray, Any]:
    """Train up to `epochs` of 3 batches, all objects fresh, as a new process would."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    split = Split.of(rng.random((24, 4, 4, 1)).astype("float32"), rng.integers(0, 3, 24))
    image = keras.Input((4, 4, 1))
    x = keras.layers.BatchNormalization()(keras.layers.Flatten()(image))
    x = keras.layers.Dropout(0.2)(x)
    network = keras.Model(image, keras.layers.Dense(3)(keras.layers.Dense(8, "tanh")(x)))
    cls, options = method
    model = cls(
        network, threat=Threat("linf", 0.1), ramp_steps=5, validation_attack=PGD(steps=2),
        **FACTS, **options,
    )  # fmt: skip
    rate = schedule.learning_rate(0.1, 3, 4)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9))
    model.optimizer.build(model.network.trainable_variables)
    best, interruption = Best(model, MONITOR), Interruption()
    steering = [BatchTimer(), *schedule.callbacks(0), best, CatastrophicOverfitting()]
    kept = Checkpoints(folder)
    history = History(folder / "history.csv", kept.note.get("history", []), folder / "tensorboard")
    resume = Resume(model, kept, steering, 3, interruption=interruption, history=history)
    callbacks = [Signal(interruption, signal_at), *steering, history, resume]
    for until in (resume.epoch + 1, epochs) if resume.batch else (epochs,):
        model.fit(
            batches(split, 8, training=True, first_step=resume.step),
            steps_per_epoch=3 - resume.batch,
            initial_epoch=resume.epoch,
            epochs=until,
            validation_data=batches(split, 12),
            callbacks=callbacks,
            verbose=0,
        )
    state = {name: getattr(c, name, None) for c in steering for name in ("best", "wait")}
    state |= {"rate": float(model.optimizer.learning_rate), "step": int(model.step)}
    variables = [*model.network.variables, *model.weights, *model.optimizer.variables]
    variables += best.variables
    return np.concatenate([np.ravel(v.numpy()) for v in variables]), state


def measured(folder: Path) -> list[list[str]]:
    """history.csv without what is never the same twice."""
    skip = ("finished_at", "seconds_per_batch", "validation_share")
    rows = csv.DictReader((folder / "history.csv").open())
    return [[v for k, v in row.items() if k not in skip] for row in rows]


def charts(folder: Path) -> list[tuple[str, int]]:
    """(name, epoch) of all scalars in TensorBoard's files."""
    found = []
    for file in sorted(folder.glob("tensorboard/*/events*")):
        for record in tf.data.TFRecordDataset(str(file)):
            event = event_pb2.Event.FromString(record.numpy())
            found += [(f"{file.parent.name} {v.tag}", event.step) for v in event.summary.value]
    return sorted(found)


@pytest.mark.parametrize("schedule", [GUIDED, SCHEDULES["cyclic"]()], ids=["guided", "cyclic"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, schedule: Schedule) -> None:
    """Weights, the best ones, BatchNorm, momentum, Dropout, metrics, the rate and the plateau
    counters, to the bit: cut after epochs 1 and 2, and by signals within epochs 1 and 3."""
    straight, state = run(tmp_path / "straight", schedule=schedule)
    run(tmp_path / "epochs", 1, schedule=schedule)
    run(tmp_path / "epochs", 2, schedule=schedule)
    for at in (2, 6):  # batches 1 of epoch 0; then, from there, 1 of epoch 2
        with pytest.raises(Interrupted, match="SIGTERM: saved after . epochs and . batches"):
            run(tmp_path / "signals", signal_at=at, schedule=schedule)
    for name in ("epochs", "signals"):
        first_rows = (tmp_path / name / "history.csv").read_bytes()
        resumed, resumed_state = run(tmp_path / name, schedule=schedule)
        np.testing.assert_array_equal(resumed, straight)
        assert resumed_state == state and state["step"] == 12
        assert (tmp_path / name / "history.csv").read_bytes().startswith(first_rows)
        assert measured(tmp_path / name) == measured(tmp_path / "straight")
        assert charts(tmp_path / name) == charts(tmp_path / "straight")
    assert ("validation train/robust_accuracy", 3) in charts(tmp_path / "signals")


def test_a_row_is_published_once_a_checkpoint_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before a save, nothing that was read of history.csv is taken back."""
    save = Checkpoints.save

    def killed(self: Checkpoints, step: int, *rest: Any) -> None:
        if step == 6:
            raise SystemExit
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(SystemExit):
        run(tmp_path, 2)
    seen = (tmp_path / "history.csv").read_bytes()
    assert len(seen.splitlines()) == 2  # the names, epoch 0
    monkeypatch.undo()
    run(tmp_path, 2)
    rows = (tmp_path / "history.csv").read_bytes()
    assert rows.startswith(seen) and len(rows.splitlines()) == 3


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_of_a_method_resumes_too(tmp_path: Path, name: str) -> None:
    """Its tables and counters, and what is validated, to the bit: cut after an epoch, and within
    one."""
    method = STATEFUL[name]
    straight, state = run(tmp_path / "straight", method=method)
    run(tmp_path / "cut", 1, method=method)
    with pytest.raises(Interrupted, match="SIGTERM: saved after 2 epochs and 2 batches"):
        run(tmp_path / "cut", signal_at=5, method=method)
    resumed, resumed_state = run(tmp_path / "cut", method=method)
    np.testing.assert_array_equal(resumed, straight)
    assert resumed_state == state
    assert measured(tmp_path / "cut") == measured(tmp_path / "straight")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The newest checkpoint's callbacks as `change` makes them."""
    newest = Checkpoints(folder).newest
    assert newest is not None
    note = json.loads((newest / "note.json").read_text())
    note["callbacks"] = change(note["callbacks"])
    (newest / "note.json").write_text(json.dumps(note))
    sums = json.loads((newest / "sha256.json").read_text())
    sums["note.json"] = hashlib.sha256((newest / "note.json").read_bytes()).hexdigest()
    (newest / "sha256.json").write_text(json.dumps(sums))


def test_the_state_of_callbacks_has_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their order means nothing; one that is not there is told, and begins anew."""
    straight, state = run(tmp_path / "straight")
    run(tmp_path / "cut", 2)
    note = Checkpoints(tmp_path / "cut").note["callbacks"]
    assert set(note) == {"BatchTimer", "GuidedRate", "GuidedStop", "Best",
                         "CatastrophicOverfitting"}  # fmt: skip
    assert set(note["GuidedStop"]) == {"best", "wait", "best_epoch", "stopped_epoch"}
    rewritten(tmp_path / "cut", lambda states: dict(sorted(states.items(), reverse=True)))
    resumed, resumed_state = run(tmp_path / "cut")
    np.testing.assert_array_equal(resumed, straight)
    assert resumed_state == state and "no state of" not in caplog.text

    run(tmp_path / "lacking", 2)
    kept = ("BatchTimer", "GuidedStop", "Other")
    rewritten(tmp_path / "lacking", lambda states: {k: v for k, v in states.items() if k in kept})
    run(tmp_path / "lacking", 3)
    told = "step-000000006: no state of Best, CatastrophicOverfitting, GuidedRate in it"
    assert told in caplog.text and caplog.text.count("no state of") == 1


def test_checkpoints_with_states_by_position_resume_too(tmp_path: Path) -> None:
    straight, state = run(tmp_path / "straight")
    run(tmp_path / "cut", 2)
    rewritten(tmp_path / "cut", lambda states: list(states.values()))
    resumed, resumed_state = run(tmp_path / "cut")
    np.testing.assert_array_equal(resumed, straight)
    assert resumed_state == state


def test_a_signal_in_the_last_batch_waits_for_validation(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="saved after 2 epochs and 0 batches"):
        run(tmp_path, signal_at=6)
    assert Checkpoints(tmp_path).note["step"] == 6


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    resume = Resume(trained(), Checkpoints(tmp_path), [], 5)
    resume.set_model(resume.state.model)
    resume.on_train_begin()
    resume.on_epoch_begin(0)
    resume.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(NotFinite, match=r"batch 4 of 5 of epoch 1 \(step 4\); .* of step 0"):
        resume.on_train_batch_end(3, {"loss": np.float32("nan")})
    with pytest.raises(NotFinite, match="the validation after epoch 1; .* of step 0"):
        resume.on_epoch_end(0, {"val_loss": np.float32("inf")})
    resume.model.set_weights([np.full(w.shape, np.nan) for w in resume.model.get_weights()])
    with pytest.raises(NotFinite, match="the weights after step 5; .* of step 0"):
        resume.on_epoch_end(0, {"val_loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_a_state_is_saved_within_long_epochs(tmp_path: Path) -> None:
    for minutes, steps in ((10.0, []), (0.0, [1, 2])):
        resume = Resume(trained(), Checkpoints(tmp_path), [], 5, minutes=minutes)
        resume.set_model(resume.state.model)
        resume.on_train_begin()
        resume.on_epoch_begin(0)
        for batch in range(2):
            resume.on_train_batch_end(batch, {"loss": 1.0})
        assert [int(f.name[5:]) for f in sorted(tmp_path.glob("step-*"))] == steps


def trained(epochs: int = 0, callbacks: Any = ()) -> keras.Model:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    model.optimizer.build(model.trainable_variables)
    x = np.ones((4, 1))
    for callback in callbacks:  # Resume needs the model before fit
        callback.set_model(model)
    if epochs:
        model.fit(x, x, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model


def test_resume_tells_what_is_done(tmp_path: Path) -> None:
    model = trained()
    stopper = keras.callbacks.EarlyStopping("loss", patience=1, mode="max")
    resume = Resume(model, Checkpoints(tmp_path), [stopper], 1)
    assert (resume.epoch, resume.batch, resume.stopped) == (0, 0, False)
    x = np.ones((4, 1))
    model.fit(x, x, epochs=9, callbacks=[stopper, resume], verbose=0)
    again = Resume(trained(), Checkpoints(tmp_path), [stopper], 1)
    assert (again.epoch, again.stopped) == (2, True)
    assert len(list(tmp_path.glob("step-*"))) == 2


def checkpoints(folder: Path) -> tuple[Checkpoints, tf.Variable, tf.train.Checkpoint]:
    variable = tf.Variable(0.0)
    return Checkpoints(folder), variable, tf.train.Checkpoint(variable=variable)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no sums"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    kept, variable, state = checkpoints(tmp_path)
    for step in (1, 2, 3):
        variable.assign(step)
        kept.save(step, state, {"step": step})
    newest = tmp_path / "step-000000003"
    data = next(newest.glob("state.data*"))
    content = bytearray(data.read_bytes())
    if damage == "cut":
        data.write_bytes(content[:-1])
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "gone":
        data.unlink()
    else:
        (newest / "sha256.json").unlink()
    kept, variable, state = checkpoints(tmp_path)
    assert f"{newest}: a damaged checkpoint" in caplog.text
    kept.read(state)
    assert (kept.note, float(variable)) == ({"step": 2}, 2.0)
    variable.assign(3.5)
    kept.save(3, state, {"step": 3})  # in the place of the damaged one
    kept, variable, state = checkpoints(tmp_path)
    kept.read(state)
    assert float(variable) == 3.5


def test_damaged_checkpoints_take_no_place_of_the_two_that_are_kept(tmp_path: Path) -> None:
    kept, _, state = checkpoints(tmp_path)
    for step in (100, 200):
        kept.save(step, state, {"step": step})
        (tmp_path / f"step-{step:09d}" / "sha256.json").write_text("{}")
    kept, _, state = checkpoints(tmp_path)
    assert kept.newest is None
    for step in (10, 20, 30):
        kept.save(step, state, {"step": step})
    assert {folder.name for folder in tmp_path.glob("step-*")} == {
        "step-000000020",
        "step-000000030",
    }
    assert Checkpoints(tmp_path).note == {"step": 30}
    assert len(list(tmp_path.glob("damaged-*"))) == 2


@pytest.mark.parametrize("other", [{"shape": [2]}, {"name": "another"}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    kept, _, state = checkpoints(tmp_path)
    kept.save(1, state, {"step": 1})
    variable = tf.Variable(tf.zeros(other.get("shape", [])))
    state = tf.train.Checkpoint(**{other.get("name", "variable"): variable})
    with pytest.raises(UserError, match="step-000000001: expected a checkpoint of this network"):
        kept.read(state)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _, state = checkpoints(tmp_path)
    kept.save(1, state, {"step": 1})
    full = tf.errors.ResourceExhaustedError(None, None, "no space left on device")
    monkeypatch.setattr(tf.train.Checkpoint, "write", Mock(side_effect=full))
    with pytest.raises(UserError, match="the one before stands: step-000000001.*no space left"):
        kept.save(2, state, {"step": 2})
    assert [f.name for f in tmp_path.iterdir()] == ["step-000000001"]
    assert Checkpoints(tmp_path).note == {"step": 1}


def test_what_a_killed_run_was_writing_goes(tmp_path: Path) -> None:
    (tmp_path / ".step-000000007").mkdir()
    assert Checkpoints(tmp_path).newest is None
    assert not list(tmp_path.iterdir())


def test_best_is_the_last_of_the_highest() -> None:
    model = trained()
    method = Natural(model, threat=Threat())
    best = Best(method, "score")
    for value, score in ((1.0, 0.5), (2.0, 0.7), (3.0, 0.7), (4.0, 0.6), (5.0, np.nan)):
        model.set_weights([np.full(w.shape, value) for w in model.get_weights()])
        best.on_epoch_end(0, {"score": score})
    best.restore()
    assert (float(model.get_weights()[1][0]), best.best) == (3.0, 0.7)
    last = Best(method, "absent")
    for value in (1.0, 2.0):
        model.set_weights([np.full(w.shape, value) for w in model.get_weights()])
        last.on_epoch_end(0, {"score": 0.5})
    last.restore()
    assert float(model.get_weights()[1][0]) == 2.0


def test_signals_are_noted_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interruption = Interruption()
    interruption.heed(0, 0)
    with interruption.caught():
        signal.raise_signal(signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before  # a second one acts as ever
        with pytest.raises(Interrupted, match="SIGTERM: saved after 3 epochs and 2 batches"):
            interruption.heed(3, 2)
    with Interruption().caught():
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == before
