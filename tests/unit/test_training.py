"""Schedules in closed form, callbacks fed by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from absl import logging

from tfrobust import Threat
from tfrobust.methods import Iaat
from tfrobust.overfitting import Overfitting
from tfrobust.training import (
    MONITOR,
    OPTIMIZERS,
    SCHEDULES,
    CatastrophicOverfitting,
    Guided,
    History,
    TableQuantiles,
)

BASE, STEPS, EPOCHS = 0.5, 10, 20


def rate(name: str, step: int, **options: Any) -> float:
    schedule = SCHEDULES[name](**options).learning_rate(BASE, STEPS, EPOCHS)
    return float(schedule(step)) if callable(schedule) else schedule


@pytest.mark.parametrize(
    ("name", "options", "values"),
    [
        ("constant", {}, {0: 0.5, 199: 0.5}),
        ("guided", {}, {0: 0.5, 199: 0.5}),
        # falls with the first step of epochs 5 and 8
        (
            "piecewise",
            {"epochs": [5, 8], "factor": 0.1},
            {0: 0.5, 49: 0.5, 50: 0.05, 79: 0.05, 80: 0.005, 199: 0.005},
        ),
        # half a cosine: 0.5 * (1 + cos(pi t / 200)) / 2
        ("cosine", {}, {0: 0.5, 50: 0.25 * (1 + 0.5**0.5), 100: 0.25, 200: 0.0}),
        # a triangle with its peak at 40 % of 200 steps
        ("cyclic", {}, {0: 0.0, 40: 0.25, 80: 0.5, 140: 0.25, 200: 0.0, 300: 0.0}),
        ("cyclic", {"peak": 0.1}, {10: 0.25, 20: 0.5, 110: 0.25}),
    ],
)
def test_schedules(name: str, options: dict[str, Any], values: dict[int, float]) -> None:
    for step, expected in values.items():
        assert rate(name, step, **options) == pytest.approx(expected, rel=1e-5, abs=1e-7), step


def test_schedules_are_saved_with_the_optimizer() -> None:
    triangle = SCHEDULES["cyclic"]().learning_rate(BASE, STEPS, EPOCHS)
    config = keras.optimizers.schedules.serialize(triangle)
    assert float(keras.optimizers.schedules.deserialize(config)(40)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "options"),
    [("piecewise", {"epochs": [8, 5]}), ("piecewise", {"epochs": [5, 5]}), ("cyclic", {"peak": 1})],
)
def test_schedules_that_make_no_sense(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected "):
        rate(name, 0, **options)


def test_optimizers_take_what_papers_tune() -> None:
    sgd = OPTIMIZERS["sgd"](0.1, momentum=0.9, nesterov=True)
    assert (float(sgd.learning_rate), sgd.momentum, sgd.nesterov) == (pytest.approx(0.1), 0.9, True)
    assert OPTIMIZERS["adamw"](weight_decay=0.1).weight_decay == 0.1
    assert OPTIMIZERS["adam"](beta_1=0.5).beta_1 == 0.5


def guided(values: list[float], first_epoch: int = 0) -> tuple[list[float], int | None]:
    """The learning rate after each epoch of these accuracies, and the epoch that ended the run."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0))
    model.stop_training = False
    callbacks = Guided().callbacks(first_epoch)
    for callback in callbacks:
        callback.set_model(model)
        callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        for callback in callbacks:
            callback.on_epoch_end(epoch, {MONITOR: value})
        rates.append(float(model.optimizer.learning_rate))
        if model.stop_training:
            return rates, epoch
    return rates, None


def test_guided_cuts_after_two_epochs_without_gain() -> None:
    """Paper, appendix B: by five. Equal is no gain; a gain starts the count again."""
    rates, _ = guided([0.3, 0.3, 0.3, 0.2, 0.4, 0.1, 0.1])
    np.testing.assert_allclose(rates, [1, 1, 0.2, 0.2, 0.2, 0.2, 0.04], rtol=1e-5)
    rates, _ = guided([0.3, 0.2, 0.31, 0.2, 0.32, 0.2, 0.3200001])
    np.testing.assert_allclose(rates, np.ones(7))


def test_guided_stops_after_ten_epochs_without_gain() -> None:
    assert guided([0.3] + [0.2] * 20)[1] == 10
    assert guided([0.3, 0.4] + [0.2] * 20)[1] == 11
    assert guided([0.3] + [0.2] * 9 + [0.4] + [0.3] * 9)[1] is None


def test_guided_waits_for_the_ramps_end() -> None:
    """Falling accuracy while eps grows says nothing: epoch 15 is the first that counts."""
    rates, ended = guided([0.9] * 15 + [0.3] * 30, first_epoch=15)
    np.testing.assert_allclose(rates[:17], np.ones(17))
    assert rates[17] == pytest.approx(0.2)
    assert ended == 25


