"""Averages of the weights and of BatchNorm's statistics."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.resolve import load_spec
from pipelines.run_folder import RunFolder
from pipelines.stages import training
from tests.unit.test_robust_model import THREAT, X, Y
from tfrobust import Adv, Natural
from tfrobust.errors import UserError
from tfrobust.methods import Ema, Swa


def two_layers() -> keras.Model:
    """Return a network of two dense layers, the weights of which are never the same."""
    layers = [keras.layers.Flatten(), keras.layers.Dense(4), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input(X.shape[1:]), *layers])


def short() -> keras.Model:
    """Return a network with BatchNorm, all of whose weights have 16 bits."""
    norm, dense = keras.layers.BatchNormalization, keras.layers.Dense
    layers = [norm(dtype="bfloat16"), keras.layers.Flatten(), dense(3, dtype="bfloat16")]
    return keras.Sequential([keras.Input(X.shape[1:]), *layers])


@pytest.mark.parametrize("averaging", [None, Ema(decay=0.9)])
def test_an_export_has_the_logits_that_the_model_predicts(averaging: Any, tmp_path: Path) -> None:
    model = Natural(two_layers(), threat=THREAT, averaging=averaging)
    model.compile(keras.optimizers.SGD(0.5))
    model.fit(X, Y, epochs=2, verbose=0)
    weights = model.network.get_weights()
    model.export(str(tmp_path / "exported"), verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(X), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
    for weight, after in zip(weights, model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, after)


@pytest.mark.parametrize("statistics", ["current", "averaged"])
def test_validation_and_prediction_use_the_averaged_weights(
    normed: keras.Model, statistics: str
) -> None:
    """Each step averages a <- 0.5 a + 0.5 w.

    BatchNorm's statistics are averaged too, or are those of the network, as in the code of Rebuffi
    et al. and Wang et al.
    """
    averaging = Ema(decay=0.5, warm_up=False, statistics=statistics)
    model = Natural(normed, threat=THREAT, averaging=averaging, steps_per_epoch=3)
    model.compile(keras.optimizers.SGD(0.5))
    expected = [weight.copy() for weight in normed.get_weights()]
    for _ in range(3):
        model.train_step((tf.constant(X), tf.constant(Y)))
        expected = [0.5 * a + 0.5 * w for a, w in zip(expected, normed.get_weights(), strict=True)]
    if statistics == "current":
        for index, weight in enumerate(normed.weights):
            if not weight.trainable:
                expected[index] = weight.numpy()
    for actual, average in zip(model.evaluated_weights(), expected, strict=True):
        np.testing.assert_allclose(actual, average, rtol=1e-5, atol=1e-6)
    predicted, last = model(X).numpy(), normed(X).numpy()
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    normed.set_weights(expected)
    np.testing.assert_allclose(predicted, normed(X), rtol=1e-5, atol=1e-6)
    assert np.abs(predicted - last).max() > 1e-3
    plain = Natural(normed, threat=THREAT)
    plain.compile("sgd")
    assert logs == pytest.approx(plain.evaluate(X, Y, verbose=0, return_dict=True), rel=1e-4)


def test_averages_begin_at_weights_that_were_loaded_after_the_model_was_made() -> None:
    """The rate is 0, so that each average stays where it begins."""
    network = two_layers()
    model = Natural(network, threat=THREAT, averaging=Ema(decay=0.9, warm_up=False))
    loaded = [weight + 1.0 for weight in network.get_weights()]
    network.set_weights(loaded)
    np.testing.assert_allclose(model(X), network(X), rtol=1e-5)
    for average, weight in zip(model.evaluated_weights(), loaded, strict=True):
        np.testing.assert_array_equal(average, weight)
    model.compile(keras.optimizers.SGD(0.0))
    model.train_on_batch(X, Y)
    for average, weight in zip(model.evaluated_weights(), loaded, strict=True):
        np.testing.assert_allclose(average, weight, rtol=1e-6)


def test_decay_of_an_average_at_each_step() -> None:
    """Epochs have 3 batches, and averages start with epoch 1.

    In the code of Wang et al. (2023) the decay after batch n, counted from 1, is min(decay, (1 + n
    - start) / (10 + n - start)), and 0 before the start. SWA averages the weights after batches 6
    and 9.
    """
    steps = tf.range(12, dtype=tf.int64)
    ema = Ema(decay=0.4, start_epoch=1).keep(steps, 3)
    expected = [0, 0, 0, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4, 0.4, 0.4, 0.4]
    np.testing.assert_allclose(ema, expected, rtol=1e-6)
    without_warm_up = Ema(decay=0.4, start_epoch=1, warm_up=False).keep(steps, 3)
    np.testing.assert_allclose(without_warm_up, [0] * 3 + [0.4] * 9)
    swa = Swa(start_epoch=1).keep(steps, 3)
    np.testing.assert_allclose(swa, [0] * 6 + [1, 1, 1 / 2, 1, 1, 2 / 3])


def test_weights_of_16_bits_have_averages_of_32_bits() -> None:
    """In bfloat16, which keeps 8 bits of a number, small steps of the average were rounded away."""
    network = short()
    averaging = Ema(decay=0.995, warm_up=False, statistics="averaged")
    model = Natural(network, threat=THREAT, averaging=averaging, steps_per_epoch=3)
    model.compile(keras.optimizers.SGD(0.5))
    expected = [weight.astype(np.float64) for weight in network.get_weights()]
    for _ in range(20):
        model.train_step((tf.constant(X), tf.constant(Y)))
        weights = [weight.astype(np.float64) for weight in network.get_weights()]
        expected = [0.995 * a + 0.005 * w for a, w in zip(expected, weights, strict=True)]
    for average, value in zip(model.averages, expected, strict=True):
        np.testing.assert_allclose(average, value, rtol=1e-4, atol=1e-5)
    for weight, value in zip(model.evaluated_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, value.astype(weight.dtype))
    model.predict(X, verbose=0)


def test_swa_averages_epochs_and_recomputes_the_statistics(normed: keras.Model) -> None:
    """The weights at the ends of epochs 1 and 2 are averaged.

    BatchNorm's statistics are the means of the batches' statistics at the averaged weights.
    """
    model = Natural(normed, threat=THREAT, averaging=Swa(start_epoch=1), steps_per_epoch=2)
    model.compile(keras.optimizers.SGD(0.5))
    ends: list[Any] = []
    for step in range(6):
        model.train_step((tf.constant(X), tf.constant(Y)))
        if step % 2:
            ends.append(normed.get_weights())
    halves = [{"image": tf.constant(X[:4])}, {"image": tf.constant(X[4:])}]
    model.recompute_statistics(halves)
    mean = [(a + b) / 2 for a, b in zip(ends[1], ends[2], strict=True)]
    averages = model.evaluated_weights()
    for average, expected, weight in zip(averages, mean, normed.weights, strict=True):
        if weight.trainable:
            np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
    normed.set_weights(mean)
    (layer,) = (each for each in normed.layers if isinstance(each, keras.layers.BatchNormalization))
    layer.momentum = 0.0  # the moving statistics become those of the last batch
    means, variances = [], []
    for half in halves:
        normed(half["image"], training=True)
        means.append(layer.moving_mean.numpy())
        variances.append(layer.moving_variance.numpy())
    normed.set_weights(averages)
    mean_of_means, mean_of_variances = np.mean(means, axis=0), np.mean(variances, axis=0)
    np.testing.assert_allclose(layer.moving_mean, mean_of_means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, mean_of_variances, rtol=1e-4, atol=1e-5)
    model.recompute_statistics(halves)
    assert model._statistics_after[0].experimental_get_tracing_count() == 1


class Halves(keras.utils.PyDataset):
    """The images and labels in two batches."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, k: int) -> Any:
        return X[4 * k : 4 * k + 4], Y[4 * k : 4 * k + 4]


