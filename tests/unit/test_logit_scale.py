"""The check that no scale of the logits hides adversarial images from the cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import PGD, Threat
from tfrobust.evaluation import Result, evaluate
from tfrobust.evaluation.results import Check
from tfrobust.evaluation.sample import Sample
from tfrobust.evaluation.sanity_checks import logit_scale

W = np.array([[3, -1, 0], [1, 2, -2], [-2, 0, 3], [-1, 1, 2]], np.float32)
X = np.random.default_rng(0).uniform(0.2, 0.8, (60, 2, 2, 1)).astype(np.float32)
GREY = np.full((60, 8, 8, 1), 0.5, np.float32)
THREAT = Threat("linf", 0.05)


def linear(scale: float) -> Callable[[Any], Any]:
    """Return a network whose logits, [B, 3], are linear."""
    return lambda x: scale * (tf.reshape(x - 0.5, [-1, 4]) @ W)


def two_of_many(scale: float) -> Callable[[Any], Any]:
    """Return a network of 66 classes whose class 0 loses to class 1 alone, where pixel 0 falls.

    The logits of the other classes are far below, but all of them rise steeply with pixel 0.
    """

    def network(x: Any) -> Any:
        z = tf.reshape(x, [-1, 64]) - 0.5
        near = tf.stack([0 * z[:, 0], -0.02 - z[:, 0]], axis=1)
        return scale * tf.concat([near, z - 5 + 4 * z[:, :1]], axis=1)

    return network


def check(network: Any, x: np.ndarray, results: Sequence[Result] = ()) -> Check:
    y, n = np.asarray(network(x)).argmax(axis=1), len(x)
    clean = Result("clean", np.ones(n, bool), 0.0)
    rows, first = np.arange(n), (x, y)
    return logit_scale(Sample(network, x, y, THREAT, results or [clean], rows, first, 0, 60, False))


@pytest.mark.parametrize(
    ("network", "x", "least", "most"),
    [
        (linear(20), X, 0, 0),
        (linear(1e5), X, 0.3, 1),  # the softmax is saturated
        (two_of_many(100), GREY, 0, 0),
        (two_of_many(1e-3), GREY, 1, 1),  # the gradient points at the many classes
    ],
)
def test_logits_whose_scale_hides_adversarial_images_are_a_warning(
    network: Any, x: np.ndarray, least: float, most: float
) -> None:
    """The value is the share of the images that PGD breaks only once the logits are rescaled."""
    result = check(network, x)
    assert result.value is not None and least <= result.value <= most
    assert result.warns == ("autoattack" in result.text) == (most > 0)


def test_the_scale_of_the_logits_does_not_matter_after_an_attack_that_no_scale_weakens() -> None:
    """The gradient of the cross entropy is 0; that of the margin is not."""
    network = linear(1e5)
    y = network(X).numpy().argmax(axis=1)
    attack = PGD(steps=50, loss="margin")
    results = evaluate(network, X, y, THREAT, attack, check=False, progress=False).results
    result = check(network, X, results)
    assert (result.value, result.warns) == (0, False)


def test_the_scale_of_the_logits_is_not_measured_where_classes_tie() -> None:
    result = check(linear(0), X)
    assert (result.value, result.warns) == (None, False)
    assert result.text == "Not measured: the median margin of the clean images is 0."
