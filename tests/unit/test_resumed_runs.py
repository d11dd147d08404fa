"""Training that is interrupted and resumed is that of an uninterrupted run to the bit."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from tests.products import slow_but
from tfrobust import PGD, Adv, Threat
from tfrobust.data import Split, batches
from tfrobust.methods import Awp, Ema, Free, Gkl, Iaat, Mma, RobustModel, Swa
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
    RecomputedStatistics,
    Resume,
    Schedule,
)

GUIDED = Guided(patience=1, stop=30)


class Signal(keras.callbacks.Callback):
    """Sends a signal during the `at`-th batch of the process."""

    def __init__(self, interruption: Interruption, at: int):
        super().__init__()
        self.interruption, self.left = interruption, at

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        self.interruption.signal = None if self.left else signal.SIGTERM


FACTS = {"num_examples": 24, "batch_size": 8, "steps_per_epoch": 3}
# Methods that have a state besides the weights: tables, averages, counters.
STATEFUL: dict[str, tuple[type[RobustModel], dict[str, Any]]] = {
    "iaat": (Iaat, {"warmup_epochs": 1, "attack": PGD(steps=2)}),
    "mma": (Mma, {"max_margin": 0.2, "attack": PGD(steps=2)}),
    "free": (Free, {"replays": 2}),
    "gkl": (Gkl, {"attack": PGD(steps=2)}),
    "awp of iaat": (Awp, {"method": {"name": "iaat", "warmup_epochs": 1}, "warmup_epochs": 2}),
    "moving average": (Adv, {"averaging": Ema(decay=0.9, statistics="averaged")}),
    "mean of epochs": (Adv, {"averaging": Swa(start_epoch=1)}),
}


def run(
    folder: Path,
    epochs: int = 4,
    signal_at: int = 0,
    schedule: Schedule = GUIDED,
    method: tuple[type[RobustModel], dict[str, Any]] = (Adv, {}),
) -> tuple[np.ndarray, Any]:
    """Train up to `epochs` of 3 batches with fresh objects, as a new process would.

    Returns:
        All variables in one vector, and the state of callbacks and optimizer.
    """
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
    statistics = RecomputedStatistics(
        model, lambda epoch: batches(split, 8, training=True, first_step=3 * epoch).take(3)
    )
    steering = [statistics, BatchTimer(), *schedule.callbacks(0), best, CatastrophicOverfitting()]
    checkpoints = Checkpoints(folder)
    rows = checkpoints.note.get("history", [])
    history = History(folder / "history.csv", rows, folder / "tensorboard")
    resume = Resume(model, checkpoints, steering, 3, interruption=interruption, history=history)
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
    state: dict[str, Any] = {"best": [getattr(callback, "best", None) for callback in steering]}
    state |= {"wait": [getattr(callback, "wait", None) for callback in steering]}
    state |= {"rate": float(model.optimizer.learning_rate), "step": int(model.step)}
    variables = [*model.network.variables, *model.weights, *model.optimizer.variables]
    variables += best.variables
    return np.concatenate([np.ravel(v.numpy()) for v in variables]), state


def measured(folder: Path) -> list[list[str]]:
    """Return the rows of history.csv without the times, which differ in every run."""
    skip = ("finished_at", "seconds_per_batch", "training_seconds", "validation_share")
    rows = csv.DictReader((folder / "history.csv").open())
    return [[v for k, v in row.items() if k not in skip] for row in rows]


def charts(folder: Path) -> list[tuple[str, int]]:
    """Return (name, epoch) of all scalars in TensorBoard's files."""
    results = []
    for file in sorted(folder.glob("tensorboard/*/events*")):
        for record in tf.data.TFRecordDataset(str(file)):
            event = event_pb2.Event.FromString(record.numpy())
            results += [(f"{file.parent.name} {v.tag}", event.step) for v in event.summary.value]
    return sorted(results)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Any]:
    """Return the folder, the variables and the state of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, *run(folder)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that stopped after two epochs; tests copy it."""
    folder = tmp_path_factory.mktemp("cut")
    run(folder, 2)
    return folder


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(GUIDED, id="guided"),
        pytest.param(SCHEDULES["cyclic"](), id="cyclic", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, schedule: Schedule, uninterrupted: tuple[Path, np.ndarray, Any]
) -> None:
    """All weights, averages, momenta, noise, metrics, rates and counters are equal to the bit.

    One run stops after its first epoch, the other by signals within epochs 1 and 3.
    """
    folder, straight, state = uninterrupted
    if schedule is not GUIDED:
        folder = tmp_path / "straight"
        straight, state = run(folder, schedule=schedule)
    run(tmp_path / "epochs", 1, schedule=schedule)
    for batch in (2, 6):  # the second of the first process, the sixth after it was resumed
        with pytest.raises(Interrupted, match="SIGTERM: saved after . epochs and . batches"):
            run(tmp_path / "signals", signal_at=batch, schedule=schedule)
    for name in ("epochs", "signals"):
        first_rows = (tmp_path / name / "history.csv").read_bytes()
        resumed, resumed_state = run(tmp_path / name, schedule=schedule)
        np.testing.assert_array_equal(resumed, straight)
        assert resumed_state == state and state["step"] == 12
        assert (tmp_path / name / "history.csv").read_bytes().startswith(first_rows)
        assert measured(tmp_path / name) == measured(folder)
        assert charts(tmp_path / name) == charts(folder)
    assert ("validation train/robust_accuracy", 3) in charts(tmp_path / "signals")


