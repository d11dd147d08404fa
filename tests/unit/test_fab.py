"""FAB against closed forms.

The logits are z = x W. In a wide box, the nearest image at which class t beats class y has the
distance |z_t - z_y| / ||w_t - w_y||_q, where q is the dual of p: 1 for Linf, 2 for L2, infinity for
L1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import Threat, noise
from tfrobust.attacks import FAB
from tfrobust.attacks.fab import nearest_boundary
from tfrobust.attacks.fab_projections import to_zero

SEED = noise.seed_for(0, 0, "test")
WIDE = (-100.0, 100.0)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
TARGETS = (9, None)  # FAB-T and FAB
W = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(0).random((20, 2, 2, 1)).astype("float32")
PIXEL = np.zeros((1, 1, 1, 1), np.float32)


def run(attack: FAB, network: Any, threat: Threat, x: Any = X, y: Any = None) -> Any:
    """Return the outcome of the attack as arrays; labels are by default the predictions."""
    y = np.argmax(network(x), axis=1) if y is None else y
    outcome = attack.run(network, tf.constant(x), tf.constant(y), threat=threat, seed=SEED)
    return type(outcome)(*(tensor.numpy() for tensor in outcome))


def nearest(norm: str, w: np.ndarray = W) -> np.ndarray:
    """Return the exact distances [20] of X to the boundary of the logits x w."""
    z = X.reshape(-1, 4) @ w
    y, rows = z.argmax(1), np.arange(20)
    slopes = w[:, None, :] - w[:, y, None]  # w_t - w_y, [4, 20, C]
    length = np.linalg.norm(slopes, ord=DUAL[norm], axis=0)
    length[rows, y] = np.nan  # the label is no target
    return np.nanmin((z[rows, y][:, None] - z) / length, axis=1)


def scalar(value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the network of one pixel t with z_1 - z_0 = value(t)."""

    def logits(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        return tf.stack([tf.zeros_like(t), value(t)], axis=1)

    return logits


@pytest.mark.parametrize(
    ("norm", "x", "slope", "value", "step"),
    [
        ("linf", (0.5, 0.5), (1, 3), 1.0, (-0.25, -0.25)),  # 1 / ||slope||_1 each
        ("l2", (0.5, 0.5), (1, 3), 1.0, (-0.1, -0.3)),  # slope / ||slope||_2^2
        ("l1", (0.5, 0.5), (1, 3), 1.0, (0.0, -1 / 3)),  # only the steepest pixel
        ("linf", (0.5, 0.5), (1, -3), -1.0, (0.25, -0.25)),
        ("l2", (0.5, 0.5), (1, -3), -1.0, (0.1, -0.3)),
        ("l1", (0.5, 0.5), (1, -3), -1.0, (0.0, -1 / 3)),
        ("linf", (0.1, 0.5), (1, 1), 0.5, (-0.1, -0.4)),  # the box stops the first pixel
        ("l2", (0.5, 0.5), (1, 3), 1.8, (-0.3, -0.5)),  # the box stops the second at 0.54
        ("l1", (0.5, 0.5), (1, 3), 1.8, (-0.3, -0.5)),
        ("l1", (0.5, 0.5), (2, 2), 1.2, (-0.3, -0.3)),  # equally steep
    ]
    # The hyperplane misses the box, and the step ends in a corner.
    + [(norm, (0.5, 0.4), (1, -3), 2.5, (-0.5, 0.6)) for norm in DUAL]
    + [(norm, (0.5, 0.4), (0, -3), 0.3, (0.0, 0.1)) for norm in DUAL]
    + [(norm, (0.5, 0.4), (1, -3), 0.0, (0.0, 0.0)) for norm in DUAL]
    + [(norm, (0.5, 0.4), (0, 0), 1.0, (0.0, 0.0)) for norm in DUAL],
)
def test_projection_to_a_hyperplane_by_hand(
    norm: str, x: Any, slope: Any, value: float, step: Any
) -> None:
    x, slope = (tf.constant([v, v, v], tf.float32) for v in (x, slope))
    # A scaled function has the same zeros; 1e-25 is so small that squares underflow.
    scale = tf.constant([1.0, 1e-25, 1e6])
    steps = to_zero(x, scale[:, None] * slope, scale * value, Threat(norm))
    np.testing.assert_allclose(steps, np.array([step] * 3), atol=1e-6)


def test_projection_within_any_box() -> None:
    """From (2, 2) in the box [-1, 3], lowering x_1 + 3 x_2 by 8 moves each pixel by -2.

    Raising it by 2 moves each by 0.5, where the box has room for 1.
    """
    x, slope = tf.constant([[2.0, 2.0]] * 2), tf.constant([[1.0, 3.0]] * 2)
    steps = to_zero(x, slope, tf.constant([8.0, -2.0]), Threat("linf", box=(-1.0, 3.0)))
    np.testing.assert_allclose(steps, [[-2, -2], [0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("norm", DUAL)
def test_fab_breaks_a_linear_network_just_above_its_distance_and_not_below(
    linear: Callable[..., Any], norm: str, targets: int | None
) -> None:
    """Each of 20 examples is attacked with eps 2 % above and 2 % below its exact distance."""
    network, exact = linear(W), nearest(norm)
    for scale, broken in ((1.02, True), (0.98, False)):
        threat = Threat(norm, 0.0, WIDE).at(tf.constant(scale * exact, tf.float32))
        end = run(FAB(steps=8, targets=targets), network, threat)
        np.testing.assert_array_equal(end.success, broken)
        assert (threat.distance(end.images, X).numpy() <= scale * exact + 1e-6).all()
        moved = np.argmax(network(end.images), axis=1) != np.argmax(network(X), axis=1)
        np.testing.assert_array_equal(moved, broken)


@pytest.mark.parametrize("norm", DUAL)
def test_distance_of_the_nearest_adversarial_image(linear: Callable[..., Any], norm: str) -> None:
    """The first one is eta times as far as the boundary; later steps come close to the boundary."""
    network, exact = linear(W), nearest(norm)
    y = np.argmax(network(X), axis=1)

    def distance(attack: FAB) -> Any:
        end = attack.search(network, X, y, threat=Threat(norm, 0.0, WIDE), seed=SEED)
        distances = Threat(norm).distance(end["find"], X)
        np.testing.assert_allclose(distances, end["distance"], rtol=1e-6)
        return end["distance"]

    np.testing.assert_allclose(distance(FAB(steps=1)), 1.05 * exact, rtol=1e-4)
    np.testing.assert_allclose(distance(FAB(steps=1, eta=1.3)), 1.3 * exact, rtol=1e-4)
    np.testing.assert_allclose(distance(FAB(steps=8)), exact, rtol=0.01)


@pytest.mark.parametrize(
    ("alpha_max", "end"), [(0.0, (1.0, 1.2)), (0.1, (0.9, 1.24)), (0.9, (0.75, 1.3))]
)
def test_alpha_mixes_the_step_with_one_from_the_image(
    alpha_max: float, end: tuple[float, float]
) -> None:
    """The point (1, 0) is at distance 1 from the line y = 1 and the image (0, -2) at distance 3.

    The share of the step from the image is therefore at most 1 / (1 + 3). Eta leads the two steps
    on to (1, 1.2) and (0, 1.6).
    """
    point, image = tf.constant([[1.0, 0.0]]), tf.constant([[0.0, -2.0]])
    attack, threat = FAB(alpha_max=alpha_max, eta=1.2), Threat("l2", 0.0, WIDE)
    moved = attack._moved(point, image, tf.constant([-1.0]), tf.constant([[0.0, 1.0]]), threat)
    np.testing.assert_allclose(moved, [end], rtol=1e-6)


@pytest.mark.parametrize("norm", DUAL)
def test_queries_and_gradients_of_each_example(linear: Callable[..., Any], norm: str) -> None:
    """Each step takes a gradient and a query; the first and the returned image take a query."""
    two = W[:, :2]
    network = linear(two)
    eps = np.where(np.arange(20) < 10, 1.06, 0.5) * nearest(
        norm, two
    )  # the first step has eta 1.05
    y = np.argmax(network(X), axis=1)
    y[:3] = 1 - y[:3]  # misclassified
    threat = Threat(norm, 0.0, WIDE).at(tf.constant(eps, tf.float32))
    end = run(FAB(steps=4, restarts=2), network, threat, y=y)
    np.testing.assert_array_equal(end.success, np.arange(20) < 10)
    np.testing.assert_array_equal(end.images[:3], X[:3])
    np.testing.assert_array_equal(end.gradients, [0] * 3 + [1] * 7 + [8] * 10)
    np.testing.assert_array_equal(end.queries, [1] * 3 + [3] * 7 + [18] * 10)


@pytest.mark.parametrize("norm", DUAL)
def test_nearest_boundary_is_that_of_the_nearest_class(norm: str) -> None:
    """The function returns its margin z_t - z_y and its slope w_t - w_y."""

    def network(x: Any) -> Any:
        return tf.reshape(x, [-1, 4]) @ W

    y = np.argmax(network(X), axis=1)
    value, slope = nearest_boundary(network, tf.constant(X), tf.constant(y), Threat(norm))
    steepness = np.linalg.norm(np.reshape(slope, [20, 4]), ord=DUAL[norm], axis=1)
    np.testing.assert_allclose(-value / steepness, nearest(norm), rtol=1e-5)
    np.testing.assert_allclose(tf.reduce_sum(slope * X, (1, 2, 3)), value, atol=1e-5)


def test_untargeted_fab_takes_a_gradient_for_each_class(linear: Callable[..., Any]) -> None:
    """There are three classes, four steps and two restarts.

    A step takes two queries, and the first and the last image take one each.
    """
    end = run(FAB(steps=4, targets=None, restarts=2), linear(W), Threat("l2", 1e-3))
    robust = ~end.success
    assert robust.sum() > 15
    assert set(end.gradients[robust]) == {3 * 4 * 2}
    assert set(end.queries[robust]) == {2 + 2 * 4 * 2}


def test_there_are_no_more_targets_than_other_classes(linear: Callable[..., Any]) -> None:
    end = run(FAB(steps=3, targets=9), linear(W), Threat("l2", 1e-3))
    assert set(end.gradients[~end.success]) == {3 * 2}


def test_each_target_is_attacked_in_turn() -> None:
    """The likelier class 1 has a flat logit; a run towards class 2, or untargeted, succeeds."""

    def logits(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        return tf.stack([tf.zeros_like(t), 0.0 * t - 0.1, t - 0.5], axis=1)

    for targets, broken in ((1, False), (2, True), (None, True)):
        end = run(FAB(steps=3, targets=targets), logits, Threat("linf", 0.6), PIXEL)
        assert end.success.item() is broken


def test_adversarial_images_outside_the_ball_are_projected() -> None:
    """Class 1 wins above 0.6 and within a stripe around 0.25 that no gradient shows."""
    network = scalar(lambda t: t - 0.6 + tf.where(tf.abs(t - 0.25) < 0.05, 3.0, 0.0))
    for eps, broken in ((0.25, True), (0.4, False)):
        end = run(FAB(steps=3), network, Threat("linf", eps), PIXEL)
        assert end.images.item() == pytest.approx(eps)
        assert end.success.item() is broken
        assert (end.queries.item(), end.gradients.item()) == (8, 3)


@pytest.mark.parametrize("norm", DUAL)
def test_restart_begins_at_half_eps(norm: str) -> None:
    """z_1 - z_0 is flat up to a distance of 0.05; it then grows and is 0 at 0.15."""
    network = scalar(lambda t: 10 * tf.nn.relu(tf.abs(t - 0.5) - 0.05) - 1.0)
    half, threat = np.full((1, 1, 1, 1), 0.5, np.float32), Threat(norm, 0.2)
    assert not run(FAB(steps=5), network, threat, half).success.item()
    assert run(FAB(steps=5, restarts=2), network, threat, half).success.item()
    assert not run(FAB(steps=5, restarts=2), network, Threat(norm, 0.09), half).success.item()
    wide = Threat(norm, 0.2, WIDE)
    begins = [FAB(restarts=2)._begin(tf.constant(X), wide, SEED, tf.constant(i)) for i in range(4)]
    for begin, distance in zip(begins, (0.0, 0.1, 0.0, 0.1), strict=True):  # two for each target
        np.testing.assert_allclose(wide.distance(begin, X), distance, rtol=1e-5)
    assert (begins[1].numpy() != begins[3].numpy()).any()
    beyond = FAB(restarts=2)._begin(tf.constant(X), Threat(norm, 9.0), SEED, tf.constant(1)).numpy()
    assert beyond.min() >= 0 and beyond.max() <= 1


def test_broken_examples_do_not_change_the_others() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.normal(size=s).astype("float32") for s in ((4, 16), (16, 3)))

    def network(x: Any) -> Any:
        return tf.sin(3.0 * tf.reshape(x, [-1, 4]) @ a) @ b

    attack, eps = FAB(steps=3, restarts=2), np.full(20, 0.06, np.float32)
    y = np.argmax(network(X), axis=1)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, 2, 2, 1]),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None]),
        ],
    )
    def graph(x: Any, y: Any, eps: Any) -> Any:
        return attack.run(network, x, y, threat=Threat("l2", 0.0).at(eps), seed=SEED)

    outcome, eager = graph(X, y, eps), run(attack, network, Threat("l2", 0.06))
    robust = np.flatnonzero(~outcome.success)
    assert 3 < len(robust) < 17
    for one, another in zip(outcome, eager, strict=True):
        np.testing.assert_allclose(one, another, atol=1e-4)
    # With a tiny eps for the broken examples none is broken, and the robust ones end as before.
    unbroken = graph(X, y, np.where(outcome.success, 1e-6, eps).astype("float32"))
    assert not unbroken.success.numpy().any()
    for one, another in zip(outcome, unbroken, strict=True):
        np.testing.assert_allclose(one.numpy()[robust], another.numpy()[robust], atol=1e-4)


