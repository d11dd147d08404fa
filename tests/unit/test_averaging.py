"""Averages of the weights, and BatchNorm's statistics beside them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_robust_model import THREAT, X, Y, normed  # noqa: F401
from tfrobust import Adv, Natural
from tfrobust.errors import UserError
from tfrobust.methods import Ema, Swa


@pytest.mark.parametrize("statistics", ["current", "averaged"])
def test_averages_are_what_is_validated(normed: keras.Model, statistics: str) -> None:  # noqa: F811
    """Each step averages a <- 0.5 a + 0.5 w.

    BatchNorm's statistics are averaged too, or are those of the network, as in the code of Rebuffi
    et al. and Wang et al.
    """
    averaging = Ema(decay=0.5, warm_up=False, statistics=statistics)
    model = Natural(normed, threat=THREAT, averaging=averaging, steps_per_epoch=3)
    model.compile(keras.optimizers.SGD(0.5))
    expected = [w.copy() for w in normed.get_weights()]
    for _ in range(3):
        model.train_step((tf.constant(X), tf.constant(Y)))
        expected = [0.5 * a + 0.5 * w for a, w in zip(expected, normed.get_weights(), strict=True)]
    if statistics == "current":
        trained = [w.trainable for w in normed.weights]
        kept = zip(expected, normed.get_weights(), trained, strict=True)
        expected = [a if moves else w for a, w, moves in kept]
    for average, wanted in zip(model.evaluated_weights(), expected, strict=True):
        np.testing.assert_allclose(average, wanted, rtol=1e-5, atol=1e-6)
    predicted, raw = model(X).numpy(), normed(X).numpy()
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    normed.set_weights(expected)
    np.testing.assert_allclose(predicted, normed(X), rtol=1e-5, atol=1e-6)
    assert np.abs(predicted - raw).max() > 1e-3
    again = Natural(normed, threat=THREAT)
    again.compile("sgd")
    plain = again.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs == pytest.approx(plain, rel=1e-4)


def test_how_much_of_an_average_is_kept() -> None:
    """Epochs of 3 batches, from epoch 1 on. In the code of Wang et al. (2023) the decay after batch
    n, counted from 1, is min(decay, (1 + n - start) / (10 + n - start)), and 0 before the start.
    Of SWA the first weights are those after batch 6, the second those after batch 9."""
    steps = tf.range(12, dtype=tf.int64)
    ema = Ema(decay=0.4, start_epoch=1).keep(steps, 3)
    wanted = [0, 0, 0, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4, 0.4, 0.4, 0.4]
    np.testing.assert_allclose(ema, wanted, rtol=1e-6)
    at_once = Ema(decay=0.4, start_epoch=1, warm_up=False).keep(steps, 3)
    np.testing.assert_allclose(at_once, [0] * 3 + [0.4] * 9)
    swa = Swa(start_epoch=1).keep(steps, 3)
    np.testing.assert_allclose(swa, [0] * 6 + [1, 1, 1 / 2, 1, 1, 2 / 3])


def test_swa_is_the_mean_of_the_epochs_with_statistics_of_the_images(normed: keras.Model) -> None:  # noqa: F811
    """Two weights are averaged, at the ends of epochs 1 and 2. BatchNorm's statistics are the means
    of those of the batches at the averaged weights."""
    averaging = Swa(start_epoch=1)
    model = Natural(normed, threat=THREAT, averaging=averaging, steps_per_epoch=2)
    model.compile(keras.optimizers.SGD(0.5))
    ends: list[Any] = []
    for step in range(6):
        model.train_step((tf.constant(X), tf.constant(Y)))
        if step % 2:
            ends.append(normed.get_weights())
    halves = [{"image": tf.constant(X[:4])}, {"image": tf.constant(X[4:])}]
    model.recompute_statistics(halves)
    mean = [(a + b) / 2 for a, b in zip(ends[1], ends[2], strict=True)]
    trained = [w.trainable for w in normed.weights]
    averages = model.evaluated_weights()
    for average, wanted, moves in zip(averages, mean, trained, strict=True):
        if moves:
            np.testing.assert_allclose(average, wanted, rtol=1e-5, atol=1e-6)
    normed.set_weights(mean)
    layer = next(la for la in normed.layers if isinstance(la, keras.layers.BatchNormalization))
    layer.momentum, seen = 0.0, []  # so that the statistics are those of the last batch
    for half in halves:
        normed(half["image"], training=True)
        seen.append([layer.moving_mean.numpy(), layer.moving_variance.numpy()])
    normed.set_weights(averages)
    for statistic, both in zip(
        (layer.moving_mean, layer.moving_variance), zip(*seen, strict=True), strict=True
    ):
        np.testing.assert_allclose(statistic, np.mean(both, axis=0), rtol=1e-4, atol=1e-5)
    model.recompute_statistics(halves)
    assert model._statistics_after.experimental_get_tracing_count() == 1  # of both calls


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: Adv(n, threat=THREAT, averaging=0.9), "averaging: expected a tfrobust.Ema"),
        (lambda n: Adv(n, threat=THREAT, averaging=Swa()), "steps_per_epoch: expected int >= 1"),
        (lambda n: Adv(n, threat=THREAT, label_smoothing=1.0), "label_smoothing: expected a num"),
        (lambda n: Ema(decay=1.0), "decay: expected a number between 0 and 1"),
        (lambda n: Swa(statistics="now"), "statistics: expected one of averaged, current, recomp"),
    ],
)
def test_mistakes_are_one_line(normed: keras.Model, make: Any, message: str) -> None:  # noqa: F811
    with pytest.raises(UserError, match=message):
        make(normed)
