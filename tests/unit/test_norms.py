"""Lp geometry by hand: (3, -4) and (0.3, 0.4) have L2 norms 5 and 0.5, and L1 norms 7 and 0.7."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import norms

DELTA = np.array([[3.0, -4.0], [0.3, 0.4], [0.0, 0.0]], np.float32)


@pytest.fixture(params=[(3, 2), (3, 1, 2, 1)], ids=["vectors", "images"])
def delta(request: pytest.FixtureRequest) -> tf.Tensor:
    """Return DELTA as vectors, [3, 2], and as images, [3, 1, 2, 1]."""
    return tf.constant(DELTA.reshape(request.param))


def flat(value: tf.Tensor) -> np.ndarray:
    return value.numpy().reshape(3, 2)


def test_norm_by_hand(delta: tf.Tensor) -> None:
    np.testing.assert_allclose(norms.norm(delta, "linf"), [4.0, 0.4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(norms.norm(delta, "l2"), [5.0, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(norms.norm(delta, "l1"), [7.0, 0.7, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "eps", "expected"),
    [
        # outside, inside, zero
        ("linf", 1.0, [[1.0, -1.0], [0.3, 0.4], [0.0, 0.0]]),
        ("l2", 1.0, [[0.6, -0.8], [0.3, 0.4], [0.0, 0.0]]),
        ("l1", 1.0, [[0.0, -1.0], [0.3, 0.4], [0.0, 0.0]]),  # (3 - t) + (4 - t) = 1 at t = 3
        ("l1", 4.0, [[1.5, -2.5], [0.3, 0.4], [0.0, 0.0]]),  # t = 1.5
        # (3, -4) lies on the boundary
        ("linf", 4.0, DELTA),
        ("l2", 5.0, DELTA),
        ("l1", 7.0, DELTA),
        # an eps for each example
        ("linf", [2.0, 0.35, 1.0], [[2.0, -2.0], [0.3, 0.35], [0.0, 0.0]]),
        ("l2", [2.5, 0.25, 1.0], [[1.5, -2.0], [0.15, 0.2], [0.0, 0.0]]),
        ("l1", [2.5, 0.35, 1.0], [[0.75, -1.75], [0.125, 0.225], [0.0, 0.0]]),  # t = 2.25, 0.175
        ("linf", 0.0, np.zeros((3, 2))),
        ("l2", 0.0, np.zeros((3, 2))),
        ("l1", 0.0, np.zeros((3, 2))),
        ("l2", [0.0, 1.0, 0.0], [[0.0, 0.0], [0.3, 0.4], [0.0, 0.0]]),
    ],
)
def test_project_by_hand(delta: tf.Tensor, p: str, eps: object, expected: np.ndarray) -> None:
    np.testing.assert_allclose(flat(norms.project(delta, eps, p)), expected, rtol=1e-6)


@pytest.mark.parametrize("p", norms.NORMS)
def test_the_projection_is_the_nearest_point(p: str) -> None:
    """<d - Pd, z - Pd> <= 0 holds for every z of a convex set only at the nearest point Pd."""
    rng = np.random.default_rng(0)
    d = rng.normal(size=(50, 6)).astype("float32")
    nearest = norms.project(tf.constant(d), 0.7, p).numpy()
    for _ in range(20):
        z = norms.project(tf.constant(rng.normal(size=d.shape).astype("float32")), 0.7, p).numpy()
        assert (np.sum((d - nearest) * (z - nearest), axis=1) <= 1e-5).all()


@pytest.mark.parametrize("radius", [0.01, 1.0, 30.0, 200.0])
@pytest.mark.parametrize("walls", [False, True])
def test_l1_projection_agrees_with_a_bisection_for_its_threshold(
    radius: float, walls: bool
) -> None:
    """The projection is sign(d) clip(|d| - t, 0, room), here with t from a float64 bisection."""
    rng = np.random.default_rng(1)
    d = rng.normal(size=(20, 300)) * rng.choice([0.0, 1.0, 50.0], size=(20, 300), p=[0.4, 0.5, 0.1])
    size = np.abs(d)
    room = rng.random(d.shape) if walls else size
    low, high = np.zeros((20, 1)), size.max(axis=1, keepdims=True)
    for _ in range(100):
        t = 0.5 * (low + high)
        over = np.clip(size - t, 0, room).sum(axis=1, keepdims=True) > radius
        low, high = np.where(over, t, low), np.where(over, high, t)
    inside = np.minimum(size, room).sum(axis=1, keepdims=True) <= radius
    expected = np.sign(d) * np.clip(size - np.where(inside, 0, high), 0, room)
    d, room = (tf.constant(a.astype("float32")) for a in (d, room))
    np.testing.assert_allclose(norms.project_l1(d, radius, room), expected, atol=1e-4)


def test_steepest_direction_by_hand(delta: tf.Tensor) -> None:
    signs = [[1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]
    np.testing.assert_array_equal(flat(norms.steepest(delta, "linf")), signs)
    units = [[0.6, -0.8], [0.6, 0.8], [0.0, 0.0]]
    np.testing.assert_allclose(flat(norms.steepest(delta, "l2")), units, rtol=1e-6)
    largest = [[0.0, -1.0], [0.0, 1.0], [0.0, 0.0]]
    np.testing.assert_array_equal(flat(norms.steepest(delta, "l1")), largest)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_steepest_l2_direction_has_norm_1_at_the_ends_of_float32(size: float) -> None:
    """The squares of such gradients overflow or underflow in float32."""
    gradient = tf.constant(DELTA[:1] * size)
    np.testing.assert_allclose(norms.steepest(gradient, "l2"), [[0.6, -0.8]], rtol=1e-5)
    np.testing.assert_allclose(norms.norm(gradient, "l2"), [5 * size], rtol=1e-5)


def test_steepest_direction_is_0_where_the_gradient_is_nan() -> None:
    gradient = tf.constant([[np.nan, 2.0], [np.nan, np.nan], [3.0, 4.0]])
    linf = [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    np.testing.assert_array_equal(norms.steepest(gradient, "linf"), linf)
    l1 = [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    np.testing.assert_array_equal(norms.steepest(gradient, "l1"), l1)
    l2 = norms.steepest(gradient, "l2").numpy()
    assert np.isfinite(l2).all()
    np.testing.assert_allclose(l2[2], [0.6, 0.8], rtol=1e-6)


def test_values_per_example_broadcast_over_images_and_keep_their_dtype() -> None:
    x = tf.zeros([2, 3, 4, 5])
    assert norms.per_example([1.0, 2.0], x).shape == (2, 1, 1, 1)
    assert norms.per_example(1.0, x).shape == ()
    assert norms.per_example(1, tf.zeros([2], tf.bfloat16)).dtype == tf.bfloat16
    assert norms.rows(tf.constant([True, False]), x).dtype == tf.bool
