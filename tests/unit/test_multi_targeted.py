"""Multi-targeted PGD on networks whose nearest class boundary has a closed form.

On logits x W the image of margin m = z_y - z_i reaches class i exactly when eps > m / ||w||_dual
with w = W[:, i] - W[:, y]. The dual norm is L1 for Linf and L2 for L2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import PGD, Threat, noise
from tfrobust.attacks import ATTACKS, MultiTargeted
from tfrobust.errors import UserError

SEED = noise.seed_for(0, 0, "test")
WIDE = (-100.0, 100.0)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 5)).astype("float32")
X = RNG.normal(size=(40, 2, 2, 1)).astype("float32")
Y = (X.reshape(40, 4) @ W).argmax(axis=1).astype("int32")


def run(attack: Any, network: Any, threat: Threat, x: Any = X, y: Any = Y) -> Any:
    """Return the outcome of an attack, its parts as arrays."""
    outcome = attack.run(network, tf.constant(x), tf.constant(y), threat=threat, seed=SEED)
    return type(outcome)(*(part.numpy() for part in outcome))


def distances(order: int) -> np.ndarray:
    """Return the distance of each class, [B, C], inf for the label; `order` is the dual norm's."""
    z = X.reshape(40, 4) @ W
    margin = z[np.arange(40), Y][:, None] - z
    w = W.T[None] - W.T[Y][:, None]
    size = np.linalg.norm(w, ord=order, axis=2)
    return np.where(size > 0, margin / np.maximum(size, 1e-9), np.inf)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_success_begins_at_the_distance_of_the_nearest_class(
    linear: Any, norm: str, dual: int
) -> None:
    """A large step ends each run at the optimum of its class."""
    attack, nearest = MultiTargeted(steps=2, step_size=100.0), distances(dual).min(axis=1)
    for factor, expected in ((0.99, False), (1.01, True)):
        eps = tf.constant(factor * nearest, tf.float32)
        outcome = run(attack, linear(W), Threat(norm, 0.0, WIDE).at(eps))
        np.testing.assert_array_equal(outcome.success, expected)
        classes = (outcome.images.reshape(40, 4) @ W).argmax(axis=1)
        np.testing.assert_array_equal(classes != Y, expected)


def test_a_failed_attack_returns_the_image_with_the_largest_logit_of_a_rival(linear: Any) -> None:
    """It is the best of the optima x + eps sign(w) of all rivals, relative to the label."""
    threat = Threat("linf", 1e-3, WIDE)
    assert distances(1).min() > 1e-3
    outcome = run(MultiTargeted(steps=3, step_size=1.0), linear(W), threat)
    assert not outcome.success.any()
    w = W.T[None] - W.T[Y][:, None]  # [B, C, 4]
    ends = X.reshape(40, 1, 4) + np.float32(1e-3) * np.sign(w)
    gains = np.einsum("bcd,bcd->bc", w, ends)
    gains[np.arange(40), Y] = -np.inf
    expected = ends[np.arange(40), gains.argmax(axis=1)]
    np.testing.assert_allclose(outcome.images.reshape(40, 4), expected, atol=1e-6)


def detour(x: Any) -> Any:
    """Return the logits of one pixel u whose label is 0, [B, 3].

    Class 1 is near but out of reach: -0.1 + 0.05 u < 0 for u <= 1. Class 2 has -19 - 20 u, which
    is far, but is reached below u = -0.95.
    """
    u = tf.reshape(x, [-1])
    return tf.stack([tf.zeros_like(u), -0.1 + 0.05 * u, -19.0 - 20.0 * u], axis=1)


def test_it_succeeds_where_untargeted_losses_follow_the_wrong_rival() -> None:
    """Both untargeted losses climb from 0 to u = 1, where nothing is misclassified.

    The gradient of the cross entropy is p1 * 0.05 - p2 * 20, positive for u > -0.65, and that of
    the margin is 0.05 for u > -0.94.
    """
    x, y = np.zeros((3, 1, 1, 1), np.float32), np.zeros(3, np.int32)
    threat = Threat("linf", 1.0, WIDE)
    for loss in ("cross_entropy", "margin"):
        untargeted = PGD(steps=10, loss=loss, start="none", success="any")
        outcome = run(untargeted, detour, threat, x, y)
        assert not outcome.success.any()
        np.testing.assert_allclose(outcome.images, 1.0)
    outcome = run(MultiTargeted(steps=10), detour, threat, x, y)
    assert outcome.success.all()
    assert (outcome.images < -0.95).all()


