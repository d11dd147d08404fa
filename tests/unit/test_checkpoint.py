"""Checkpoints are complete or absent, and what ends a run early."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import Natural, Threat
from tfrobust.errors import UserError
from tfrobust.training import (
    Best,
    Checkpoints,
    Interrupted,
    Interruption,
    NotFinite,
    Resume,
)


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
    assert f"{newest}: the checkpoint is damaged" in caplog.text
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
    with pytest.raises(UserError, match="the last one is step-000000001.*no space left"):
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
