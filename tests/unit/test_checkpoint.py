"""Checkpoints are complete or absent; losses that are not finite and signals end a run."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import Natural, Threat
from tfrobust.errors import UserError
from tfrobust.methods import Ema
from tfrobust.training import Best, Checkpoints, Interrupted, Interruption, NotFinite, Resume


def begun(folder: Path, **options: Any) -> Resume:
    """Return the callback at the beginning of epoch 0 of five batches."""
    resume = Resume(compiled(), Checkpoints(folder), [], 5, **options)
    resume.set_model(resume.state.model)
    resume.on_train_begin()
    resume.on_epoch_begin(0)
    return resume


def test_loss_or_weights_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    resume = begun(tmp_path)
    resume.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(NotFinite, match=r"batch 4 of 5 of epoch 1 \(step 4\); .* of step 0"):
        resume.on_train_batch_end(3, {"loss": np.float32("nan")})
    with pytest.raises(NotFinite, match="the validation after epoch 1; .* of step 0"):
        resume.on_epoch_end(0, {"val_loss": np.float32("inf")})
    resume.model.set_weights([np.full(w.shape, np.nan) for w in resume.model.get_weights()])
    with pytest.raises(NotFinite, match="the weights after step 5; .* of step 0"):
        resume.on_epoch_end(0, {"val_loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_checkpoint_is_saved_within_an_epoch_after_some_minutes(tmp_path: Path) -> None:
    for minutes, steps in ((10.0, []), (0.0, [1, 2])):
        resume = begun(tmp_path, minutes=minutes)
        for batch in range(2):
            resume.on_train_batch_end(batch, {"loss": 1.0})
        assert [int(path.name[5:]) for path in sorted(tmp_path.glob("step-*"))] == steps


def compiled() -> keras.Model:
    """Return a linear model of one input with a built optimizer."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_resume_knows_the_finished_epochs_and_an_early_stop(tmp_path: Path) -> None:
    model = compiled()
    stopper = keras.callbacks.EarlyStopping("loss", patience=1, mode="max")
    resume = Resume(model, Checkpoints(tmp_path), [stopper], 1)
    assert (resume.epoch, resume.batch, resume.stopped) == (0, 0, False)
    x = np.ones((4, 1))
    model.fit(x, x, epochs=9, callbacks=[stopper, resume], verbose=0)
    resumed = Resume(compiled(), Checkpoints(tmp_path), [stopper], 1)
    assert (resumed.epoch, resumed.stopped) == (2, True)
    assert len(list(tmp_path.glob("step-*"))) == 2


def checkpoints(folder: Path) -> tuple[Checkpoints, tf.Variable, tf.train.Checkpoint]:
    """Return the checkpoints of a folder, a variable, and its state for TensorFlow."""
    variable = tf.Variable(0.0)
    return Checkpoints(folder), variable, tf.train.Checkpoint(variable=variable)


@pytest.mark.parametrize("name", ["run [2]", "a*b", "what?", "back\\slash", "größe {1} #2 %s"])
def test_a_checkpoint_in_a_folder_of_any_name_is_read(tmp_path: Path, name: str) -> None:
    """TensorFlow takes some of these names for patterns."""
    saved, variable, state = checkpoints(tmp_path / name)
    variable.assign(3.0)
    saved.save(7, state, {})
    found, variable, state = checkpoints(tmp_path / name)
    found.read(state)
    assert (found.step, variable.numpy()) == (7, 3.0)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no sums"])
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store, variable, state = checkpoints(tmp_path)
    for step in (1, 2, 3):
        variable.assign(step)
        store.save(step, state, {"step": step})
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
    store, variable, state = checkpoints(tmp_path)
    assert f"{newest}: the checkpoint is damaged" in caplog.text
    store.read(state)
    assert (store.note, float(variable)) == ({"step": 2}, 2.0)
    variable.assign(3.5)
    store.save(3, state, {"step": 3})  # replaces the damaged checkpoint
    store, variable, state = checkpoints(tmp_path)
    store.read(state)
    assert float(variable) == 3.5


def test_a_copy_that_a_file_manager_has_made_is_no_checkpoint(tmp_path: Path) -> None:
    store, variable, state = checkpoints(tmp_path)
    for step in range(1, 5):
        variable.assign(step)
        store.save(step, state, {"step": step})
        newest = tmp_path / f"step-{step:09d}"
        shutil.copytree(newest, tmp_path / f"{newest.name} copy")
    assert Checkpoints(str(tmp_path)).step == 4
    assert len(list(tmp_path.glob("step-*"))) == 2 + 4


