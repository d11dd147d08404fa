"""APGD against closed forms.

The nearest misclassified image of a linear network lies, in the Lp norm, at the margin divided by
the dual norm of the difference of two columns. Without a bias this distance scales with the image,
so images are scaled to a distance of 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from tests.errors import error_line
from tfrobust import Threat, losses, noise
from tfrobust.attacks import APGD
from tfrobust.attacks.apgd import random_start
from tfrobust.attacks.apgd_steps import Halving, Sparse, intervals, sparse_sign

SEED = noise.seed_for(0, 0, "test")
WIDE = (-1000.0, 1000.0)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
NORMS = list(DUAL)
LOSSES = ["cross_entropy", "dlr", "margin", "targeted_dlr"]


def at_distance_1(p: str, classes: int, low: int = 0) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return a linear network, images [20, 2, 2, 1] at distance 1 from its boundary, and labels.

    Args:
        p: The norm of the distance.
        classes: The classes. With two, two pixels have the steepest slope, since APGD for L1 moves
            at least two.
        low: More classes, whose logits never win.
    """
    rng = np.random.default_rng(3)
    w = rng.normal(size=(4, classes)).astype("float32")
    w[:, 1] = w[:, 0] + [2.0, -2.0, 0.5, 1.0] if classes == 2 else w[:, 1]
    x = rng.normal(size=(20, 4)).astype("float32")
    y = np.argmax(x @ w, axis=1)
    margins = np.take_along_axis(x @ w, y[:, None], 1) - x @ w
    lengths = np.linalg.norm(w[:, y, None] - w[:, None, :], ord=DUAL[p], axis=0)
    with np.errstate(invalid="ignore"):
        distance = np.nanmin(margins / lengths, axis=1, keepdims=True)  # 0 / 0 at the label

    def logits(images: Any) -> Any:
        z = tf.reshape(images, [-1, 4]) @ w
        return tf.concat([z, tf.fill([tf.shape(z)[0], low], -1000.0)], axis=1)

    return logits, (x / distance).reshape(20, 2, 2, 1), y


def curved(x: Any) -> Any:
    """Return logits [B, 5] with many local maxima."""
    rng = np.random.default_rng(5)
    a, b = (tf.constant(rng.normal(size=s).astype("float32")) for s in ((4, 16), (16, 5)))
    return tf.sin(6.0 * tf.reshape(x, [-1, 4]) @ a) @ b


def curved_images(n: int = 60) -> tuple[Any, Any]:
    """Return images [n, 2, 2, 1] and the predictions of `curved` for them, [n]."""
    x = tf.constant(np.random.default_rng(6).random((n, 2, 2, 1)).astype("float32"))
    return x, tf.argmax(curved(x), axis=1, output_type=tf.int32)


def run(attack: APGD, network: Any, x: Any, y: Any, threat: Threat) -> Any:
    """Return the outcome of the attack."""
    return attack.run(network, x, y, threat=threat, seed=SEED)


@pytest.mark.parametrize(
    ("p", "loss", "classes", "low"),
    [
        ("linf", "cross_entropy", 2, 0),
        ("linf", "margin", 2, 0),
        ("linf", "dlr", 2, 1),
        ("linf", "targeted_dlr", 4, 0),
        ("l2", "cross_entropy", 2, 0),
        ("l2", "targeted_dlr", 4, 0),
        ("l1", "cross_entropy", 2, 0),
        ("l1", "targeted_dlr", 2, 2),
    ],
)
def test_apgd_breaks_an_image_just_above_its_distance_and_not_below(
    p: str, loss: str, classes: int, low: int
) -> None:
    """Images at a distance of 0.98 are broken within 1, and those at 1.02 are not."""
    network, x, y = at_distance_1(p, classes, low)
    x = np.concatenate([0.98 * x, 1.02 * x])
    done = run(APGD(loss=loss, steps=20), network, x, np.tile(y, 2), Threat(p, 1.0, WIDE))
    np.testing.assert_array_equal(done.success, np.repeat([True, False], 20))


