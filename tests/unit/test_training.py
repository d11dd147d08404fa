"""Schedules in closed form, optimizers, and callbacks that are called by hand."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from tests.errors import error_line
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
# The rate after the first of 14 epochs in which half a cosine goes from 0.5 to 0.5 / 25 / 1e4.
ONE_DOWN = 2e-6 + (0.5 - 2e-6) * (1 + math.cos(math.pi / 14)) / 2


def rate(name: str, step: int, **options: Any) -> float:
    """Return the learning rate of a schedule at a step."""
    schedule = SCHEDULES[name](**options).learning_rate(BASE, STEPS, EPOCHS)
    return float(schedule(step)) if callable(schedule) else schedule


@pytest.mark.parametrize(
    ("name", "options", "values"),
    [
        ("constant", {}, {0: 0.5, 199: 0.5}),
        ("guided", {}, {0: 0.5, 199: 0.5}),
        # It drops at the first step of epochs 5 and 8.
        (
            "piecewise",
            {"epochs": [5, 8], "factor": 0.1},
            {0: 0.5, 49: 0.5, 50: 0.05, 79: 0.05, 80: 0.005, 199: 0.005},
        ),
        # The rates of FAT are 0.1, 0.01 and 0.005 of the first.
        (
            "piecewise",
            {"epochs": [5, 8, 10], "factor": [0.1, 0.1, 0.5]},
            {49: 0.5, 50: 0.05, 80: 0.005, 99: 0.005, 100: 0.0025},
        ),
        # Half a cosine is 0.5 * (1 + cos(pi t / 200)) / 2.
        ("cosine", {}, {0: 0.5, 50: 0.25 * (1 + 0.5**0.5), 100: 0.25, 200: 0.0}),
        # A triangle has its peak at 40 % of 200 steps.
        ("cyclic", {}, {0: 0.0, 40: 0.25, 80: 0.5, 140: 0.25, 200: 0.0, 300: 0.0}),
        ("cyclic", {"peak": 0.1}, {10: 0.25, 20: 0.5, 110: 0.25}),
        # From torch 2.13's OneCycleLR(max_lr=0.5, total_steps=200), by epoch with total_steps=20.
        ("one_cycle", {}, {0: 0.02, 59: 0.5, 129: 0.25, 199: 2e-6}),
        ("one_cycle", {"shape": "linear", "start_divisor": 5}, {0: 0.1, 59: 0.5, 129: 0.250005}),
        ("one_cycle", {"by_epoch": True}, {0: 0.02, 9: 0.02, 50: 0.5, 59: 0.5, 60: ONE_DOWN}),
    ],
)
def test_the_rates_of_a_schedule_by_hand(
    name: str, options: dict[str, Any], values: dict[int, float]
) -> None:
    for step, expected in values.items():
        assert rate(name, step, **options) == pytest.approx(expected, rel=1e-5, abs=1e-7), step


def test_schedules_are_saved_with_the_optimizer() -> None:
    for name in ("cyclic", "one_cycle"):
        schedule = SCHEDULES[name]().learning_rate(BASE, STEPS, EPOCHS)
        config = keras.optimizers.schedules.serialize(schedule)
        loaded = keras.optimizers.schedules.deserialize(config)
        assert float(loaded(40)) == float(schedule(40)) > 0.1


def test_a_piecewise_rate_drops_at_the_first_step_of_the_epoch_counted_from_0() -> None:
    """With a gradient of 1 each step of two epochs of three is the rate itself."""
    weight = keras.Variable([0.0])
    schedule = SCHEDULES["piecewise"](epochs=[1]).learning_rate(0.1, 3, 2)
    optimizer, steps = OPTIMIZERS["sgd"](schedule), []
    for _ in range(6):
        before = float(weight[0])
        optimizer.apply([keras.ops.ones(1)], [weight])
        steps.append(before - float(weight[0]))
    assert steps == pytest.approx([0.1] * 3 + [0.01] * 3, rel=1e-4)


@pytest.mark.parametrize("factor", [-0.1, 0.0, math.nan, [0.1, -0.1]])
def test_a_piecewise_rate_has_no_factor_that_is_not_positive(factor: Any) -> None:
    """The rate would go uphill, or end the training without a word."""
    line = error_line(lambda: SCHEDULES["piecewise"](epochs=[1, 2], factor=factor))
    assert line.startswith("factor: expected a number")


@pytest.mark.parametrize(
    ("nesterov", "path"),
    [
        (False, [0.9, 0.72, 0.486, 0.46008, 0.4321512, 0.4026938]),
        (True, [0.81, 0.5751, 0.3273210, 0.3039777, 0.2801391, 0.2560974]),
    ],
)
def test_torch_sgd_drops_its_rate_as_torch_does(nesterov: bool, path: list[float]) -> None:
    """The paths are those of torch 2.13 on w^2 / 2 from 1, with a tenth of the rate from step 3.

    Keras's SGD takes the same path until the drop, and is a tenth of a step further after it.
    """
    paths = []
    for name in ("torch_sgd", "sgd"):
        weight, optimizer = keras.Variable([1.0]), OPTIMIZERS[name](0.1, 0.9, nesterov)
        paths.append([])
        for step in range(6):
            if step == 3:
                optimizer.learning_rate.assign(0.01)
            optimizer.apply([weight.value], [weight])
            paths[-1].append(float(weight[0]))
    assert paths[0] == pytest.approx(path, rel=1e-5)
    assert paths[1][:3] == pytest.approx(path[:3], rel=1e-5)
    assert paths[0][3] - paths[1][3] > 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("piecewise", {"epochs": [8, 5]}),
        ("piecewise", {"epochs": [5, 5]}),
        ("piecewise", {"epochs": [5, 8], "factor": [0.1]}),
        ("cyclic", {"peak": 1}),
        ("one_cycle", {"shape": "square"}),
        ("one_cycle", {"end_divisor": 0.5}),
    ],
)
def test_impossible_options_of_a_schedule_are_refused(name: str, options: dict[str, Any]) -> None:
    *_, mistaken = options
    with pytest.raises(ValueError, match=f"^{mistaken}: expected "):
        rate(name, 0, **options)


def test_optimizers_take_momentum_decay_and_betas() -> None:
    sgd = OPTIMIZERS["sgd"](0.1, momentum=0.9, nesterov=True)
    assert (float(sgd.learning_rate), sgd.momentum, sgd.nesterov) == (pytest.approx(0.1), 0.9, True)
    assert OPTIMIZERS["adamw"](weight_decay=0.1).weight_decay == 0.1
    assert OPTIMIZERS["adam"](beta_1=0.5).beta_1 == 0.5


def step_of(optimizer: Any, shape: tuple[int, ...], name: str = "kernel") -> np.ndarray:
    """Return the first step of a weight of normal numbers, for a gradient of normal numbers."""
    rng = np.random.default_rng(0)
    weight = keras.Variable(rng.normal(size=shape).astype(np.float32), name=name)
    before = weight.numpy()
    optimizer.apply([keras.ops.convert_to_tensor(rng.normal(size=shape), "float32")], [weight])
    return weight.numpy() - before


@pytest.mark.parametrize("shape", [(3, 3, 16, 32), (1, 1, 8, 64), (48, 24)])
def test_a_step_of_muon_is_nearly_orthogonal_and_as_long_as_its_rate_says(shape: Any) -> None:
    """Five iterations of Newton and Schulz leave singular values between 0.7 and 1.2."""
    matrix = step_of(OPTIMIZERS["muon"](0.5, weight_decay=0), shape).reshape(-1, shape[-1])
    values = np.linalg.svd(matrix, compute_uv=False) / (0.5 * 0.2 * max(matrix.shape) ** 0.5)
    assert values.min() > 0.6 and values.max() < 1.3
    assert np.sqrt((matrix**2).mean()) == pytest.approx(0.5 * 0.2, rel=0.3)


def test_muon_takes_a_matrix_as_that_of_keras_does() -> None:
    expected = step_of(keras.optimizers.Muon(0.5, weight_decay=0.1), (48, 24))
    step = step_of(OPTIMIZERS["muon"](0.5, weight_decay=0.1), (48, 24))
    assert np.linalg.norm(step - expected) < 0.1 * np.linalg.norm(expected)  # in bfloat16


@pytest.mark.parametrize(("shape", "name"), [((7,), "bias"), ((7, 5), "bias"), ((7, 5), "logits")])
def test_muon_leaves_biases_and_the_last_layer_to_adam(shape: Any, name: str) -> None:
    muon = OPTIMIZERS["muon"](0.5, weight_decay=0.1, adam_lr_ratio=0.2)
    restored = type(muon).from_config(muon.get_config())
    for optimizer in (muon, restored):
        step = step_of(optimizer, shape, name)
        np.testing.assert_allclose(step, step_of(keras.optimizers.Adam(0.1), shape), rtol=1e-4)


def guided(values: list[float], first_epoch: int = 0) -> tuple[list[float], int | None]:
    """Return the learning rate after each epoch of these accuracies, and the epoch of the stop."""
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


def test_guided_divides_the_rate_by_five_after_two_epochs_without_gain() -> None:
    """An equal accuracy is not a gain, and a gain restarts the count (appendix B of the paper)."""
    rates, _ = guided([0.3, 0.3, 0.3, 0.2, 0.4, 0.1, 0.1])
    np.testing.assert_allclose(rates, [1, 1, 0.2, 0.2, 0.2, 0.2, 0.04], rtol=1e-5)
    rates, _ = guided([0.3, 0.2, 0.31, 0.2, 0.32, 0.2, 0.3200001])
    np.testing.assert_allclose(rates, np.ones(7))


def test_guided_stops_after_ten_epochs_without_gain() -> None:
    assert guided([0.3] + [0.2] * 20)[1] == 10
    assert guided([0.3, 0.4] + [0.2] * 20)[1] == 11
    assert guided([0.3] + [0.2] * 9 + [0.4] + [0.3] * 9)[1] is None


def test_guided_begins_to_count_at_the_end_of_the_ramp() -> None:
    """Accuracy falls while eps grows, so epoch 15 is the first that counts."""
    rates, stop = guided([0.9] * 15 + [0.3] * 30, first_epoch=15)
    np.testing.assert_allclose(rates[:17], np.ones(17))
    assert rates[17] == pytest.approx(0.2)
    assert stop == 25


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([(0.4, 0.45), *2 * [(0.1, 0.9)]], [2]),
        ([(0.4, 0.45), (0.1, 0.9), (0.35, 0.9), (0.1, 0.9)], []),  # for one epoch at a time
        ([(0.4, 0.45), *3 * [(0.31, 0.9)]], []),  # a fall of 9 points only
        ([(0.4, 0.45), *3 * [(0.1, 0.12)]], []),  # FGSM accuracy falls too
        ([(0.4, 0.45), *3 * [(0.29, 0.43)]], []),  # the gap has grown by 9 points only
        ([(0.4, 0.45), (0.5, 0.9), (0.6, 0.9)], []),  # robust accuracy rises
        ([(0.4, 0.45), *3 * [(0.1, 0.9)], (0.45, 0.5), *2 * [(0.3, 0.6)]], [2, 3, 6]),
        ([(0.0, 0.0), *3 * [(0.0, 1.0)]], []),
    ],
)
def test_epochs_of_catastrophic_overfitting_are_logged(
    caplog: pytest.LogCaptureFixture, epochs: list[tuple[float, float]], expected: list[int]
) -> None:
    """An epoch is a pair of robust and FGSM accuracy, and two of overfitting are a warning."""
    callback = CatastrophicOverfitting()
    for epoch, (robust, fgsm) in enumerate(epochs):
        logs = {MONITOR: robust, "val_fgsm_accuracy": fgsm, "val_jacobian": 3.0}
        callback.on_epoch_end(epoch, logs)
    callback.on_epoch_end(99, {})  # an epoch without validation
    logged = [int(epoch) for epoch in re.findall(r"at epoch (\d+):", caplog.text)]
    assert logged == expected


def test_the_warning_of_catastrophic_overfitting_has_the_accuracies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callback = CatastrophicOverfitting()
    for robust, fgsm in ((0.4, 0.45), (0.1, 0.9), (0.1, 0.9)):
        logs = {MONITOR: robust, "val_fgsm_accuracy": fgsm, "val_jacobian": 3.0}
        callback.on_epoch_end(7, logs)
    assert "at epoch 7: validation robust accuracy 10.0 %, 30.0 points below" in caplog.text


@pytest.mark.parametrize("names", [["eps"], ["eps_linf", "eps_l2"]], ids="+".join)
def test_a_fall_of_robust_accuracy_while_eps_grows_is_not_overfitting(names: list[str]) -> None:
    sign, last = Overfitting(), {"val_robust_accuracy": 0.1, "val_fgsm_accuracy": 0.9}
    first, full = (dict.fromkeys(names, eps) for eps in (0.1, 0.2))
    assert not sign.shown_by({"val_robust_accuracy": 0.4, "val_fgsm_accuracy": 0.45} | first)
    assert not sign.shown_by(last | full)
    assert not sign.shown_by(last | full)
    assert sign.shown_by(last | full)


def test_checkpoints_hold_the_state_of_the_detection_of_overfitting() -> None:
    assert set(vars(Overfitting())) - {"drop"} == set(CatastrophicOverfitting.state_names)


def written(path: Path, lines: list[str], epochs: list[dict[str, Any]]) -> History:
    """Return the history of a run that goes on from lines of a checkpoint with these epochs."""
    history = History(str(path), lines, str(path.parent / "tensorboard"))
    history.set_model(SimpleNamespace(step=np.int64(5)))
    history.on_train_begin()
    for epoch, logs in enumerate(epochs, max(0, len(lines) - 1)):
        history.on_epoch_end(epoch, logs)
        history.publish()
    return history


def test_history_has_a_row_for_each_epoch_with_the_columns_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    written(path, [], [{"loss": np.float32(1.25), "accuracy": 0.5}, {"loss": 1.0, "new": 2.0}])
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0]) == ["epoch", "step", "finished_at", "accuracy", "loss"]
    assert (rows[0]["epoch"], rows[0]["step"], rows[0]["loss"]) == ("0", "5", "1.25")
    assert rows[1]["accuracy"] == ""


def test_the_history_of_a_resumed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Rows up to the checkpoint stay byte for byte, whatever the file holds, and others go."""
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
    written(path, [], [{"loss": 1.0}])  # a run from the start replaces the file
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_callbacks_work_on_two_devices(on_two_devices: Callable[[str], dict[str, Any]]) -> None:
    trained = on_two_devices("trained")
    np.testing.assert_allclose(trained["resumed"], trained["straight"], rtol=1e-5, atol=1e-7)
    assert len(trained["history"].splitlines()) == 3


def test_the_logs_have_the_quantiles_of_a_methods_table() -> None:
    """They are over the training examples alone, here the first 21; the others are held out."""
    layers = [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    network = keras.Sequential(layers)
    model = Iaat(network, threat=Threat(eps=0.1), num_examples=30, steps_per_epoch=1)
    model.radii.table.assign(np.concatenate([np.linspace(0, 1, 21), np.full(9, 7.0)]))
    callback, logs = TableQuantiles(np.arange(21)), {"loss": 1.0}
    callback.set_model(model)
    callback.on_epoch_end(0, logs)
    expected = {f"radius_q{share:02d}": share / 100 for share in (5, 25, 50, 75, 95)}
    assert logs == pytest.approx({"loss": 1.0} | expected)


def test_the_factor_and_the_patience_of_a_guided_rate_are_its_own() -> None:
    rate, stop = Guided(patience=3, factor=0.5, stop=7).callbacks(4, "val_accuracy")
    assert (rate.factor, rate.patience, rate.first_epoch) == (0.5, 3, 4)
    assert (stop.patience, stop.start_from_epoch) == (7, 4)
    assert rate.monitor == stop.monitor == "val_accuracy"