def test_nan_logits_leave_finite_images() -> None:
    """sqrt(0.5 - t) has an infinite slope at 0.5 and is NaN above it."""
    network = scalar(lambda t: 0.3 - tf.sqrt(0.5 - t))
    x = np.array([0.1, 0.45, 0.5, 0.6], np.float32).reshape(4, 1, 1, 1)
    for norm in DUAL:
        threat, y = Threat(norm, 0.05), np.array([0, 1, 1, 1])
        path = FAB(steps=4).search(network, x, y, threat=threat, seed=SEED)
        assert np.isfinite(path["iterate"]).all()
        end = run(FAB(steps=4), network, threat, x, y)
        assert np.isfinite(end.images).all()
        assert end.success[3]


def test_image_itself_is_returned_where_no_step_breaks_it() -> None:
    end = run(FAB(steps=3), scalar(lambda t: 0.0 * t - 1.0), Threat("l1", 0.3), PIXEL)
    assert (end.images.item(), end.success.item()) == (0.0, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps: expected int >= 1, received 0"),
        ({"targets": 0}, "targets: expected int >= 1, received 0"),
        ({"restarts": 1.5}, "restarts: expected int >= 1, received 1.5"),
        ({"alpha_max": 2}, "alpha_max: expected a number in [0, 1], received 2"),
        ({"eta": 0.9}, "eta: expected a number >= 1, received 0.9"),
        ({"beta": -0.1}, "beta: expected a number in [0, 1], received -0.1"),
        ({"beta": "near"}, "beta: expected a number or a fraction"),
    ],
)
def test_mistakes_are_one_line(fields: dict[str, Any], message: str) -> None:
    assert message in error_line(lambda: FAB(**fields))


def test_titles_state_what_was_run() -> None:
    assert FAB().title == "FAB-T"
    attack = FAB(steps=20, restarts=3, targets=5, beta=0.8)
    assert attack.title == "FAB-T 20 steps x3 5 targets beta 0.8"
    assert FAB(targets=None, restarts=5).title == "FAB x5"
