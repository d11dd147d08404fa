"""FAB against closed forms.

On logits x W the nearest image that class t wins from y lies at |z_t - z_y| / ||w_t - w_y||_q in a
wide box, where q is the dual of p: 1 for Linf, 2 for L2, infinity for L1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import Threat, noise
from tfrobust.attacks import FAB
from tfrobust.attacks.fab import nearest_boundary
from tfrobust.attacks.fab_projections import to_zero
from tfrobust.errors import UserError

SEED = noise.seed_for(0, 0, "test")
WIDE = (-100.0, 100.0)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
TARGETS = (9, None)  # FAB-T and FAB
W = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(0).random((20, 2, 2, 1)).astype("float32")
PIXEL = np.zeros((1, 1, 1, 1), np.float32)


def run(attack: FAB, network: Any, threat: Threat, x: Any = X, y: Any = None) -> Any:
    y = np.argmax(network(x), axis=1) if y is None else y
    outcome = attack.run(network, tf.constant(x), tf.constant(y), threat=threat, seed=SEED)
    return type(outcome)(*(t.numpy() for t in outcome))


def nearest(norm: str, w: np.ndarray = W) -> np.ndarray:
    """Return the exact distances of X on logits x w."""
    z = X.reshape(-1, 4) @ w
    y = z.argmax(1)
    away = (w[:, :, None] - w[:, None, :])[:, :, y].transpose(2, 0, 1)  # [B, 4, C]: w_t - w_y
    length = np.linalg.norm(away, ord=DUAL[norm], axis=1)
    length[np.arange(20), y] = np.nan  # the label itself
    return np.nanmin((z[np.arange(20), y][:, None] - z) / length, axis=1)


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
        ("l1", (0.5, 0.5), (1, 3), 1.0, (0.0, -1 / 3)),  # the steepest alone
        ("linf", (0.5, 0.5), (1, -3), -1.0, (0.25, -0.25)),
        ("l2", (0.5, 0.5), (1, -3), -1.0, (0.1, -0.3)),
        ("l1", (0.5, 0.5), (1, -3), -1.0, (0.0, -1 / 3)),
        ("linf", (0.1, 0.5), (1, 1), 0.5, (-0.1, -0.4)),  # the wall stops the first at 0.1
        ("l2", (0.5, 0.5), (1, 3), 1.8, (-0.3, -0.5)),  # (0.18, 0.54): the wall stops the second
        ("l1", (0.5, 0.5), (1, 3), 1.8, (-0.3, -0.5)),
        ("l1", (0.5, 0.5), (2, 2), 1.2, (-0.3, -0.3)),  # equally steep
    ]
    + [(norm, (0.5, 0.4), (1, -3), 2.5, (-0.5, 0.6)) for norm in DUAL]  # misses the box: a corner
    + [(norm, (0.5, 0.4), (0, -3), 0.3, (0.0, 0.1)) for norm in DUAL]
    + [(norm, (0.5, 0.4), (1, -3), 0.0, (0.0, 0.0)) for norm in DUAL]
    + [(norm, (0.5, 0.4), (0, 0), 1.0, (0.0, 0.0)) for norm in DUAL],
)
def test_projection_by_hand(norm: str, x: Any, slope: Any, value: float, step: Any) -> None:
    x, slope = (tf.constant([v, v, v], tf.float32) for v in (x, slope))
    # Scaling the function moves no zero: so small that squares underflow, and large.
    scale = tf.constant([1.0, 1e-25, 1e6])
    got = to_zero(x, scale[:, None] * slope, scale * value, (0.0, 1.0), norm)
    np.testing.assert_allclose(got, np.array([step] * 3), atol=1e-6)


def test_projection_within_any_box() -> None:
    """The step to a zero from x = (2, 2) stays in the box [-1, 3].

    A fall of 8 = 1 * 2 + 3 * 2 moves each pixel by -2, and a rise of 2 moves each by 0.5, with room
    for 1.
    """
    x, slope = tf.constant([[2.0, 2.0]] * 2), tf.constant([[1.0, 3.0]] * 2)
    got = to_zero(x, slope, tf.constant([8.0, -2.0]), (-1.0, 3.0), "linf")
    np.testing.assert_allclose(got, [[-2, -2], [0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("norm", DUAL)
def test_a_linear_network_breaks_just_above_its_margin(
    linear: Callable[..., Any], norm: str, targets: int | None
) -> None:
    """Each of 20 examples is attacked at 2 % above and 2 % below its exact distance."""
    network, exact = linear(W), nearest(norm)
    for scale, broken in ((1.02, True), (0.98, False)):
        threat = Threat(norm, 0.0, WIDE).at(tf.constant(scale * exact, tf.float32))
        end = run(FAB(steps=8, targets=targets), network, threat)
        np.testing.assert_array_equal(end.success, broken)
        assert (threat.distance(end.images, X).numpy() <= scale * exact + 1e-6).all()
        moved = np.argmax(network(end.images), axis=1) != np.argmax(network(X), axis=1)
        np.testing.assert_array_equal(moved, broken)


@pytest.mark.parametrize("norm", DUAL)
def test_the_nearest_find(linear: Callable[..., Any], norm: str) -> None:
    """The first hit is eta times as far as the boundary; beta leads back until it is near 1."""
    network, exact = linear(W), nearest(norm)
    y = np.argmax(network(X), axis=1)

    def distance(attack: FAB) -> Any:
        end = attack.search(network, X, y, threat=Threat(norm, 0.0, WIDE), seed=SEED)
        np.testing.assert_allclose(
            Threat(norm).distance(end["find"], X), end["distance"], rtol=1e-6
        )
        return end["distance"]

    np.testing.assert_allclose(distance(FAB(steps=1)), 1.05 * exact, rtol=1e-4)
    np.testing.assert_allclose(distance(FAB(steps=1, eta=1.3)), 1.3 * exact, rtol=1e-4)
    np.testing.assert_allclose(distance(FAB(steps=8)), exact, rtol=0.01)


@pytest.mark.parametrize(
    ("alpha_max", "end"), [(0.0, (1.0, 1.2)), (0.1, (0.9, 1.24)), (0.9, (0.75, 1.3))]
)
def test_alpha_leads_back_towards_the_image(alpha_max: float, end: tuple[float, float]) -> None:
    """From (1, 0), 1 from the line y = 1, with the image at (0, -2), 3 from it, a is at most 1/4.

    Then eta leads on to (1, 1.2) and (0, 1.6).
    """
    here, image = tf.constant([[1.0, 0.0]]), tf.constant([[0.0, -2.0]])
    attack, threat = FAB(alpha_max=alpha_max, eta=1.2), Threat("l2", 0.0, WIDE)
    moved = attack._moved(here, image, tf.constant([-1.0]), tf.constant([[0.0, 1.0]]), threat)
    np.testing.assert_allclose(moved, [end], rtol=1e-6)


@pytest.mark.parametrize("norm", DUAL)
def test_what_each_example_costs(linear: Callable[..., Any], norm: str) -> None:
    """An example costs a query of its image, and a gradient and a query in each step.

    The returned image costs one query more.
    """
    two = W[:, :2]
    network = linear(two)
    eps = np.where(np.arange(20) < 10, 1.06, 0.5) * nearest(norm, two)  # the first find is at 1.05
    y = np.argmax(network(X), axis=1)
    y[:3] = 1 - y[:3]  # misclassified
    threat = Threat(norm, 0.0, WIDE).at(tf.constant(eps, tf.float32))
    end = run(FAB(steps=4, restarts=2), network, threat, y=y)
    np.testing.assert_array_equal(end.success, np.arange(20) < 10)
    np.testing.assert_array_equal(end.images[:3], X[:3])
    np.testing.assert_array_equal(end.gradients, [0] * 3 + [1] * 7 + [8] * 10)
    np.testing.assert_array_equal(end.queries, [1] * 3 + [3] * 7 + [18] * 10)


@pytest.mark.parametrize("norm", DUAL)
def test_the_nearest_boundary(norm: str) -> None:
    """The boundary is that of the class nearest in the dual norm, with its margin and w_t - w_y."""
    network = lambda x: tf.reshape(x, [-1, 4]) @ W  # noqa: E731
    y = np.argmax(network(X), axis=1)
    value, slope = nearest_boundary(network, tf.constant(X), tf.constant(y), norm)
    steepness = np.linalg.norm(np.reshape(slope, [20, 4]), ord=DUAL[norm], axis=1)
    np.testing.assert_allclose(-value / steepness, nearest(norm), rtol=1e-5)
    np.testing.assert_allclose(tf.reduce_sum(slope * X, (1, 2, 3)), value, atol=1e-5)


def test_untargeted_costs_a_gradient_for_each_class(linear: Callable[..., Any]) -> None:
    """Each step costs a gradient for each class.

    There are three classes, four steps and two restarts; a step has two queries, and the first and
    the last image have one each.
    """
    end = run(FAB(steps=4, targets=None, restarts=2), linear(W), Threat("l2", 1e-3))
    standing = ~end.success
    assert standing.sum() > 15
    assert set(end.gradients[standing]) == {3 * 4 * 2}
    assert set(end.queries[standing]) == {2 + 2 * 4 * 2}


def test_no_more_targets_than_classes(linear: Callable[..., Any]) -> None:
    end = run(FAB(steps=3, targets=9), linear(W), Threat("l2", 1e-3))
    assert set(end.gradients[~end.success]) == {3 * 2}


def test_every_target_has_its_turn() -> None:
    """Every target has its turn.

    Class 1 is the likelier one but its logit is flat; class 2 is reached by the run towards it, or
    as the class of the nearest boundary.
    """

    def logits(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        return tf.stack([tf.zeros_like(t), 0.0 * t - 0.1, t - 0.5], axis=1)

    for targets, broken in ((1, False), (2, True), (None, True)):
        end = run(FAB(steps=3, targets=targets), logits, Threat("linf", 0.6), PIXEL)
        assert end.success.item() is broken


def test_the_finds_outside_the_ball_are_projected() -> None:
    """Class 1 wins above 0.6 and within a stripe around 0.25 that no gradient shows."""
    network = scalar(lambda t: t - 0.6 + tf.where(tf.abs(t - 0.25) < 0.05, 3.0, 0.0))
    for eps, broken in ((0.25, True), (0.4, False)):
        end = run(FAB(steps=3), network, Threat("linf", eps), PIXEL)
        assert end.images.item() == pytest.approx(eps)
        assert end.success.item() is broken
        assert (end.queries.item(), end.gradients.item()) == (8, 3)


@pytest.mark.parametrize("norm", DUAL)
def test_restarts_begin_at_half_eps(norm: str) -> None:
    """A restart begins at half eps, beyond the flat part around the image.

    There z_1 - z_0 is flat up to a distance of 0.05; it then grows and is 0 at 0.15.
    """
    network = scalar(lambda t: 10 * tf.nn.relu(tf.abs(t - 0.5) - 0.05) - 1.0)
    half, threat = np.full((1, 1, 1, 1), 0.5, np.float32), Threat(norm, 0.2)
    assert not run(FAB(steps=5), network, threat, half).success.item()
    assert run(FAB(steps=5, restarts=2), network, threat, half).success.item()
    assert not run(FAB(steps=5, restarts=2), network, Threat(norm, 0.09), half).success.item()
    wide = Threat(norm, 0.2, WIDE)
    begins = [FAB(restarts=2)._begin(tf.constant(X), wide, SEED, tf.constant(i)) for i in range(4)]
    for i, far in enumerate((0.0, 0.1, 0.0, 0.1)):  # two runs for each target
        np.testing.assert_allclose(wide.distance(begins[i], X), far, rtol=1e-5)
    assert (begins[1].numpy() != begins[3].numpy()).any()


def test_who_leaves_changes_nothing_for_the_others() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.normal(size=s).astype("float32") for s in ((4, 16), (16, 3)))
    network = lambda x: tf.sin(3.0 * tf.reshape(x, [-1, 4]) @ a) @ b  # noqa: E731
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

    together, eager = graph(X, y, eps), run(attack, network, Threat("l2", 0.06))
    stand = np.flatnonzero(~together.success)
    assert 3 < len(stand) < 17
    all_stand = graph(X, y, np.where(together.success, 1e-6, eps).astype("float32"))
    assert not all_stand.success.numpy().any()
    for images, others in zip(together, eager, strict=True):
        np.testing.assert_allclose(images, others, atol=1e-4)
    for kept, others in zip(together, all_stand, strict=True):
        np.testing.assert_allclose(kept.numpy()[stand], others.numpy()[stand], atol=1e-4)


def test_nan_leaves_finite_images() -> None:
    """sqrt(0.5 - t) has an infinite slope at 0.5 and is NaN above it."""
    network = scalar(lambda t: 0.3 - tf.sqrt(0.5 - t))
    x = np.array([0.1, 0.45, 0.5, 0.6], np.float32).reshape(4, 1, 1, 1)
    for norm in DUAL:
        threat, y = Threat(norm, 0.05), np.array([0, 1, 1, 1])
        path = FAB(steps=4).search(network, x, y, threat=threat, seed=SEED)
        assert np.isfinite(path["here"]).all()
        end = run(FAB(steps=4), network, threat, x, y)
        assert np.isfinite(end.images).all()
        assert end.success[3]


def test_no_find_is_the_image() -> None:
    end = run(FAB(steps=3), scalar(lambda t: 0.0 * t - 1.0), Threat("l1", 0.3), PIXEL)
    assert (end.images.item(), end.success.item()) == (0.0, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps: expected int >= 1, received 0"),
        ({"targets": 0}, "targets: expected int >= 1, received 0"),
        ({"restarts": 1.5}, "restarts: expected int >= 1, received 1.5"),
        ({"alpha_max": 2}, "alpha_max: expected a number from 0 to 1, received 2.0"),
        ({"eta": 0.9}, "eta: expected a number >= 1, received 0.9"),
        ({"beta": -0.1}, "beta: expected a number from 0 to 1, received -0.1"),
        ({"beta": "near"}, "beta: expected a number or a fraction"),
    ],
)
def test_mistakes_are_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        FAB(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_titles() -> None:
    assert FAB().title == "FAB-T"
    assert FAB(steps=20, restarts=3, targets=5, beta=0.8).title == (
        "FAB-T 20 steps x3 5 targets beta 0.8"
    )
    assert FAB(targets=None, restarts=5).title == "FAB x5"