def test_each_run_attacks_towards_the_next_likely_class() -> None:
    """The boundary to the second most likely class is far away, that to the third is near."""

    def network(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        z = tf.stack([tf.ones_like(t), 0.9 + 0.01 * t, 0.5 + t, t - 2, t - 3], axis=1)
        return tf.where(tf.reshape(x, [-1, 1]) > -9, z, 0.0)

    x, threat = np.zeros((1, 1, 1, 1), np.float32), Threat("linf", 0.6, (-1.0, 1.0))
    for targets, broken in ((1, False), (2, True)):
        attack = APGD(loss="targeted_dlr", targets=targets, steps=20)
        outcome = run(attack, network, x, [0], threat)
        assert outcome.success.numpy() == [broken]
        # One query of the clean image and 21 for a run; the second run ends at its success.
        assert 1 + 21 * (targets - 1) < outcome.queries.numpy() <= 1 + 21 * targets


@pytest.mark.parametrize(
    ("p", "loss"), [*(("linf", loss) for loss in LOSSES), ("l2", "dlr"), ("l1", "dlr")]
)
def test_images_stay_in_the_ball_and_success_means_misclassified(p: str, loss: str) -> None:
    """The median margin of the images that are not broken has grown."""
    (x, y), threat = curved_images(), Threat(p, {"linf": 0.02, "l2": 0.03, "l1": 0.05}[p])
    outcome = run(APGD(loss=loss, steps=10), curved, x, y, threat)
    assert (threat.distance(outcome.images, x).numpy() <= threat.eps + 1e-6).all()
    assert outcome.images.numpy().min() >= 0 and outcome.images.numpy().max() <= 1
    logits, broken = curved(outcome.images), outcome.success.numpy()
    np.testing.assert_array_equal(broken, ~losses.correct(logits, y).numpy())
    assert 5 < broken.sum() < 55
    growth = (losses.margin(logits, y) - losses.margin(curved(x), y)).numpy()[~broken]
    assert np.median(growth) > 0.1


@pytest.mark.parametrize("p", NORMS)
def test_broken_examples_do_not_change_the_others(p: str) -> None:
    """Every second image has a wrong label and is returned unchanged after one query."""
    (x, y), threat = curved_images(20), Threat(p, 0.02)
    attack = APGD(loss="targeted_dlr", targets=2, steps=6)
    half_wrong = tf.where(tf.range(20) % 2 == 0, y, (y + 1) % 5)
    full, half = (run(attack, curved, x, labels, threat) for labels in (y, half_wrong))
    np.testing.assert_allclose(half.images[::2], full.images[::2], atol=1e-6)
    np.testing.assert_array_equal(half.queries[::2], full.queries[::2])
    np.testing.assert_array_equal(half.images[1::2], x[1::2])
    assert half.success.numpy()[1::2].all()
    np.testing.assert_array_equal(half.queries[1::2], 1)
    np.testing.assert_array_equal(half.gradients[1::2], 0)


@pytest.mark.parametrize("p", NORMS)
def test_graph_and_eager_give_the_same_outcome(p: str) -> None:
    """The graph is traced for a batch of unknown size and values."""
    (x, y), threat, attack = curved_images(), Threat(p, 0.02), APGD(steps=10)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2, 2, 1]), tf.TensorSpec([None], tf.int32)],
        autograph=False,
    )
    def craft(x: Any, y: Any) -> Any:
        return run(attack, curved, x, y, threat)

    for eager, graph in zip(run(attack, curved, x, y, threat), craft(x, y), strict=True):
        np.testing.assert_allclose(eager, graph, atol=1e-5)


def test_more_restarts_break_no_fewer_examples() -> None:
    """The first start is that of one restart; its successes stay and margins only grow."""
    (x, y), threat = curved_images(), Threat("linf", 0.02)

    def broken_and_margin(restarts: int) -> tuple[np.ndarray, np.ndarray]:
        attack = APGD(steps=5, restarts=restarts, loss="margin")
        outcome = run(attack, curved, x, y, threat)
        return outcome.success.numpy(), losses.margin(curved(outcome.images), y).numpy()

    (broken, margin), (broken_by_five, margin_of_five) = map(broken_and_margin, (1, 5))
    assert (broken_by_five >= broken).all()
    assert broken_by_five.sum() > broken.sum()
    assert (margin_of_five >= margin - 1e-6)[~broken_by_five].all()