def test_the_untargeted_margin_follows_the_largest_rival_at_each_step() -> None:
    """On two pixels u and v the rival at 0 is class 1 (-1 + u).

    After a step of 0.1 it is class 2 (-1.05 + 3 u + v), which moves v too. Steps towards one class
    alone would end at v = 0 (class 1) or at v = 0.2 (class 2).
    """

    def logits(x: Any) -> Any:
        u, v = x[:, 0, 0, 0], x[:, 0, 1, 0]
        return tf.stack([tf.zeros_like(u), -1 + u, -1.05 + 3 * u + v], axis=1)

    attack = PGD(steps=2, step_size=0.1, loss="margin", start="none", success="any")
    x = np.zeros((1, 1, 2, 1), np.float32)
    outcome = run(attack, logits, Threat("linf", 0.5, WIDE), x, np.zeros(1, np.int32))
    np.testing.assert_allclose(outcome.images.ravel(), [0.2, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("attack", "passes", "success"),
    [
        # Each run evaluates its start and the ends of its steps; one step spans the ball.
        (MultiTargeted(steps=4, step_size=1.0), 1 + 5 + 5 + 2, True),
        (MultiTargeted(steps=4, step_size=1.0, top=3), 1 + 5 + 5 + 2, True),
        (MultiTargeted(steps=4, step_size=1.0, top=2), 1 + 5 + 5, False),
        (MultiTargeted(steps=4, step_size=1.0, top=1, restarts=3), 1 + 3 * 5, False),
        (MultiTargeted(steps=4, step_size=1.0, top=2, restarts=2), 1 + 2 * 2 * 5, False),
    ],
)
def test_the_likeliest_rivals_of_the_clean_image_come_first(
    attack: Any, passes: int, success: bool
) -> None:
    """For one pixel u and label 0 only class 3 can be reached, at u > 0.3.

    The runs towards classes 1 and 2 lead away from it.
    """

    def network(x: Any) -> Any:
        u = tf.reshape(x, [-1])
        return tf.stack([0 * u, -1 - u, -2 - u, 10 * u - 3], axis=1)

    x, y = np.zeros((2, 1, 1, 1), np.float32), np.array([0, 1], np.int32)
    outcome = run(attack, network, Threat("linf", 0.5, WIDE), x, y)
    # The second image is misclassified as it is: it stays and takes one query.
    np.testing.assert_array_equal(outcome.success, [success, True])
    np.testing.assert_array_equal(outcome.queries, [passes, 1])
    np.testing.assert_array_equal(outcome.gradients, [passes - 1, 0])
    assert outcome.images[1].item() == 0.0


def test_one_graph_for_all_batch_sizes_agrees_with_eager_mode(linear: Callable[..., Any]) -> None:
    network, attack, threat = linear(W), MultiTargeted(steps=2, restarts=2), Threat("l2", 0.2, WIDE)
    traces = []
    signature = [tf.TensorSpec([None, 2, 2, 1]), tf.TensorSpec([None], tf.int32)]

    @tf.function(input_signature=signature, autograph=False)
    def craft(x: Any, y: Any) -> Any:
        traces.append(1)
        return attack.run(network, x, y, threat=threat, seed=SEED)

    eager = run(attack, network, threat)
    for value, expected in zip(craft(X, Y), eager, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)
    craft(X[:7], Y[:7])
    assert len(traces) == 1
    assert 0 < eager.success.mean() < 1
    of_another_seed = attack(network, X, Y, threat=threat, seed=noise.fold(SEED, 1)).numpy()
    assert (of_another_seed != eager.images).any()


def test_title_and_settings_name_what_differs_from_the_defaults() -> None:
    assert MultiTargeted().title == "Multi-T 1x50"
    assert MultiTargeted(restarts=20).title == "Multi-T 20x50"
    attack = MultiTargeted(steps=20, restarts=5, top=9, step_size="1/50")
    assert attack.title == "Multi-T 5x20 top 9 step 0.02"
    assert attack == MultiTargeted(steps=20, restarts=5, top=9, step_size=0.02)
    settings = json.loads(json.dumps(MultiTargeted(restarts=20).settings(Threat("linf", 0.2))))
    assert ATTACKS[settings["name"]] is MultiTargeted
    assert settings["step_size"] == pytest.approx(0.01)  # 2.5 * 0.2 / 50
    assert (settings["restarts"], settings["steps"], settings["top"]) == (20, 50, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected int >= 1, received 0"),
        ({"restarts": 0}, "restarts: expected int >= 1, received 0"),
        ({"top": 0}, "top: expected int >= 1, received 0"),
        ({"step_size": -1}, "step_size: expected a number > 0, received -1"),
    ],
)
def test_a_mistaken_argument_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MultiTargeted(**options)


def test_more_rivals_than_the_network_has_are_an_error(linear: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="^top: expected at most the 4 rivals of a class, rec.* 5$"):
        run(MultiTargeted(top=5), linear(W), Threat("linf", 0.1))
