"""Gradient attacks against closed forms.

On logits x W the loss of a two-class network grows with <w, x>, w = W[:, rival] - W[:, label]; its
maximum over the ball is at x + eps * sign(w) for Linf and at x + eps * w / ||w|| for L2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import FGSM, PGD, Threat, losses, noise
from tfrobust.attacks import MultiTargeted, Transfer
from tfrobust.errors import UserError
from tfrobust.evaluation import list_attacks

SEED = noise.seed_for(0, 0, "test")
WIDE = (-10.0, 10.0)
W = np.array([[1.0, -1.0], [0.5, 2.0], [-1.0, 1.0], [0.3, -0.2]], np.float32)
X = np.random.default_rng(0).random((5, 2, 2, 1)).astype("float32")
Y = np.array([0, 1, 0, 1, 0], np.int32)
TOWARDS = ((W[:, 1 - Y] - W[:, Y]).T).reshape(X.shape)  # w of each example
SIGN = np.sign(TOWARDS)
UNIT = TOWARDS / np.sqrt(np.sum(TOWARDS**2, axis=(1, 2, 3), keepdims=True))


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    return linear(W)


@pytest.fixture
def curved() -> Callable[[Any], Any]:
    """A function with many local maxima, of three classes."""
    rng = np.random.default_rng(5)
    a, b = (tf.constant(rng.normal(size=s).astype("float32")) for s in ((4, 16), (16, 3)))
    return lambda x: tf.sin(6.0 * tf.reshape(x, [-1, 4]) @ a) @ b


class Counted:
    """A network that counts how often it is called."""

    def __init__(self, network: Any):
        self.network, self.calls = network, 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        return self.network(x)


def run(attack: Any, network: Any, threat: Threat, x: Any = X, y: Any = Y, seed: Any = SEED) -> Any:
    return attack(network, tf.constant(x), tf.constant(y), threat=threat, seed=seed).numpy()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("start", ["uniform", "normal", "none"])
def test_pgd_reaches_the_linf_optimum(network: Any, loss: str, start: str) -> None:
    x_adv = run(PGD(loss=loss, start=start), network, Threat("linf", 0.1, WIDE))
    np.testing.assert_allclose(x_adv, X + 0.1 * SIGN, atol=1e-6)
    # The loss there: softplus of the margin at x plus eps * ||w||_1.
    margin = np.sum(TOWARDS * X, axis=(1, 2, 3)) + 0.1 * np.sum(np.abs(TOWARDS), axis=(1, 2, 3))
    values = losses.cross_entropy(network(x_adv), tf.constant(Y))
    np.testing.assert_allclose(values, np.log1p(np.exp(margin)), rtol=1e-5)


def test_pgd_reaches_the_l2_optimum(network: Any) -> None:
    """Each step s shrinks the error of the start by eps / (eps + s), here ten times by 11."""
    x_adv = run(PGD(steps=10, step_size=5.0), network, Threat("l2", 0.5, WIDE))
    np.testing.assert_allclose(x_adv, X + 0.5 * UNIT, atol=1e-4)


def test_the_box_cuts_the_optimum(network: Any) -> None:
    x_adv = run(PGD(), network, Threat("linf", 0.4))
    np.testing.assert_allclose(x_adv, np.clip(X + 0.4 * SIGN, 0, 1), atol=1e-6)


def test_fgsm_is_one_step_of_1_25_eps_from_a_random_start(network: Any) -> None:
    threat = Threat("linf", 0.1, WIDE)
    start = threat.random_start(tf.constant(X), noise.fold(SEED, 0)).numpy()
    expected = X + np.clip(start + 1.25 * 0.1 * SIGN - X, -0.1, 0.1)
    np.testing.assert_allclose(run(FGSM(), network, threat), expected, atol=1e-6)
    assert (np.abs(expected - X) < 0.09).any()  # the start shows: not every pixel is at eps


def test_plain_fgsm(network: Any) -> None:
    x_adv = run(FGSM(start="none", step_scale=1.0), network, Threat("linf", 0.1, WIDE))
    np.testing.assert_allclose(x_adv, X + 0.1 * SIGN, atol=1e-6)


def test_each_example_has_its_eps(network: Any) -> None:
    eps = np.array([0.0, 0.01, 0.05, 0.1, 0.2], np.float32)
    threat = Threat("linf", 0.0, WIDE).at(tf.constant(eps))
    for attack in (PGD(), PGD(step_size=0.05), FGSM(start="none")):
        x_adv = run(attack, network, threat)
        np.testing.assert_allclose(x_adv, X + eps[:, None, None, None] * SIGN, atol=1e-6)


def test_step_size() -> None:
    """One step moves by 0.02; the default step size is 2.5 eps / steps."""
    up = lambda x: tf.stack([tf.zeros(len(x)), x[:, 0, 0, 0] - 5.0], axis=1)  # noqa: E731
    zeros, threat = np.zeros((1, 1, 1, 1), np.float32), Threat("linf", 0.3)
    for attack, moved in (
        (PGD(steps=1, step_size=0.02, start="none"), 0.02),
        (PGD(steps=1, step_size="1/50", start="none"), 0.02),
        (PGD(steps=4, step_size=tf.constant(0.05), start="none"), 0.2),
        (PGD(steps=1, start="none"), 0.3),  # 0.75, projected
    ):
        assert run(attack, up, threat, zeros, [0]).item() == pytest.approx(moved)
    assert PGD(steps=10).step(0.3) == pytest.approx(0.075)


def stripe(low: float, high: float) -> Callable[[Any], Any]:
    """Return logits of one pixel.

    Class 1 wins on [low, high] only, yet its gradient is +1 everywhere.
    """

    def logits(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        inside = tf.cast((t >= low) & (t <= high), tf.float32)
        return tf.stack([tf.zeros_like(t), t - 2.0 + 3.0 * inside], axis=1)

    return logits


@pytest.mark.parametrize(
    ("success", "low", "high", "end"),
    [
        ("last", 0.35, 0.45, 0.6),  # goes 0.2, 0.4, 0.6 through the stripe
        ("any", 0.35, 0.45, 0.4),  # stays at its first success
        ("any", 0.15, 0.45, 0.2),  # the first of two
        ("any", -0.1, 0.1, 0.0),  # misclassified at the start
        ("last", -0.1, 0.1, 0.6),  # there, but not at the end
        ("any", 0.55, 0.65, 0.6),  # at the last step
        ("any", 0.7, 0.8, 0.6),  # never
    ],
)
def test_any_success_is_kept(success: str, low: float, high: float, end: float) -> None:
    attack = PGD(steps=3, step_size=0.2, start="none", success=success)
    zeros = np.zeros((1, 1, 1, 1), np.float32)
    x_adv = run(attack, stripe(low, high), Threat("linf", 0.6), zeros, [0])
    assert x_adv.item() == pytest.approx(end)


@pytest.mark.parametrize("attack", [PGD(steps=4, success="any"), MultiTargeted(steps=4)])
def test_a_random_start_that_is_misclassified_is_a_success(attack: Any) -> None:
    """A misclassified random start counts as a success.

    The network is wrong below the image, where half of the starts are, and the gradient leads
    upwards. These examples end at their start after one pass, or two with the query of the clean
    image, as in APGD.
    """

    def logits(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        return tf.stack([tf.zeros_like(t), t + tf.where(t < 0.5, 2.0, -2.0)], axis=1)

    x, threat = np.full((64, 1, 1, 1), 0.5, np.float32), Threat("linf", 0.4)
    zeros = np.zeros(64, np.int32)
    start = threat.random_start(tf.constant(x), noise.fold(SEED, 0)).numpy()
    outcome = attack.run(logits, tf.constant(x), zeros, threat=threat, seed=SEED)
    wrong = start.ravel() < 0.5
    assert 10 < wrong.sum() < 54
    np.testing.assert_array_equal(outcome.success, wrong)
    np.testing.assert_array_equal(outcome.images.numpy()[wrong], start[wrong])
    looks = 1 if isinstance(attack, PGD) else 2
    assert (outcome.queries.numpy()[wrong] == looks).all()
    assert (outcome.queries.numpy()[~wrong] == looks + 4).all()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "kl"])
def test_restarts_are_never_worse(curved: Any, loss: str) -> None:
    """More restarts break at least as many.

    The first start is that of one restart, and an example that it broke stays broken.
    """
    rng, threat = np.random.default_rng(6), Threat("linf", 0.05)
    x = rng.random((200, 2, 2, 1)).astype("float32")
    y = tf.argmax(curved(x), axis=1, output_type=tf.int32).numpy()

    def value(restarts: int) -> tuple[np.ndarray, np.ndarray]:
        logits = curved(run(PGD(steps=3, restarts=restarts, loss=loss), curved, threat, x, y))
        wrong = ~losses.correct(logits, tf.constant(y)).numpy()
        target = curved(x) if loss == "kl" else tf.constant(y)
        return wrong, getattr(losses, loss)(logits, target).numpy()

    (wrong, one), (wrong_more, more) = value(1), value(5)
    assert (wrong_more >= wrong).all()
    assert wrong_more.sum() > wrong.sum()
    assert (more >= one - 1e-5)[~wrong_more].all()


def test_restarts_keep_the_one_that_broke_the_example() -> None:
    """A restart that falls into the stripe is kept although its loss is lower.

    The logits are flat and class 1 wins on [0.5, 0.6] only.
    """

    def logits(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        inside = (t >= 0.5) & (t <= 0.6)
        zero = tf.zeros_like(t)
        return tf.stack([zero + 10.0, tf.where(inside, 11.0, 0.0), zero + t], axis=1)

    def value(logits: Any, labels: Any) -> Any:  # highest at t = 0, outside the stripe
        return -logits[:, 2]

    x = np.full((50, 1, 1, 1), 0.5, np.float32)
    attack = PGD(steps=1, step_size=1e-6, restarts=30, loss="margin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "margin", value)
        x_adv = run(attack, logits, Threat("linf", 0.5), x, np.zeros(50, np.int32)).ravel()
    assert ((x_adv >= 0.5) & (x_adv <= 0.6)).mean() > 0.9  # 1 - 0.9^30 = 0.96


def test_the_seed_is_all_the_randomness(curved: Any) -> None:
    threat, other = Threat("linf", 0.1), noise.seed_for(0, 1, "test")
    for attack in (FGSM(), PGD(steps=2), PGD(steps=2, restarts=2), PGD(steps=1, start="normal")):
        first = run(attack, curved, threat)
        np.testing.assert_array_equal(run(attack, curved, threat), first)
        assert (run(attack, curved, threat, seed=other) != first).any()


def test_kl_has_no_gradient_at_the_image(curved: Any) -> None:
    """KL(p(x) || p(x')) has its minimum at x' = x and grows from a random start."""
    threat, start, x = Threat("linf", 0.1), noise.fold(SEED, 0), tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = losses.kl(curved(x), reference=curved(X))
    assert np.abs(tape.gradient(value, x)).max() < 1e-5  # rounding
    begun = threat.random_start(tf.constant(X), start)
    x_adv = run(PGD(steps=3, step_size=0.01, loss="kl"), curved, threat)
    assert (losses.kl(curved(x_adv), curved(X)) > losses.kl(curved(begun), curved(X))).numpy().all()


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        (FGSM(), 1),
        (FGSM(loss="kl"), 2),  # and the clean prediction
        (PGD(steps=7), 7),
        (PGD(steps=7, loss="kl"), 8),
        (PGD(steps=7, success="any"), 8),  # and a look at the end
        (PGD(steps=4, restarts=3), 15),  # and the value of each of the three ends
    ],
)
def test_passes_through_the_network(network: Any, attack: Any, passes: int) -> None:
    counted = Counted(network)
    run(attack, counted, Threat("linf", 0.1))
    assert counted.calls == passes


def test_one_trace_serves_every_eps_and_seed(curved: Any) -> None:
    traces, attack = [], PGD(steps=3, restarts=2)

    @tf.function
    def craft(x: Any, eps: Any, seed: Any) -> Any:
        traces.append(1)
        threat = Threat("linf", 0.0).at(eps)
        return attack(curved, x, tf.constant(Y), threat=threat, seed=seed)

    for step, eps in enumerate((0.0, 0.1, 0.3)):
        seed = noise.seed_for(0, step, "test")
        x_adv = craft(tf.constant(X), tf.constant(eps), seed)
        eager = run(attack, curved, Threat("linf", eps), seed=seed)
        np.testing.assert_allclose(x_adv, eager, atol=1e-4)
    assert len(traces) == 1


def test_maximise_an_objective() -> None:
    """The maximum of sum(c x) is at x + eps * sign(c), and no gradient flows through the result."""
    x, threat = tf.constant(X), Threat("linf", 0.1, WIDE)
    c = tf.constant(np.random.default_rng(1).normal(size=X.shape).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        objective = lambda z: tf.reduce_sum(c * z, axis=(1, 2, 3))  # noqa: E731
        best = PGD(success="any").maximise(objective, x, threat=threat, seed=SEED)
        total = tf.reduce_sum(best)
    np.testing.assert_allclose(best, X + 0.1 * np.sign(c), atol=1e-6)
    assert tape.gradient(total, x) is None


def test_arrays_and_any_integer_labels_will_do(network: Any) -> None:
    for attack in (FGSM(start="none"), PGD(steps=1, start="none"), PGD(steps=2, loss="margin")):
        for y in (Y, Y.astype("uint8"), Y.astype("int64"), list(Y)):
            x_adv = attack(network, X, y, threat=Threat("linf", 0.1, WIDE), seed=(0, 1))
            np.testing.assert_allclose(x_adv, X + 0.1 * SIGN, atol=1e-6)


def test_nan_gradients_leave_finite_images() -> None:
    """sqrt(x - 0.5) is NaN below 0.5, and those pixels do not move."""
    nan = lambda x: tf.stack([tf.sqrt(x[:, 0, 0, 0] - 0.5), x[:, 0, 0, 0]], axis=1)  # noqa: E731
    x = np.array([0.2, 0.9], np.float32).reshape(2, 1, 1, 1)
    for norm in ("linf", "l2"):
        x_adv = run(PGD(start="none"), nan, Threat(norm, 0.05), x, [0, 1]).ravel()
        assert np.isfinite(x_adv).all()
        assert x_adv[0] == np.float32(0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(steps=0), "steps: expected int >= 1, received 0"),
        (lambda: PGD(restarts=0), "restarts: expected int >= 1, received 0"),
        (lambda: PGD(step_size=-1), "step_size: expected a number > 0, received -1.0"),
        (lambda: PGD(step_size="big"), "step_size: expected a number or a fraction"),
        (lambda: PGD(success="first"), "success: expected one of any, last, received 'first'"),
        (lambda: PGD(loss="cross_entrpy"), "(did you mean 'cross_entropy'?)"),
        (lambda: FGSM(start="uniforn"), "(did you mean 'uniform'?)"),
        (lambda: FGSM(step_scale=0), "step_scale: expected a number > 0, received 0"),
    ],
)
def test_mistakes_are_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_titles_and_settings_state_what_was_run() -> None:
    assert PGD(steps=20).title == "PGD-20"
    assert PGD(steps=20, restarts=3, loss="margin").title == "PGD-20x3 margin"
    assert FGSM().title == "FGSM"
    plain = FGSM(step_scale=1, start="none", loss="margin")
    assert plain.title == "FGSM margin step 1 eps start none"
    settings = PGD(steps=10).settings(Threat("linf", 0.3))
    assert settings["step_size"] == pytest.approx(0.075)
    assert settings["loss"] == "cross_entropy"
    assert FGSM().settings(Threat("linf", 0.08))["step_size"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("threat", "shape", "step", "line"),
    [
        (Threat("linf", 0.03), None, 2, "[0, 1], received 2 (did you mean 2/255?)"),
        (Threat("linf", 0.03, (-1, 1)), (9, 9, 3), 4, "[-1, 1], received 4 (did you mean 8/255?)"),
        (Threat("linf", 8, (0, 255)), None, 300, "[0, 255], received 300"),
        (Threat("l2", 0.5), (3, 3, 1), 3.01, "[0, 1], received 3.01 (did you mean 3.01/255?)"),
        (Threat("l1", 12), (3, 3, 1), 9.5, "[0, 1], received 9.5 (did you mean 9.5/255?)"),
        (Threat("linf", 0.03), None, 1, None),  # from wall to wall
        (Threat("linf", 8, (0, 255)), None, 255, None),
        (Threat("l2", 0.5), (3, 3, 1), 3, None),  # from corner to corner, sqrt(9)
        (Threat("l1", 12), (3, 3, 1), 9, None),
        (Threat("l2", 0.5), None, 100, None),  # of images of unknown size
        (Threat("linf", 0.03), None, None, None),
    ],
)
@pytest.mark.parametrize("make", [PGD, MultiTargeted, lambda step_size: nested(step_size)])
def test_a_step_beyond_the_box_is_a_mistake(
    make: Any, threat: Threat, shape: Any, step: Any, line: str | None
) -> None:
    attack = make(step_size=step)
    if line is None:
        return attack.check(threat, shape)
    with pytest.raises(UserError) as caught:
        attack.check(threat, shape)
    where = "attack." if isinstance(attack, Transfer) else ""
    assert str(caught.value) == f"{where}step_size: expected a step within the box {line}"


def nested(step_size: Any) -> Transfer:
    return Transfer("somewhere", PGD(step_size=step_size))


def test_an_evaluation_asks_for_the_step() -> None:
    with pytest.raises(UserError, match=r"^attacks\[1\].step_size: .* 2/255"):
        list_attacks(["fgsm", {"name": "pgd", "step_size": 2}], Threat("linf", 0.03))


def test_the_step_may_be_a_tensor() -> None:
    PGD(step_size=tf.constant(5.0)).check(Threat("linf", 0.03))