@pytest.mark.parametrize(
    ("attack", "p", "passes"),
    [
        (APGD(steps=7), "linf", 1 + 8),
        (APGD(steps=7, restarts=2), "l2", 1 + 2 * 8),
        (APGD(steps=3, loss="targeted_dlr", restarts=2), "linf", 1 + 4 * 2 * 4),  # 5 classes
        (APGD(steps=10), "l1", 1 + 4 + 4 + 5),
    ],
)
def test_number_of_passes_through_the_network(attack: APGD, p: str, passes: int) -> None:
    calls = []

    def counted(x: Any) -> Any:
        calls.append(len(x))
        return network(x)

    network, x, y = at_distance_1(p, 5)
    outcome = run(attack, counted, x[:2], y[:2], Threat(p, 1e-3, WIDE))
    assert calls == [2] * passes
    np.testing.assert_array_equal(outcome.queries, passes)
    np.testing.assert_array_equal(outcome.gradients, passes - 1)


@pytest.mark.parametrize("p", NORMS)
def test_nan_gradients_leave_finite_images(p: str) -> None:
    """The gradient of where(t > 0.5, sqrt(t - 0.5), 0) at t = 0.2 is NaN, but its value is not."""

    def network(x: Any) -> Any:
        t, u = x[:, 0, 0, 0], x[:, 0, 1, 0]
        zero = tf.zeros_like(t)
        return tf.stack([tf.where(t > 0.5, tf.sqrt(t - 0.5), zero) + 0.1, u], axis=1)

    x = np.array([[0.2, 0.0], [0.8, 0.0]], np.float32).reshape(2, 1, 2, 1)
    outcome = run(APGD(steps=10), network, x, [0, 0], Threat(p, 0.15))
    assert np.isfinite(outcome.images).all()
    if p != "l2":  # an L2 direction needs every pixel; the other norms move the second to 0.1
        assert outcome.success.numpy()[0]


def test_nan_logits_count_as_broken() -> None:
    def network(x: Any) -> Any:
        return tf.stack([tf.sqrt(x[:, 0, 0, 0] - 0.5), x[:, 0, 0, 0] - 9], axis=1)

    x = np.array([0.2, 0.55, 0.9], np.float32).reshape(3, 1, 1, 1)
    outcome = run(APGD(steps=10), network, x, [0, 0, 0], Threat("linf", 0.1))
    np.testing.assert_array_equal(outcome.success, [True, True, False])
    assert outcome.images.numpy()[0] == np.float32(0.2)


def test_checkpoints_are_those_of_the_paper() -> None:
    """For 100 steps they are w_j = ceil(p_j * 100); each entry is the distance to the last one."""
    result = np.array(intervals(100))
    (checkpoints,) = np.nonzero(result)
    assert checkpoints.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert np.cumsum(result[checkpoints]).tolist() == checkpoints.tolist()
    assert intervals(3) == [0, 1, 1, 1]  # every step, where the distance would be below one


