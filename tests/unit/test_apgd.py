"""APGD against closed forms.

A linear network's nearest wrong image in an Lp ball lies at margin / dual norm of the difference of
two columns. Images are scaled so that this distance is 1, because logits without a bias scale with
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from tfrobust import Threat, losses, noise
from tfrobust.attacks import APGD
from tfrobust.attacks.apgd_steps import Halving, Sparse, intervals, sparse_sign
from tfrobust.errors import UserError

SEED = noise.seed_for(0, 0, "test")
WIDE = (-1000.0, 1000.0)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
NORMS = list(DUAL)
LOSSES = ["cross_entropy", "dlr", "margin", "targeted_dlr"]


def at_distance_1(p: str, classes: int, low: int = 0) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return a linear network, 20 images at distance 1 from its nearest class boundary, and labels.
    The network has `classes` classes and `low` more whose logits never win. With two classes, two
    pixels matter most and equally, so APGD for L1 moves at least two."""
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
    """A function with many local maxima, of five classes."""
    rng = np.random.default_rng(5)
    a, b = (tf.constant(rng.normal(size=s).astype("float32")) for s in ((4, 16), (16, 5)))
    return tf.sin(6.0 * tf.reshape(x, [-1, 4]) @ a) @ b


def curved_images(n: int = 60) -> tuple[Any, Any]:
    x = tf.constant(np.random.default_rng(6).random((n, 2, 2, 1)).astype("float32"))
    return x, tf.argmax(curved(x), axis=1, output_type=tf.int32)


def run(attack: APGD, network: Any, x: Any, y: Any, threat: Threat) -> Any:
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
def test_finds_the_nearest_wrong_image(p: str, loss: str, classes: int, low: int) -> None:
    network, x, y = at_distance_1(p, classes, low)
    attack = APGD(loss=loss, steps=20)
    assert run(attack, network, x, y, Threat(p, 1.02, WIDE)).success.numpy().all()
    assert not run(attack, network, x, y, Threat(p, 0.98, WIDE)).success.numpy().any()