def test_history_csv_has_only_rows_that_a_checkpoint_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no row changes after a kill before the checkpoint of its epoch."""
    save = Checkpoints.save

    def killed(self: Checkpoints, step: int, *rest: Any) -> None:
        if step == 6:
            raise SystemExit
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(SystemExit):
        run(tmp_path, 2)
    before = (tmp_path / "history.csv").read_bytes()
    assert len(before.splitlines()) == 2  # the header and epoch 0
    monkeypatch.undo()
    run(tmp_path, 2)
    after = (tmp_path / "history.csv").read_bytes()
    assert after.startswith(before) and len(after.splitlines()) == 3


@pytest.mark.parametrize("name", slow_but(STATEFUL, ["moving average"]))
def test_a_run_of_a_method_with_a_state_equals_the_uninterrupted_one(
    tmp_path: Path, name: str
) -> None:
    """Tables, counters and validation are equal to the bit after stops at and within an epoch."""
    method = STATEFUL[name]
    straight, state = run(tmp_path / "straight", method=method)
    with pytest.raises(Interrupted, match="SIGTERM: saved after 1 epochs and 2 batches"):
        run(tmp_path / "cut", signal_at=5, method=method)
    resumed, resumed_state = run(tmp_path / "cut", method=method)
    np.testing.assert_array_equal(resumed, straight)
    assert resumed_state == state
    assert measured(tmp_path / "cut") == measured(tmp_path / "straight")


def rewrite_states(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Replace the states of the callbacks in the newest checkpoint by change(states)."""
    newest = Checkpoints(folder).newest
    assert newest is not None
    note = json.loads((newest / "note.json").read_text())
    note["callbacks"] = change(note["callbacks"])
    (newest / "note.json").write_text(json.dumps(note))
    sums = json.loads((newest / "sha256.json").read_text())
    sums["note.json"] = hashlib.sha256((newest / "note.json").read_bytes()).hexdigest()
    (newest / "sha256.json").write_text(json.dumps(sums))


def test_the_states_of_callbacks_are_matched_by_name(
    tmp_path: Path,
    two_epochs: Path,
    uninterrupted: tuple[Path, np.ndarray, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their order does not matter. A callback without a state is reported and begins anew."""
    _, straight, state = uninterrupted
    shutil.copytree(two_epochs, tmp_path / "cut")
    note = Checkpoints(tmp_path / "cut").note["callbacks"]
    names = {"BatchTimer", "GuidedRate", "GuidedStop", "Best", "CatastrophicOverfitting"}
    assert set(note) == names
    assert set(note["GuidedStop"]) == {"best", "wait", "best_epoch", "stopped_epoch"}
    rewrite_states(tmp_path / "cut", lambda states: dict(sorted(states.items(), reverse=True)))
    resumed, resumed_state = run(tmp_path / "cut")
    np.testing.assert_array_equal(resumed, straight)
    assert resumed_state == state and "no state of" not in caplog.text

    shutil.copytree(two_epochs, tmp_path / "lacking")
    some = {"BatchTimer": note["BatchTimer"], "GuidedStop": note["GuidedStop"]}
    rewrite_states(tmp_path / "lacking", lambda states: some)
    run(tmp_path / "lacking", 3)
    message = "step-000000006: has no state of Best, CatastrophicOverfitting, GuidedRate"
    assert message in caplog.text and caplog.text.count("no state of") == 1


def test_older_checkpoints_with_states_by_position_resume(
    tmp_path: Path, two_epochs: Path, uninterrupted: tuple[Path, np.ndarray, Any]
) -> None:
    _, straight, state = uninterrupted
    shutil.copytree(two_epochs, tmp_path / "cut")
    rewrite_states(tmp_path / "cut", lambda states: list(states.values()))
    resumed, resumed_state = run(tmp_path / "cut")
    np.testing.assert_array_equal(resumed, straight)
    assert resumed_state == state


def test_a_signal_in_the_last_batch_of_an_epoch_stops_after_validation(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="saved after 2 epochs and 0 batches"):
        run(tmp_path, signal_at=6)
    assert Checkpoints(tmp_path).note["step"] == 6


def test_the_clock_of_training_goes_on_where_the_checkpoint_left_it(
    tmp_path: Path, two_epochs: Path
) -> None:
    """The checkpoint says that the two epochs took 1000 s; the pause since then does not count."""
    shutil.copytree(two_epochs, tmp_path / "cut")

    def after_1000_seconds(states: dict[str, Any]) -> dict[str, Any]:
        return states | {"BatchTimer": states["BatchTimer"] | {"training_seconds": 1000.0}}

    rewrite_states(tmp_path / "cut", after_1000_seconds)
    run(tmp_path / "cut", 3)
    rows = list(csv.DictReader((tmp_path / "cut" / "history.csv").open()))
    first, second, third = (float(row["training_seconds"]) for row in rows)
    assert 0 < first < second < 1000 < third < 1100


def test_the_clock_of_training_is_not_set_back_within_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on within an epoch calls `fit` twice. A checkpoint here takes 1000 s."""
    with pytest.raises(Interrupted):
        run(tmp_path, signal_at=2)
    save, clock, waited = Checkpoints.save, time.perf_counter, 0.0

    def slow(*arguments: Any) -> None:
        nonlocal waited
        save(*arguments)
        waited += 1000

    monkeypatch.setattr(Checkpoints, "save", slow)
    monkeypatch.setattr("time.perf_counter", lambda: clock() + waited)
    run(tmp_path, 2)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    first, second = (float(row["training_seconds"]) for row in rows)
    assert first < 1000 < second < 2000


def test_the_clock_of_training_starts_when_the_timer_is_made(monkeypatch) -> None:
    now = 5.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    timer = BatchTimer()
    now = 7.0
    assert timer.training_seconds == 2.0
    timer.set_state({"training_seconds": 30.0})
    now = 8.5
    assert timer.training_seconds == 31.5
