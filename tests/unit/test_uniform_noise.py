"""Uniform noise: probabilities in closed form, and the same draws by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import Threat, losses, noise
from tfrobust.attacks import UniformNoise
from tfrobust.errors import UserError

SEED = noise.seed_for(0, 0, "test")
X = np.random.default_rng(0).random((30, 4, 4, 1)).astype("float32")
W = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
Y = (X.reshape(30, -1) @ W).argmax(1)


def network(x: Any) -> Any:
    """Return the logits, [B, 3]."""
    return tf.reshape(x, [-1, 16]) @ W


def run(draws: int, threat: Threat, x: Any = X, y: Any = Y, logits: Any = network) -> Any:
    """Return the outcome of a graph for any batch size, its parts as arrays."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, *x.shape[1:]])])
    def craft(images: Any) -> Any:
        return UniformNoise(draws=draws).run(logits, images, y, threat=threat, seed=SEED)

    outcome = craft(x)
    return type(outcome)(*(value.numpy() for value in outcome))


@pytest.mark.parametrize("draws", [1, 3])
def test_the_share_of_successes_is_their_probability(draws: int) -> None:
    """One pixel at 0.5 is misclassified above 0.55, where a quarter of the draws at eps 0.1 is.

    The tolerance is five standard errors of 4000 examples.
    """
    x = np.full([4000, 1, 1, 1], 0.5, np.float32)
    logits = lambda z: tf.stack([0.55 - z[:, 0, 0, 0], z[:, 0, 0, 0] - 0.55], axis=1)  # noqa: E731
    outcome = run(draws, Threat("linf", 0.1), x, np.zeros(4000, int), logits)
    chance = 1 - 0.75**draws
    assert abs(outcome.success.mean() - chance) < 5 * np.sqrt(chance * (1 - chance) / 4000)
    np.testing.assert_array_equal(outcome.success, outcome.images.ravel() > 0.55)
    # The image and the draws up to the success are 1 + 1 + 3/4 + 9/16 + ... passes in the mean.
    expected = 1 + sum(0.75**k for k in range(draws))
    assert abs(outcome.queries.mean() - expected) < (0.1 if draws > 1 else 1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_result_is_the_first_success_or_else_the_highest_loss(norm: str) -> None:
    threat, n = Threat(norm, {"linf": 0.2, "l2": 0.8, "l1": 3.0}[norm]), 2
    outcome = run(n, threat)
    candidates = [tf.constant(X)]
    candidates += [threat.random_start(tf.constant(X), noise.fold(SEED, i)) for i in range(n)]
    wrong = np.array([~losses.correct(network(z), tf.constant(Y)).numpy() for z in candidates])
    value = np.array([losses.cross_entropy(network(z), tf.constant(Y)) for z in candidates])
    pick = np.where(wrong.any(0), wrong.argmax(0), value.argmax(0))
    assert 0 < wrong.any(0).sum() < 30 and (pick == 0).any()
    expected = np.stack([candidates[k][row].numpy() for row, k in enumerate(pick)])
    np.testing.assert_array_equal(outcome.images, expected)
    np.testing.assert_array_equal(outcome.success, wrong.any(0))
    np.testing.assert_array_equal(outcome.queries, np.where(wrong.any(0), pick, n) + 1)
    assert not outcome.gradients.any()


def test_a_misclassified_image_is_returned_unchanged() -> None:
    outcome = run(3, Threat("linf", 0.2), y=(Y + 1) % 3)
    assert outcome.success.all() and (outcome.queries == 1).all()
    np.testing.assert_array_equal(outcome.images, X)


def test_an_image_stays_where_no_draw_raises_the_loss() -> None:
    flat = lambda z: 0.0 * network(z) + [1.0, 0.0, 0.0]  # noqa: E731
    outcome = run(2, Threat("linf", 0.2), y=np.zeros(30, int), logits=flat)
    assert not outcome.success.any()
    np.testing.assert_array_equal(outcome.images, X)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_stay_in_the_ball_and_the_box(norm: str) -> None:
    x, box = 2.0 * X - 1.0, (-1.0, 1.0)
    for eps in (0.0, 0.5):
        threat = Threat(norm, eps, box)
        images = run(2, threat, x).images
        assert (threat.distance(images, x).numpy() <= eps + 1e-6).all()
        assert images.min() >= -1 and images.max() <= 1
        assert (images == x).all() == (eps == 0)


def test_no_draws_are_refused() -> None:
    with pytest.raises(UserError, match=r"^draws: expected int >= 1, received 0$"):
        UniformNoise(draws=0)


def test_title_and_settings_hold_the_number_of_draws() -> None:
    assert UniformNoise().title == "Uniform noise"
    assert UniformNoise(draws=10).title == "Uniform noise x10"
    settings = UniformNoise(draws=10).settings(Threat("linf", 0.1))
    assert settings == {"name": "uniform_noise", "draws": 10}