def test_damaged_checkpoints_do_not_count_among_the_last_two(tmp_path: Path) -> None:
    store, _, state = checkpoints(tmp_path)
    for step in (100, 200):
        store.save(step, state, {"step": step})
        (tmp_path / f"step-{step:09d}" / "sha256.json").write_text("{}")
    store, _, state = checkpoints(tmp_path)
    assert store.newest is None
    for step in (10, 20, 30):
        store.save(step, state, {"step": step})
    names = {folder.name for folder in tmp_path.glob("step-*")}
    assert names == {"step-000000020", "step-000000030"}
    assert Checkpoints(tmp_path).note == {"step": 30}
    assert len(list(tmp_path.glob("damaged-*"))) == 2


@pytest.mark.parametrize(("name", "shape"), [("variable", [2]), ("another", [])])
def test_checkpoint_of_another_network_is_refused(
    tmp_path: Path, name: str, shape: list[int]
) -> None:
    store, _, state = checkpoints(tmp_path)
    store.save(1, state, {"step": 1})
    state = tf.train.Checkpoint(**{name: tf.Variable(tf.zeros(shape))})
    with pytest.raises(UserError, match="step-000000001: expected a checkpoint of this network"):
        store.read(state)


def test_failed_write_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, state = checkpoints(tmp_path)
    store.save(1, state, {"step": 1})
    full = tf.errors.ResourceExhaustedError(None, None, "no space left on device")
    monkeypatch.setattr(tf.train.Checkpoint, "write", Mock(side_effect=full))
    with pytest.raises(UserError, match="the last one is step-000000001.*no space left"):
        store.save(2, state, {"step": 2})
    assert [f.name for f in tmp_path.iterdir()] == ["step-000000001"]
    assert Checkpoints(tmp_path).note == {"step": 1}


def test_unfinished_checkpoint_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-000000007").mkdir()
    assert Checkpoints(tmp_path).newest is None
    assert not list(tmp_path.iterdir())


def test_best_restores_the_last_epoch_of_the_highest_score() -> None:
    """Without the score in the logs, the last epoch is restored."""
    model = compiled()
    method = Natural(model, threat=Threat())

    def restored(name: str, scores: dict[float, float | None]) -> tuple[float, float]:
        """Return the weight after epochs of these weights and scores, and the best score."""
        best = Best(method, name)
        for value, score in scores.items():
            model.set_weights([np.full(weight.shape, value) for weight in model.get_weights()])
            best.on_epoch_end(0, {} if score is None else {"score": score})
        best.restore()
        return float(model.get_weights()[1][0]), best.best

    assert restored("score", {1.0: 0.5, 2.0: 0.7, 3.0: 0.7, 4.0: 0.6, 5.0: np.nan}) == (3.0, 0.7)
    assert restored("absent", {1.0: 0.5, 2.0: 0.5})[0] == 2.0
    # With validation_freq=2 epochs without validation counted as the best.
    assert restored("score", {1.0: None, 2.0: 0.7, 3.0: None, 4.0: 0.6}) == (2.0, 0.7)


def test_best_keeps_the_averaged_weights_which_were_validated() -> None:
    model = compiled()
    method = Natural(model, threat=Threat(), averaging=Ema(decay=0.5))
    method.step.assign(1)  # before the first step the averages are the weights
    model.set_weights([weight + 1 for weight in model.get_weights()])
    last, validated = model.get_weights(), method.evaluated_weights()
    best = Best(method, "score")
    best.on_epoch_end(0, {"score": 0.5})
    best.restore()
    assert any((a != b).any() for a, b in zip(last, validated, strict=True))
    for weight, expected in zip(model.get_weights(), validated, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_lost_terminal_stays_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption().caught() as interruption:
            signal.raise_signal(signal.SIGHUP)
            interruption.heed(0, 0)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored, as SIGHUP is under nohup."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_first_signal_is_noted_and_a_second_acts_at_once(number: signal.Signals) -> None:
    interruption = Interruption()
    interruption.heed(0, 0)
    with interruption.caught():
        signal.raise_signal(number)
        assert interruption.signal == number
        assert signal.getsignal(number) == signal.default_int_handler
        with pytest.raises(Interrupted, match=f"{number.name}: saved after 3 epochs and 2 batches"):
            interruption.heed(3, 2)
    with Interruption().caught():
        assert signal.getsignal(number) != signal.default_int_handler
    assert signal.getsignal(number) == signal.default_int_handler


def test_workers_go_back_to_the_newest_checkpoint_of_all(tmp_path: Path) -> None:
    for epoch in range(2):
        resume = begun(tmp_path)
        resume.current_epoch = epoch
        resume.on_epoch_end(epoch, {})
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.step == 10
    checkpoints.rewind(10)
    checkpoints.rewind(5)
    assert checkpoints.step == 5 and checkpoints.note["step"] == 5
    for step, message in (
        (3, "expected a complete checkpoint of step 3, the newest that all workers have; remove"),
        (0, "expected a checkpoint on every worker, another has none; remove the folders of all"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.rewind(step)
