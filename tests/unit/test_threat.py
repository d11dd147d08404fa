"""The threat: projections, random starts and distances in the ball and the box."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import Threat, noise, norms

X = np.random.default_rng(0).random((6, 3, 3, 2)).astype("float32")
EPS = {"scalar": 0.2, "each": np.array([0.0, 0.05, 0.1, 0.2, 0.4, 3.0], "float32")}


def test_linf_projection_by_hand() -> None:
    """In the ball around (0.5, 0.05) they are (0.6, -0.05), and the box makes -0.05 a 0."""
    x, far = tf.constant([[0.5, 0.05]]), tf.constant([[0.9, -0.5]])
    np.testing.assert_allclose(Threat("linf", 0.1).project(far, x), [[0.6, 0.0]], rtol=1e-6)


def test_l2_projection_by_hand() -> None:
    """The change (3, 4) becomes (3, 4) / 5 * 0.5 = (0.3, 0.4), and the box clips 0.8 + 0.4 to 1."""
    moved = Threat("l2", 0.5).project(tf.constant([[3.5, 4.8]]), tf.constant([[0.5, 0.8]]))
    np.testing.assert_allclose(moved, [[0.8, 1.0]], rtol=1e-6)


def test_l1_projection_by_hand() -> None:
    """(0.5 - t) + min(0.5 - t, 0.1) = 0.3 at t = 0.3, since the box limits the second pixel.

    To project onto the ball first and then onto the box would give (0.65, 1).
    """
    moved = Threat("l1", 0.3).project(tf.constant([[1.0, 1.4]]), tf.constant([[0.5, 0.9]]))
    np.testing.assert_allclose(moved, [[0.7, 1.0]], rtol=2e-6)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_projection_is_the_nearest_point_in_ball_and_box(norm: str) -> None:
    """<a - Pa, z - Pa> <= 0 holds for every z of the set. It does not for L2, which clips last."""
    rng, threat, x = np.random.default_rng(2), Threat(norm, 0.9, (-0.5, 1.0)), tf.constant(X)

    def point_and_projection() -> tuple[np.ndarray, np.ndarray]:
        point = X + rng.normal(size=X.shape).astype("float32")
        return point, threat.project(tf.constant(point), x).numpy()

    point, nearest = point_and_projection()
    for _ in range(20):
        products = (point - nearest) * (point_and_projection()[1] - nearest)
        assert (products.sum(axis=(1, 2, 3)) <= 1e-5).all()


@pytest.mark.parametrize("eps", [0.1, 12.0])
def test_rounding_keeps_an_l1_projection_within_eps(eps: float) -> None:
    """Images of 3072 pixels stay within eps in float64, as an evaluation measures them.

    Either all pixels are far out, or one has moved from a start in the ball, so that the others
    shrink by less than float32 resolves.
    """
    rng, threat = np.random.default_rng(3), Threat("l1", eps)
    x = tf.constant(rng.random((100, 32, 32, 3)).astype("float32"))
    far = x + rng.normal(size=x.shape).astype("float32")
    step = threat.random_start(x, noise.seed_for(0, 0, "test")).numpy()
    step[:, 3, 4, 0] += 0.01 * eps
    for moved in (threat.project(far, x), threat.project(tf.constant(step), x)):
        delta = moved.numpy().astype("float64") - x.numpy().astype("float64")
        distance = np.abs(delta).sum(axis=(1, 2, 3))
        assert distance.max() <= eps
    assert np.median(distance) > 0.98 * eps  # the box shortens some steps


@pytest.mark.parametrize("eps", EPS.values(), ids=EPS.keys())
@pytest.mark.parametrize("norm", norms.NORMS)
def test_projections_and_random_starts_lie_in_ball_and_box(norm: str, eps: object) -> None:
    threat, x = Threat(norm, 0.0).at(tf.constant(eps)), tf.constant(X)
    far = x + 5 * tf.constant(np.random.default_rng(1).normal(size=X.shape).astype("float32"))
    for points in (threat.project(far, x), threat.random_start(x, noise.seed_for(0, 0, "s"))):
        assert (threat.distance(points, x).numpy() <= eps + np.float32(1e-6)).all()
        assert points.numpy().min() >= 0 and points.numpy().max() <= 1
        moved = threat.distance(points, x).numpy() > 0
        np.testing.assert_array_equal(moved, np.broadcast_to(eps, 6) > 0)


@pytest.mark.parametrize("norm", norms.NORMS)
def test_the_projection_of_a_point_inside_is_that_point(norm: str) -> None:
    x = tf.constant(X * 0.5 + 0.25)
    near = x + 0.01
    np.testing.assert_allclose(Threat(norm, 0.2).project(near, x), near, rtol=1e-6)


def test_the_projection_clips_to_another_box() -> None:
    threat = Threat("linf", 1.0, box=(-1.0, 2.0))
    moved = threat.project(tf.constant([[-9.0, 9.0]]), tf.constant([[-0.5, 1.5]]))
    np.testing.assert_array_equal(moved, [[-1.0, 2.0]])


@pytest.mark.parametrize(
    ("value", "eps"),
    [("8/255", 8 / 255), (" 1 / 4 ", 0.25), ("0.5/2", 0.25), (0, 0.0), (np.float32(0.5), 0.5)],
)
def test_eps_is_a_number_or_a_fraction(value: object, eps: float) -> None:
    threat = Threat("linf", value)
    assert threat.eps == eps
    assert type(threat.eps) is float


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "linff"}, "norm: expected one of l1, l2, linf, received 'linff' (did you"),
        ({"norm": "l2", "eps": "8/0"}, "eps: expected a fraction with a denominator"),
        ({"eps": -0.1}, "eps: expected a number >= 0, received -0.1"),
        ({"eps": "much"}, "eps: expected a number or a fraction such as 8/255, received 'much'"),
        ({"eps": float("nan")}, "eps: expected a number or a fraction"),
        ({"eps": True}, "eps: expected a number or a fraction"),
        ({"box": (1.0, 0.0)}, "box: expected two numbers (low, high) for all channels, received"),
        ({"box": 255}, "box: expected two numbers (low, high) for all channels, received 255"),
        ({"box": ((0, 0, 0), (1, 1, 1))}, "received ((0, 0, 0), (1, 1, 1))"),
        ({"box": (0, np.inf)}, "box: expected two numbers (low, high) for all channels, received"),
        ({"eps": [0.1, 0.1, 0.1]}, "eps: expected a number (per_feature takes a factor for each c"),
    ],
)
def test_a_mistaken_argument_is_named_in_one_line(arguments: dict, message: str) -> None:
    assert message in error_line(lambda: Threat(**arguments))


def test_keras_saves_and_loads_a_threat() -> None:
    threat = Threat("l2", "1/2", box=(-1.0, 1.0))
    config = keras.saving.serialize_keras_object(threat)
    assert keras.saving.deserialize_keras_object(config) == threat