FORMS: dict[str, Any] = {
    "arrays": lambda fit: fit(X, Y, batch_size=4),
    "a dict": lambda fit: fit({"image": X, "label": Y}, batch_size=4),
    "held out": lambda fit: fit(
        np.concatenate([X, X]), np.concatenate([Y, Y]), batch_size=4, validation_split=0.5
    ),
    "pairs": lambda fit: fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)),
    "without end": lambda fit: fit(
        tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}).batch(4).repeat(),
        steps_per_epoch=2,
    ),
    "a PyDataset": lambda fit: fit(Halves()),
}


@pytest.mark.parametrize("form", FORMS)
def test_fit_recomputes_the_statistics_from_its_data(normed: keras.Model, form: str) -> None:
    """They were averaged unless a callback was given."""
    model = Natural(normed, threat=THREAT, averaging=Swa(), steps_per_epoch=2)
    model.compile(keras.optimizers.SGD(0.1))
    FORMS[form](lambda *data, **options: model.fit(*data, **options, verbose=0))
    place = [weight.name for weight in normed.weights].index("moving_mean")
    mean = (X[:4].mean() + X[4:].mean()) / 2
    np.testing.assert_allclose(model.evaluated_weights()[place], [mean], rtol=1e-4)


@pytest.mark.parametrize("counted", [2, 3])
def test_fit_warns_of_another_number_of_batches_in_an_epoch(
    normed: keras.Model, counted: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The model counts its epochs by the number, so that SWA averaged within them."""
    model = Natural(normed, threat=THREAT, averaging=Swa(), steps_per_epoch=counted)
    model.compile("sgd")
    with caplog.at_level("WARNING"):
        model.fit(X, Y, batch_size=4, verbose=0)
    line = "steps_per_epoch: expected 2, the batches of an epoch of this fit, received 3"
    assert (line in caplog.text) == (counted == 3)


def test_statistics_are_not_recomputed_from_a_generator(normed: keras.Model) -> None:
    model = Natural(normed, threat=THREAT, averaging=Swa(), steps_per_epoch=2)
    model.compile("sgd")
    batches = ((X, Y) for _ in range(2))
    with pytest.raises(UserError, match="x: expected arrays, a tf.data.Dataset or a PyDataset, as"):
        model.fit(batches, steps_per_epoch=2, verbose=0)


@pytest.mark.parametrize("later", [False, True])
def test_a_layer_may_be_frozen_or_trained_after_the_model_is_made(later: bool) -> None:
    """Such as a base that is trained only after its new head; each step averages a and w."""
    network = two_layers()
    network.layers[1].trainable = not later
    model = Natural(network, threat=THREAT, averaging=Ema(decay=0.5, warm_up=False))
    network.layers[1].trainable = later
    before = network.get_weights()
    model.compile(keras.optimizers.SGD(0.5))
    model.train_step((tf.constant(X), tf.constant(Y)))
    after = network.get_weights()
    assert (np.abs(after[0] - before[0]).max() > 1e-4) == later
    for average, a, w in zip(model.evaluated_weights(), before, after, strict=True):
        np.testing.assert_allclose(average, 0.5 * a + 0.5 * w, rtol=1e-5, atol=1e-6)


def test_the_statistics_of_a_shared_layer_are_recomputed_from_all_its_calls() -> None:
    """Each call moves an average a to a / 2 + s / 2. They were those of the calls less a share of
    a, and so variances below 0."""
    norm = keras.layers.BatchNormalization(momentum=0.5, center=False, scale=False)
    x = keras.Input(X.shape[1:])
    first = norm(keras.layers.Flatten()(x))
    logits = keras.layers.Dense(3)(norm(0.1 * first))
    model = Natural(keras.Model(x, logits), threat=THREAT, averaging=Swa(), steps_per_epoch=2)
    model.recompute_statistics([{"image": tf.constant(X)}])
    flat = X.reshape(len(X), -1)
    variances = flat.var(axis=0)
    shares = 0.01 * variances / (variances + norm.epsilon)
    averages = dict(zip((w.name for w in model.network.weights), model.averages, strict=True))
    np.testing.assert_allclose(averages["moving_mean"], flat.mean(axis=0) / 3, atol=1e-5)
    np.testing.assert_allclose(averages["moving_variance"], (variances + 2 * shares) / 3, rtol=1e-3)


def test_statistics_that_never_move_are_not_recomputed() -> None:
    norm = keras.layers.BatchNormalization(momentum=1.0)
    network = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), norm])
    model = Natural(network, threat=THREAT, averaging=Swa(), steps_per_epoch=2)
    model.recompute_statistics([{"image": tf.constant(X)}])
    for average, weight in zip(model.evaluated_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(average, weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: Adv(n, threat=THREAT, averaging=0.9), "averaging: expected a tfrobust.Ema"),
        (lambda n: Adv(n, threat=THREAT, averaging=Swa()), "steps_per_epoch: expected int >= 1"),
        (lambda n: Adv(n, threat=THREAT, label_smoothing=1.0), "label_smoothing: expected a num"),
        (
            lambda n: Adv(short(), threat=THREAT, averaging=Swa(), steps_per_epoch=2),
            "averaging.statistics: expected c",
        ),
        (lambda n: Ema(decay=1.0), "decay: expected a number in .0, 1."),
        (lambda n: Swa(statistics="now"), "statistics: expected one of averaged, current, recomp"),
    ],
)
def test_mistakes_are_one_line(normed: keras.Model, make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(normed)


def test_the_time_of_training_counts_the_recomputed_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without validation the epoch ends with them. They take 1000 s here."""
    settings = {
        "model": "{name: small_cnn, filters: [2], units: 2}",
        "data.validation": "0",
        "train": "{epochs: 1, steps_per_epoch: 1, epsilon_ramp_epochs: 0, schedule: constant}",
        "train.averaging": "{name: swa, start_epoch: 0}",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    clock, waited = time.perf_counter, 0.0

    def recompute(*_: object) -> None:
        nonlocal waited
        waited += 1000

    monkeypatch.setattr("time.perf_counter", lambda: clock() + waited)
    monkeypatch.setattr(Adv, "recompute_statistics", recompute)
    training.train(load_spec("digits_adv", overrides, False), RunFolder(tmp_path))
    (row,) = csv.DictReader((tmp_path / "history.csv").open())
    assert 1000 < float(row["training_seconds"]) < 2000