def test_step_size_is_halved_under_the_two_conditions_of_the_paper() -> None:
    """At step 22 of 100, either of two conditions halves the step size.

    At most 16.5 of the 22 steps raised the loss, or the best loss has not changed since the last
    checkpoint and the step size was not halved there.
    """
    rule = Halving(Threat("linf", 0.1), 100, 0.75)
    value = tf.constant([0.0, 1.0, 1.0, 1.0, 1.0])  # step 22 raises the loss but of the first
    image = tf.reshape(tf.range(5.0), [5, 1, 1, 1])
    state = {
        "x_adv": image,
        "best": -image,
        "best_gradient": 2 * image,
        "value": tf.constant([2.0] * 5),
        "step": tf.ones(5),
        "last": tf.constant([0.5] * 5),
        "rises": tf.constant([15.0, 16.0, 20.0, 20.0, 20.0]),
        "record": tf.constant([0.0, 0.0, 2.0, 2.0, 1.0]),
        "halved": tf.constant([True, True, True, False, False]),
    }
    new, gradient = rule.adapt(tf.constant(22), state, value, image)
    np.testing.assert_array_equal(new["halved"], [True, False, False, True, False])
    np.testing.assert_array_equal(new["step"], [0.5, 1.0, 1.0, 0.5, 1.0])
    np.testing.assert_array_equal(tf.reshape(new["x_adv"], [-1]), [0, 1, 2, -3, 4])
    np.testing.assert_array_equal(tf.reshape(gradient, [-1]), [0, 1, 2, 6, 4])
    np.testing.assert_array_equal(new["rises"], np.zeros(5))
    np.testing.assert_array_equal(new["record"], [2.0] * 5)
    # Between checkpoints only the rises are counted.
    new, gradient = rule.adapt(tf.constant(23), state, value, image)
    np.testing.assert_array_equal(new["rises"], [15, 17, 21, 21, 21])
    np.testing.assert_array_equal(new["step"], np.ones(5))
    np.testing.assert_array_equal(gradient, image)


@pytest.mark.parametrize("p", ["linf", "l2"])
def test_a_random_start_lies_on_the_edge_of_the_ball(p: str) -> None:
    (x, _), threat = curved_images(), Threat(p, 0.02, WIDE)
    starts = [random_start(x, threat, noise.fold(SEED, run)) for run in range(2)]
    for start in starts:
        np.testing.assert_allclose(threat.distance(start, x), 0.02, rtol=1e-3)
    assert (starts[0] != starts[1]).numpy().any()


def test_a_stage_of_l1_begins_at_the_best_image_of_the_stage_before() -> None:
    """Ten steps are 3 at a radius of 3 eps, 3 at 2 eps and 4 at eps; no image is ever broken."""
    (x, y), seen, threat = curved_images(20), [], Threat("l1", 0.05, WIDE)

    def network(images: Any) -> Any:
        return curved(images) + 20 * tf.one_hot(y, 5)

    def recorded(images: Any) -> Any:
        seen.append(images)
        return network(images)

    run(APGD(loss="margin", steps=10), recorded, x, y, threat)
    np.testing.assert_allclose(threat.distance(seen[1], x), 3 * threat.eps, rtol=0.01)
    for first, last, radius in ((1, 5, 2), (5, 9, 1)):
        images = np.stack(seen[first:last])
        loss = np.stack([losses.margin(network(z), y) for z in images])
        assert 0 < (loss.argmax(axis=0) == 3).sum() < 20  # for some the last image is the best
        best = images[loss.argmax(axis=0), np.arange(20)]
        expected = threat.at(radius * threat.eps).project(best, x)
        np.testing.assert_allclose(seen[last], expected, atol=1e-6)


def test_momentum_step_by_hand() -> None:
    """From 0.2, with 0.1 before it, a step of 0.05 ends at 0.2 + 0.75 * 0.05 + 0.25 * 0.1.

    The first step has no momentum, and the ball around 0 stops a step at eps = 0.2.
    """
    one = tf.ones([1, 1, 1, 1])
    state = {"x": 0 * one, "x_adv": 0.2 * one, "before": 0.1 * one, "step": tf.constant([0.05])}
    for eps, k, end in ((1.0, 3, 0.2625), (1.0, 0, 0.25), (0.2, 3, 0.2)):
        new = Halving(Threat("linf", eps), 10, 0.75).move(tf.constant(k), state, 7 * one)
        np.testing.assert_allclose(tf.squeeze(new["x_adv"]), end, rtol=1e-6)
        np.testing.assert_array_equal(new["before"], state["x_adv"])


