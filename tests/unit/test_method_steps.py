"""The step of a method follows its arguments and the eps of the step, on a linear network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_method_searches import AWAY, THREAT, W, X, Y, batch_of
from tfrobust import PGD
from tfrobust.methods import Fat, Free, GradAlign, Nfgsm


@pytest.mark.parametrize(("method", "more"), [(GradAlign, {}), (Nfgsm, {"noise_scale": 0.0})])
def test_step_scale_is_in_units_of_eps(
    linear: Callable[..., Any], method: Any, more: dict[str, float]
) -> None:
    model = method(linear(W), threat=THREAT, step_scale=0.5, **more)
    adv = model.perturb(batch_of(model))["adv"]
    half = 0.5 * THREAT.eps * np.sign(AWAY).reshape(X.shape)
    np.testing.assert_allclose(adv, X + half, atol=1e-6)


def test_free_moves_its_perturbation_by_the_eps_of_the_step(linear: Callable[..., Any]) -> None:
    model = Free(linear(W), threat=THREAT, replays=1, batch_size=6, ramp_steps=4)
    model.compile(keras.optimizers.SGD(0.0))
    sizes = []
    for _ in range(3):
        model.train_step((tf.constant(X), tf.constant(Y)))
        sizes.append(float(tf.reduce_max(tf.abs(model.delta.table))))
    assert sizes == pytest.approx([0, THREAT.eps / 4, THREAT.eps / 2], abs=1e-7)


@pytest.mark.parametrize(("craft", "moves"), [("train", True), ("eval", False)])
def test_fat_searches_in_the_mode_that_is_set(normed: Any, craft: str, moves: bool) -> None:
    """In training mode its search moves BatchNorm's averages, which are 0."""
    model = Fat(normed, threat=THREAT, attack=PGD(steps=2), craft=craft, steps_per_epoch=1)
    x = np.random.default_rng(0).random((8, 2, 2, 1), np.float32)
    model.perturb(model.as_batch((tf.constant(x), tf.constant(np.arange(8) % 3))))
    assert (float(tf.abs(normed.layers[1].moving_mean[0])) > 0.01) == moves
