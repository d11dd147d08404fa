"""Validation is in inference mode and at the full eps, with the same noise after every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit.formulae import THREAT, W, X, Y, log_p
from tfrobust import FGSM, PGD, Adv, losses, noise


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    return linear(W, power=2)


def validated(model: Any) -> dict[str, np.ndarray]:
    """Return the values that validation measures at each of five images."""
    values = model._validated({"image": tf.constant(X), "label": tf.constant(Y)})
    return {name: value.numpy() for name, value in values.items()}


def test_validation_measures_both_attacks_and_the_jacobian_at_the_images_of_fgsm(
    network: Any,
) -> None:
    def adversary(attack: Any, purpose: str) -> np.ndarray:
        seed = noise.seed_for(4, 0, purpose)
        return attack(network, X, Y, threat=THREAT, seed=seed).numpy()

    attack = PGD(steps=3)
    values = validated(Adv(network, threat=THREAT, validation_attack=attack, seed=4))
    robust, fgsm = adversary(attack, "validation"), adversary(FGSM(), "validation fgsm")
    loss = -log_p(robust, W)[np.arange(5), Y]
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-4, atol=1e-5)
    images = {"accuracy": X, "robust_accuracy": robust, "fgsm_accuracy": fgsm}
    for name, x in images.items():
        np.testing.assert_array_equal(values[name], log_p(x, W).argmax(axis=1) == Y)
    v = noise.unit_vectors([5, 3], noise.seed_for(4, 0, "validation projection")).numpy()
    slopes = (2 * (fgsm.reshape(5, 4) @ W) * v) @ W.T
    np.testing.assert_allclose(values["jacobian"], 3 * np.sum(slopes**2, axis=1), rtol=1e-3)


def test_validation_is_at_the_full_eps_with_the_same_noise_in_every_step(network: Any) -> None:
    expected = validated(Adv(network, threat=THREAT, validation_attack=FGSM()))
    model = Adv(network, threat=THREAT, validation_attack=FGSM(), ramp_steps=10)
    for step in (0, 7):
        model.step.assign(step)
        for name, values in validated(model).items():
            np.testing.assert_array_equal(values, expected[name])


def test_validation_takes_the_moving_averages_and_leaves_them(normed: keras.Model) -> None:
    normed.layers[1].moving_mean.assign([0.3])
    normed.layers[1].moving_variance.assign([2.0])
    attack, before = PGD(steps=2, start="none"), normed.get_weights()
    values = validated(Adv(normed, threat=THREAT, validation_attack=attack))
    for weight, expected in zip(normed.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)

    def logits_fn(x: Any) -> Any:
        return normed(x, training=False)

    robust = logits_fn(attack(logits_fn, X, Y, threat=THREAT, seed=[0, 0]))
    np.testing.assert_allclose(values["loss"], losses.cross_entropy(robust, Y), rtol=1e-5)
    np.testing.assert_array_equal(values["accuracy"], losses.correct(logits_fn(X), Y))