def test_targets_are_the_likely_classes_in_turn() -> None:
    """The targets are the likely classes in turn. The boundary to the second most likely class is
    far away, that to the third is near."""

    def network(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        z = tf.stack([tf.ones_like(t), 0.9 + 0.01 * t, 0.5 + t, t - 2, t - 3], axis=1)
        return tf.where(tf.reshape(x, [-1, 1]) > -9, z, 0.0)

    x, threat = np.zeros((1, 1, 1, 1), np.float32), Threat("linf", 0.6, (-1.0, 1.0))
    for targets, broken in ((1, False), (2, True)):
        attack = APGD(loss="targeted_dlr", targets=targets, steps=20)
        done = run(attack, network, x, [0], threat)
        assert done.success.numpy() == [broken]
        # One look at the clean image, 21 at a run; the second run ends when it is broken.
        assert 1 + 21 * (targets - 1) < done.queries.numpy() <= 1 + 21 * targets


@pytest.mark.parametrize(
    ("p", "loss"), [*(("linf", loss) for loss in LOSSES), ("l2", "dlr"), ("l1", "dlr")]
)
def test_the_record_is_true(p: str, loss: str) -> None:
    """Images stay inside ball and box, and success is true where they are misclassified. The median
    margin of the other images has grown."""
    (x, y), threat = curved_images(), Threat(p, {"linf": 0.02, "l2": 0.03, "l1": 0.05}[p])
    done = run(APGD(loss=loss, steps=10), curved, x, y, threat)
    assert (threat.distance(done.images, x).numpy() <= threat.eps + 1e-6).all()
    assert done.images.numpy().min() >= 0 and done.images.numpy().max() <= 1
    logits, broken = curved(done.images), done.success.numpy()
    np.testing.assert_array_equal(broken, ~losses.correct(logits, y).numpy())
    assert 5 < broken.sum() < 55
    growth = (losses.margin(logits, y) - losses.margin(curved(x), y)).numpy()[~broken]
    assert np.median(growth) > 0.1


@pytest.mark.parametrize("p", NORMS)
def test_who_is_broken_does_not_change_the_others(p: str) -> None:
    """Broken examples do not affect the others. Every second image has a wrong label and is
    returned unchanged after one query."""
    (x, y), threat = curved_images(20), Threat(p, 0.02)
    attack = APGD(loss="targeted_dlr", targets=2, steps=6)
    some = tf.where(tf.range(20) % 2 == 0, y, (y + 1) % 5)
    every, half = (run(attack, curved, x, labels, threat) for labels in (y, some))
    np.testing.assert_allclose(half.images[::2], every.images[::2], atol=1e-6)
    np.testing.assert_array_equal(half.queries[::2], every.queries[::2])
    np.testing.assert_array_equal(half.images[1::2], x[1::2])
    assert half.success.numpy()[1::2].all()
    np.testing.assert_array_equal(half.queries[1::2], 1)
    np.testing.assert_array_equal(half.gradients[1::2], 0)


@pytest.mark.parametrize("p", NORMS)
def test_graph_and_eager_agree(p: str) -> None:
    """The graph is traced without the size of the batch and without its values."""
    (x, y), threat, attack = curved_images(), Threat(p, 0.02), APGD(steps=10)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2, 2, 1]), tf.TensorSpec([None], tf.int32)],
        autograph=False,
    )
    def craft(x: Any, y: Any) -> Any:
        return run(attack, curved, x, y, threat)

    for mine, theirs in zip(run(attack, curved, x, y, threat), craft(x, y), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("p", NORMS)
def test_eps_zero_is_the_image(p: str) -> None:
    x, y = curved_images()
    done = run(APGD(steps=3), curved, x, y, Threat(p, 0.0))
    np.testing.assert_array_equal(done.images, x)
    assert not done.success.numpy().any()


def test_restarts_are_never_worse() -> None:
    """More restarts break at least as many. The first start is that of one restart, and an example
    that it broke stays broken."""
    (x, y), threat = curved_images(), Threat("linf", 0.02)
    one, more = (
        run(APGD(steps=5, restarts=n, loss="margin"), curved, x, y, threat) for n in (1, 5)
    )
    wrong, wrong_more = one.success.numpy(), more.success.numpy()
    assert (wrong_more >= wrong).all()
    assert wrong_more.sum() > wrong.sum()
    before, after = (losses.margin(curved(done.images), y).numpy() for done in (one, more))
    assert (after >= before - 1e-6)[~wrong_more].all()


@pytest.mark.parametrize(
    ("attack", "p", "passes"),
    [
        (APGD(steps=7), "linf", 1 + 8),
        (APGD(steps=7, restarts=2), "l2", 1 + 2 * 8),
        (APGD(steps=7, eot=3), "linf", 1 + 3 * 8),
        (APGD(steps=3, loss="targeted_dlr", restarts=2), "linf", 1 + 4 * 2 * 4),  # 5 classes
        (APGD(steps=10), "l1", 1 + 4 + 4 + 5),
    ],
)
def test_passes_through_the_network(attack: APGD, p: str, passes: int) -> None:
    calls = []

    def counted(x: Any) -> Any:
        calls.append(len(x))
        return network(x)

    network, x, y = at_distance_1(p, 5)
    done = run(attack, counted, x[:2], y[:2], Threat(p, 1e-3, WIDE))
    assert calls == [2] * passes
    np.testing.assert_array_equal(done.queries, passes)
    np.testing.assert_array_equal(done.gradients, passes - 1)


@pytest.mark.parametrize("p", NORMS)
def test_nan_gradients_leave_finite_images(p: str) -> None:
    """The gradient of where(t > 0.5, sqrt(t - 0.5), 0) at t = 0.2 is NaN, but its value is not."""

    def network(x: Any) -> Any:
        t, u = x[:, 0, 0, 0], x[:, 0, 1, 0]
        zero = tf.zeros_like(t)
        return tf.stack([tf.where(t > 0.5, tf.sqrt(t - 0.5), zero) + 0.1, u], axis=1)

    x = np.array([[0.2, 0.0], [0.8, 0.0]], np.float32).reshape(2, 1, 2, 1)
    done = run(APGD(steps=10), network, x, [0, 0], Threat(p, 0.15))
    assert np.isfinite(done.images).all()
    if p != "l2":  # which has no direction without the first pixel; the other reaches 0.1
        assert done.success.numpy()[0]


def test_nan_logits_count_as_broken() -> None:
    network = lambda x: tf.stack([tf.sqrt(x[:, 0, 0, 0] - 0.5), x[:, 0, 0, 0] - 9], axis=1)  # noqa: E731
    x = np.array([0.2, 0.55, 0.9], np.float32).reshape(3, 1, 1, 1)
    done = run(APGD(steps=10), network, x, [0, 0, 0], Threat("linf", 0.1))
    np.testing.assert_array_equal(done.success, [True, True, False])
    assert done.images.numpy()[0] == np.float32(0.2)


def test_the_gradient_is_the_mean_of_its_draws() -> None:
    """The draws are k * x with k = 1, 2, 3. The mean gradient is 2; value and success are those of
    the last draw."""
    draws = []

    def look(x: Any) -> Any:
        draws.append(len(draws) + 1)
        return draws[-1] * tf.reshape(x, [-1]), tf.fill([2], draws[-1] == 3)

    ones = tf.ones([2, 1, 1, 1])
    value, wrong, gradient = APGD(eot=3)._averaged(look, ones)
    np.testing.assert_allclose(gradient, 2 * ones)
    np.testing.assert_allclose(value, [3.0, 3.0])
    assert wrong.numpy().all()


def test_checkpoints() -> None:
    """Checkpoints for 100 steps are those of the paper: w_j = ceil(p_j * 100), 22, 41, 57, ..."""
    result = intervals(100)
    assert np.flatnonzero(result).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert np.cumsum([n for n in result if n]).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert intervals(3) == [0, 1, 1, 1]  # every step where a percentage is less than one


def test_steps_are_halved_by_hand() -> None:
    """The step size is halved at checkpoints by two conditions. At k = 22 of 100 steps: at most
    16.5 of the 22 steps before raised the loss, or the best loss has not changed since the last
    checkpoint and the step size was not halved there."""
    rule = Halving(Threat("linf", 0.1), 100, 0.75)
    rises = [15.0, 16.0, 20.0, 20.0, 20.0]  # and the last step rises in all but the first
    value = tf.constant([0.0, 1.0, 1.0, 1.0, 1.0])
    record = [0.0, 0.0, 2.0, 2.0, 1.0]
    halved = [True, True, True, False, False]
    image = tf.reshape(tf.range(5.0), [5, 1, 1, 1])
    state = {
        "x_adv": image,
        "best": -image,
        "best_gradient": 2 * image,
        "value": tf.constant([2.0] * 5),
        "step": tf.ones(5),
        "last": tf.constant([0.5] * 5),
        "rises": tf.constant(rises),
        "record": tf.constant(record),
        "halved": tf.constant(halved),
    }
    new, gradient = rule.adapt(tf.constant(22), state, value, image)
    halve = np.array([True, False, False, True, False])
    np.testing.assert_array_equal(new["halved"], halve)
    np.testing.assert_array_equal(new["step"], np.where(halve, 0.5, 1.0))
    np.testing.assert_array_equal(tf.reshape(new["x_adv"], [-1]), [0, 1, 2, -3, 4])
    np.testing.assert_array_equal(tf.reshape(gradient, [-1]), [0, 1, 2, 6, 4])
    np.testing.assert_array_equal(new["rises"], np.zeros(5))
    np.testing.assert_array_equal(new["record"], [2.0] * 5)
    # Between checkpoints it only counts.
    new, gradient = rule.adapt(tf.constant(23), state, value, image)
    np.testing.assert_array_equal(new["rises"], [15, 17, 21, 21, 21])
    np.testing.assert_array_equal(new["step"], np.ones(5))
    np.testing.assert_array_equal(gradient, image)


def test_momentum_by_hand() -> None:
    """The momentum step from 0.2, with 0.1 before it and step 0.05, ends at 0.2625. This is 0.2 +
    0.75 * 0.05 + 0.25 * 0.1. There is no momentum at the start, and the ball around 0 stops the
    step at eps = 0.2."""
    one = tf.ones([1, 1, 1, 1])
    state = {"x": 0 * one, "x_adv": 0.2 * one, "before": 0.1 * one, "step": tf.constant([0.05])}
    for eps, k, end in ((1.0, 3, 0.2625), (1.0, 0, 0.25), (0.2, 3, 0.2)):
        new = Halving(Threat("linf", eps), 10, 0.75).move(tf.constant(k), state, 7 * one)
        np.testing.assert_allclose(tf.squeeze(new["x_adv"]), end, rtol=1e-6)
        np.testing.assert_array_equal(new["before"], state["x_adv"])


def test_l1_steps_by_hand() -> None:
    """The best images change 1, 2 and 1 of 4 pixels, instead of 2, 2 and 1 before. Where they are
    clearly fewer, the step is eps again from the best image; elsewhere it is divided by 1.5, but is
    at least eps / 10."""
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


def test_sparse_sign() -> None:
    gradient = tf.constant([[3.0, -1.0, -2.0, 0.5], [0.0, 0.0, 0.0, 0.0], [np.nan, 1.0, -4.0, 2.0]])
    signs = sparse_sign(gradient, tf.constant([2, 3, 1]))
    np.testing.assert_array_equal(signs, [[0.5, 0, -0.5, 0], [0, 0, 0, 0], [0, 0, -1, 0]])


@pytest.mark.parametrize(
    ("loss", "classes", "replaced"),
    [("dlr", 2, True), ("dlr", 3, False), ("targeted_dlr", 3, True), ("cross_entropy", 2, False)],
)
def test_too_few_classes_for_dlr(
    loss: str, classes: int, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With too few classes, the margin is used in one run per restart, and one line says so."""
    messages: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: messages.append(text % values))
    network, x, y = at_distance_1("linf", classes)
    threat = Threat("linf", 0.9, WIDE)
    done = run(APGD(loss=loss, steps=5), network, x, y, threat)
    margin = run(APGD(loss="margin", steps=5), network, x, y, threat)
    text = f"apgd: loss {loss} needs {4 if loss == 'targeted_dlr' else 3} classes, the network has"
    assert messages == ([f"{text} {classes}: the margin is used instead"] if replaced else [])
    if replaced:
        np.testing.assert_array_equal(done.images, margin.images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(steps=0), "steps: expected int >= 1, received 0"),
        (lambda: APGD(restarts=0), "restarts: expected int >= 1, received 0"),
        (lambda: APGD(targets=0), "targets: expected int >= 1, received 0"),
        (lambda: APGD(eot=0.5), "eot: expected int >= 1, received 0.5"),
        (lambda: APGD(rho=1), "rho: expected a number between 0 and 1, received 1.0"),
        (lambda: APGD(loss="dlrr"), "loss: expected one of cross_entropy, dlr, margin, targeted"),
        (
            lambda: run(APGD(), curved, *curved_images(2), Threat("linf").at(tf.ones(2))),
            "threat.eps: expected one number for all examples",
        ),
    ],
)
def test_mistakes_are_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_titles_and_settings_state_what_was_run() -> None:
    assert APGD().title == "APGD-CE"
    assert APGD(loss="dlr", restarts=5, eot=20).title == "APGD-DLR x5 EOT 20"
    assert APGD(loss="targeted_dlr", targets=5).title == "APGD-T 5 targets"
    assert APGD(loss="margin", steps=50, rho=0.5).title == "APGD-margin 50 steps rho 0.5"
    assert APGD().settings(Threat("l2", 0.5)) == {
        "name": "apgd",
        "loss": "cross_entropy",
        "steps": 100,
        "restarts": 1,
        "eot": 1,
        "rho": 0.75,
        "step_size": 1.0,
    }
    stated = json.loads(json.dumps(APGD(loss="targeted_dlr").settings(Threat("l1", 2.0))))
    assert stated["targets"] == 9 and "rho" not in stated and stated["step_size"] == 2
    assert stated["stages"] == [[6, 30], [4, 30], [2, 40]]
