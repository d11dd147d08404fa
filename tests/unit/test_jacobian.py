"""The estimate of ||J||_F^2 against closed forms of linear networks and exact Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import noise
from tfrobust.jacobian import squared_jacobian
from tfrobust.models import small_cnn, with_precision

W = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(1).random((3, 2, 2, 1)).astype("float32")
V = noise.unit_vectors([3, 3], noise.seed_for(0, 0, "v"))


@pytest.fixture(scope="module")
def cnn() -> keras.Model:
    """Return a network for images [4, 4, 1] of three classes."""
    keras.utils.set_random_seed(3)
    return small_cnn((4, 4, 1), 3, filters=[3, 4], kernel=3, units=6)


def test_estimate_of_a_linear_network_in_closed_form(linear: Callable[..., Any]) -> None:
    """For f = x W it is C ||W v||^2 at every x; the network's logits are returned too."""
    logits, squared = squared_jacobian(linear(W), tf.constant(X), V)
    np.testing.assert_allclose(logits, X.reshape(3, 4) @ W, rtol=1e-5)
    np.testing.assert_allclose(squared, 3 * np.sum((V.numpy() @ W.T) ** 2, axis=1), rtol=1e-5)


def test_one_hot_projections_average_to_the_exact_norm(linear: Callable[..., Any]) -> None:
    """v = e_j gives C ||column j||^2, and the mean over j is ||W||_F^2."""
    _, squared = squared_jacobian(linear(W), tf.constant(X), tf.eye(3))
    np.testing.assert_allclose(squared, 3 * np.sum(W**2, axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.mean(squared), np.sum(W**2), rtol=1e-5)


def test_random_projections_average_to_the_exact_norm(cnn: keras.Model) -> None:
    """One image has 40000 projections.

    The standard deviation of the estimate is at most 0.9 of its mean (3 classes, rank 1), so 1 % is
    two standard errors; the seed is fixed.
    """
    x = tf.constant(np.random.default_rng(2).random((1, 4, 4, 1)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = cnn(x)
    exact = np.sum(tape.batch_jacobian(z, x).numpy() ** 2)
    v = noise.unit_vectors([40000, 3], noise.seed_for(0, 0, "many"))
    _, squared = squared_jacobian(cnn, tf.repeat(x, 40000, axis=0), v)
    np.testing.assert_allclose(np.mean(squared), exact, rtol=0.01)


def test_weight_gradient_of_a_linear_network_in_closed_form(linear: Callable[..., Any]) -> None:
    """d/dW of C ||W v||^2 is 2 C (W v) v^T."""
    network, v = linear(W), V[:1]
    with tf.GradientTape() as tape:
        _, squared = squared_jacobian(network, tf.constant(X[:1]), v)
    (gradient,) = tape.gradient(squared, network.trainable_variables)
    v = v.numpy()[0]
    np.testing.assert_allclose(gradient, 2 * 3 * np.outer(W @ v, v), rtol=1e-5)


def test_weight_gradient_equals_central_differences(cnn: keras.Model) -> None:
    """The direction is random. With h = 1e-3 the error of differences is O(h^2) + 1e-7 / h."""
    x = tf.constant(np.random.default_rng(2).random((3, 4, 4, 1)).astype("float32"))
    weights = cnn.trainable_variables
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(squared_jacobian(cnn, x, V)[1])
    gradients = tape.gradient(total, weights)
    rng = np.random.default_rng(4)
    directions = [rng.normal(size=weight.shape).astype("float32") for weight in weights]
    start = cnn.get_weights()

    def total_at(h: float) -> float:
        cnn.set_weights([w + h * d for w, d in zip(start, directions, strict=True)])
        return float(tf.reduce_sum(squared_jacobian(cnn, x, V)[1]))

    slope = (total_at(1e-3) - total_at(-1e-3)) / 2e-3
    cnn.set_weights(start)
    assert gradients.pop() is None  # the Jacobian does not depend on the last bias
    products = [np.sum(g * d) for g, d in zip(gradients, directions[:-1], strict=True)]
    np.testing.assert_allclose(sum(products), slope, rtol=5e-3)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_gives_float32(cnn: keras.Model, precision: str) -> None:
    """Results are float32 and near those in float32; bfloat16 holds 3 digits at best."""
    x = tf.constant(np.random.default_rng(2).random((3, 4, 4, 1)).astype("float32"))
    logits, squared = squared_jacobian(with_precision(cnn, precision), x, V)
    expected_logits, expected = squared_jacobian(cnn, x, V)
    assert logits.dtype == squared.dtype == tf.float32
    np.testing.assert_allclose(logits, expected_logits, rtol=0.05, atol=0.02)
    np.testing.assert_allclose(squared, expected, rtol=0.1)
    assert not np.array_equal(squared, expected)


def test_graph_and_eager_give_the_same_estimate(cnn: keras.Model) -> None:
    x = tf.constant(np.random.default_rng(2).random((3, 4, 4, 1)).astype("float32"))
    traced = tf.function(lambda x: squared_jacobian(cnn, x, V)[1])
    np.testing.assert_allclose(traced(x), squared_jacobian(cnn, x, V)[1], rtol=1e-4)