def warnings_of(
    monkeypatch: pytest.MonkeyPatch, epochs: list[tuple[float, float]], drop: float = 0.1
) -> list[int]:
    """The epochs that warn, for pairs of robust and FGSM accuracy."""
    warned: list[int] = []
    monkeypatch.setattr(logging, "warning", lambda text, epoch, *values: warned.append(epoch))
    callback = CatastrophicOverfitting(drop)
    for epoch, (robust, fgsm) in enumerate(epochs):
        logs = {MONITOR: robust, "val_fgsm_accuracy": fgsm, "val_jacobian": 3.0}
        callback.on_epoch_end(epoch, logs)
    callback.on_epoch_end(99, {})  # an epoch without validation
    return warned


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([(0.4, 0.45), *2 * [(0.1, 0.9)]], [2]),  # the sign of it
        ([(0.4, 0.45), (0.1, 0.9), (0.35, 0.9), (0.1, 0.9)], []),  # it comes back at once
        ([(0.4, 0.45), *3 * [(0.31, 0.9)]], []),  # a fall of 9 points only
        ([(0.4, 0.45), *3 * [(0.1, 0.12)]], []),  # FGSM falls along: worse, but no overfitting
        ([(0.4, 0.45), *3 * [(0.29, 0.43)]], []),  # the gap has opened by 9 points only
        ([(0.4, 0.45), (0.5, 0.9), (0.6, 0.9)], []),  # new bests
        ([(0.4, 0.45), *3 * [(0.1, 0.9)], (0.45, 0.5), *2 * [(0.3, 0.6)]], [2, 3, 6]),
        ([(0.0, 0.0), *3 * [(0.0, 1.0)]], []),
    ],
)
def test_catastrophic_overfitting(
    monkeypatch: pytest.MonkeyPatch, epochs: list[tuple[float, float]], expected: list[int]
) -> None:
    assert warnings_of(monkeypatch, epochs) == expected


def test_while_eps_grows_a_fall_is_no_sign() -> None:
    sign, last = Overfitting(), {"val_robust_accuracy": 0.1, "val_fgsm_accuracy": 0.9}
    assert not sign.shown_by({"val_robust_accuracy": 0.4, "val_fgsm_accuracy": 0.45, "eps": 0.1})
    assert not sign.shown_by(last | {"eps": 0.2})
    assert not sign.shown_by(last | {"eps": 0.2})
    assert sign.shown_by(last | {"eps": 0.2})


def test_its_state_is_in_checkpoints() -> None:
    assert set(vars(Overfitting())) - {"drop"} == set(CatastrophicOverfitting.kept)


def test_catastrophic_overfitting_message_formats(caplog: pytest.LogCaptureFixture) -> None:
    callback = CatastrophicOverfitting()
    for robust, fgsm in ((0.4, 0.45), (0.1, 0.9), (0.1, 0.9)):
        logs = {MONITOR: robust, "val_fgsm_accuracy": fgsm, "val_jacobian": 3.0}
        callback.on_epoch_end(7, logs)
    assert "at epoch 7: validation robust accuracy 10.0 %, 30.0 points below" in caplog.text


def written(path: Path, lines: list[str], epochs: list[dict[str, Any]]) -> History:
    history = History(path, lines, path.parent / "tensorboard")
    history.set_model(SimpleNamespace(step=np.int64(5)))
    history.on_train_begin()
    for epoch, logs in enumerate(epochs, max(0, len(lines) - 1)):
        history.on_epoch_end(epoch, logs)
        history.publish()
    return history


def test_history_rows(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    written(path, [], [{"loss": np.float32(1.25), "accuracy": 0.5}, {"loss": 1.0, "new": 2.0}])
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0]) == ["epoch", "step", "finished_at", "accuracy", "loss"]
    assert (rows[0]["epoch"], rows[0]["step"], rows[0]["loss"]) == ("0", "5", "1.25")
    assert rows[1]["accuracy"] == ""  # what an epoch lacks is empty


def test_history_goes_on_after_the_checkpoint(tmp_path: Path) -> None:
    """Rows before it stay byte for byte, rows of epochs after it (killed in between) go; what
    became of the file since does not matter."""
    path = tmp_path / "history.csv"
    history = written(path, [], [{"loss": k / 3} for k in range(4)])
    before = path.read_bytes()
    path.write_text("damaged")
    written(path, history.lines[:3], [{"loss": 9.0}])
    lines = path.read_bytes().splitlines(keepends=True)
    assert b"".join(lines[:3]) == b"".join(before.splitlines(keepends=True)[:3])
    assert len(lines) == 4 and lines[3].startswith(b"2,") and lines[3].endswith(b",9\n")
    path.unlink()
    History(path, history.lines, tmp_path / "tensorboard")  # nothing is left to train
    assert path.read_bytes() == before
    written(path, [], [{"loss": 1.0}])  # a run from the start has a file of its own
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_callbacks_work_on_two_devices(on_two_devices: Callable[[str], dict[str, Any]]) -> None:
    out = on_two_devices("trained")
    np.testing.assert_allclose(out["resumed"], out["straight"], rtol=1e-5, atol=1e-7)
    assert len(out["history"].splitlines()) == 3


def test_quantiles_of_a_methods_table() -> None:
    """Over the rows of the training examples alone; the others were held out."""
    network = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model = Iaat(network, threat=Threat(eps=0.1), num_examples=30, steps_per_epoch=1)
    model.radii.table.assign(np.concatenate([np.linspace(0, 1, 21), np.full(9, 7.0)]))
    watch, logs = TableQuantiles(np.arange(21)), {"loss": 1.0}
    watch.set_model(model)
    watch.on_epoch_end(0, logs)
    wanted = {"05": 0.05, "25": 0.25, "50": 0.5, "75": 0.75, "95": 0.95}
    expected = {"loss": 1.0} | {f"radius_q{share}": value for share, value in wanted.items()}
    assert logs == pytest.approx(expected)