def test_l1_step_size_by_hand() -> None:
    """The best images change 1, 2 and 1 of 4 pixels; before they changed 2, 2 and 1.

    Where the pixels became clearly fewer, the step is eps again from the best image; elsewhere it
    is divided by 1.5, but is at least eps / 10.
    """
    rule = Sparse(Threat("l1", 3.0), tf.constant(10))
    best = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    best = tf.reshape(tf.constant(best), [3, 2, 2, 1])
    state = {
        "x": tf.zeros_like(best),
        "x_adv": 0.5 * tf.ones_like(best),
        "best": best,
        "best_gradient": 2 * best,
        "step": tf.constant([1.0, 1.5, 0.31]),
        "changed": tf.constant([2.0, 2.0, 1.0]),
    }
    new, gradient = rule.adapt(tf.constant(1), state, tf.zeros(3), best)
    np.testing.assert_allclose(new["step"], [3.0, 1.0, 0.3])
    np.testing.assert_array_equal(new["changed"], [1.0, 2.0, 1.0])
    np.testing.assert_array_equal(new["x_adv"][0], best[0])
    np.testing.assert_array_equal(new["x_adv"][1:], state["x_adv"][1:])
    np.testing.assert_array_equal(gradient[0], 2 * best[0])
    np.testing.assert_array_equal(gradient[1:], best[1:])


def test_sparse_sign_keeps_the_largest_slopes() -> None:
    gradient = tf.constant([[3.0, -1.0, -2.0, 0.5], [0.0, 0.0, 0.0, 0.0], [np.nan, 1.0, -4.0, 2.0]])
    signs = sparse_sign(gradient, tf.constant([2, 3, 1]))
    np.testing.assert_array_equal(signs, [[0.5, 0, -0.5, 0], [0, 0, 0, 0], [0, 0, -1, 0]])


@pytest.mark.parametrize(
    ("loss", "classes", "replaced"),
    [("dlr", 2, True), ("dlr", 3, False), ("targeted_dlr", 3, True), ("cross_entropy", 2, False)],
)
def test_dlr_with_too_few_classes_becomes_the_margin(
    loss: str, classes: int, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so, and there is one run per restart."""
    messages: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: messages.append(text % values))
    network, x, y = at_distance_1("linf", classes)
    threat = Threat("linf", 0.9, WIDE)
    outcome = run(APGD(loss=loss, steps=5), network, x, y, threat)
    margin = run(APGD(loss="margin", steps=5), network, x, y, threat)
    if not replaced:
        assert not messages
    else:
        least = 4 if loss == "targeted_dlr" else 3
        text = f"apgd: loss {loss} needs {least} classes, the network has {classes}: the margin is"
        assert messages == [f"{text} used instead"]
        np.testing.assert_array_equal(outcome.images, margin.images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(steps=0), "steps: expected int >= 1, received 0"),
        (lambda: APGD(restarts=0), "restarts: expected int >= 1, received 0"),
        (lambda: APGD(targets=0), "targets: expected int >= 1, received 0"),
        (lambda: APGD(rho=1), "rho: expected a number in (0, 1), received 1"),
        (lambda: APGD(loss="dlrr"), "loss: expected one of cross_entropy, dlr, margin, targeted"),
        (
            lambda: run(APGD(), curved, *curved_images(2), Threat("linf").at(tf.ones(2))),
            "threat.eps: expected one number for all examples",
        ),
    ],
)
def test_mistakes_are_one_line(make: Callable[[], Any], message: str) -> None:
    assert message in error_line(make)


def test_titles_and_settings_state_what_was_run() -> None:
    assert APGD().title == "APGD-CE"
    assert APGD(loss="dlr", restarts=5).title == "APGD-DLR x5"
    assert APGD(loss="targeted_dlr", targets=5).title == "APGD-T 5 targets"
    assert APGD(loss="margin", steps=50, rho=0.5).title == "APGD-margin 50 steps rho 0.5"
    expected = {"name": "apgd", "loss": "cross_entropy", "steps": 100, "restarts": 1}
    assert APGD().settings(Threat("l2", 0.5)) == expected | {"rho": 0.75, "step_size": 1.0}
    settings = json.loads(json.dumps(APGD(loss="targeted_dlr").settings(Threat("l1", 2.0))))
    assert settings["targets"] == 9 and "rho" not in settings and settings["step_size"] == 2
    assert settings["stages"] == [[6, 30], [4, 30], [2, 40]]
