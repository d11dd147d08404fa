"""Gradient attacks against closed forms.

The logits are x W with two classes, so the loss grows with <w, x>, w = W[:, rival] - W[:, label].
Its maximum over the ball is at x + eps * sign(w) for Linf and at x + eps * w / ||w|| for L2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import FGSM, PGD, Threat, losses, noise
from tfrobust.attacks import MultiTargeted, Transfer
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
    """Return the network of logits x W."""
    return linear(W)


@pytest.fixture
def curved() -> Callable[[Any], Any]:
    """Return a function from images to logits [B, 3] with many local maxima."""
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
    """Return the adversarial images as an array of the shape of x."""
    return attack.images(network, tf.constant(x), y, threat=threat, seed=seed).numpy()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("start", ["uniform", "normal", "none"])
def test_pgd_reaches_the_linf_optimum(network: Any, loss: str, start: str) -> None:
    x_adv = run(PGD(loss=loss, start=start), network, Threat("linf", 0.1, WIDE))
    np.testing.assert_allclose(x_adv, X + 0.1 * SIGN, atol=1e-6)
    # The loss is the softplus of the margin at x plus eps * ||w||_1.
    margin = np.sum(TOWARDS * X, axis=(1, 2, 3)) + 0.1 * np.sum(np.abs(TOWARDS), axis=(1, 2, 3))
    values = losses.cross_entropy(network(x_adv), tf.constant(Y))
    np.testing.assert_allclose(values, np.log1p(np.exp(margin)), rtol=1e-5)


def test_pgd_reaches_the_l2_optimum(network: Any) -> None:
    """Each step s shrinks the error of the start by eps / (eps + s), here ten times by 11."""
    x_adv = run(PGD(steps=10, step_size=5.0), network, Threat("l2", 0.5, WIDE))
    np.testing.assert_allclose(x_adv, X + 0.5 * UNIT, atol=1e-4)


def test_optimum_is_clipped_to_the_box(network: Any) -> None:
    x_adv = run(PGD(), network, Threat("linf", 0.4))
    np.testing.assert_allclose(x_adv, np.clip(X + 0.4 * SIGN, 0, 1), atol=1e-6)


def test_fgsm_is_one_step_of_1_25_eps_from_a_random_start(network: Any) -> None:
    threat = Threat("linf", 0.1, WIDE)
    start = threat.random_start(tf.constant(X), noise.fold(SEED, 0)).numpy()
    expected = X + np.clip(start + 1.25 * 0.1 * SIGN - X, -0.1, 0.1)
    np.testing.assert_allclose(run(FGSM(), network, threat), expected, atol=1e-6)
    assert (np.abs(expected - X) < 0.09).any()  # after a random start some pixels are inside


def test_fgsm_without_a_random_start_is_one_signed_step(network: Any) -> None:
    x_adv = run(FGSM(start="none", step_scale=1.0), network, Threat("linf", 0.1, WIDE))
    np.testing.assert_allclose(x_adv, X + 0.1 * SIGN, atol=1e-6)


def test_each_example_has_its_eps(network: Any) -> None:
    eps = np.array([0.0, 0.01, 0.05, 0.1, 0.2], np.float32)
    threat = Threat("linf", 0.0, WIDE).at(tf.constant(eps))
    for attack in (PGD(), PGD(step_size=0.05), FGSM(start="none")):
        x_adv = run(attack, network, threat)
        np.testing.assert_allclose(x_adv, X + eps[:, None, None, None] * SIGN, atol=1e-6)


def test_step_size_may_be_a_number_a_fraction_or_a_tensor() -> None:
    """One step moves by 0.02; the default step size is 2.5 eps / steps."""

    def rising(x: Any) -> Any:
        return tf.stack([tf.zeros(len(x)), x[:, 0, 0, 0] - 5.0], axis=1)

    zeros, threat = np.zeros((1, 1, 1, 1), np.float32), Threat("linf", 0.3)
    for attack, distance in (
        (PGD(steps=1, step_size=0.02, start="none"), 0.02),
        (PGD(steps=1, step_size="1/50", start="none"), 0.02),
        (PGD(steps=4, step_size=tf.constant(0.05), start="none"), 0.2),
        (PGD(steps=1, start="none"), 0.3),  # the projection of 0.75
    ):
        assert run(attack, rising, threat, zeros, [0]).item() == pytest.approx(distance)
    assert PGD(steps=10).step(0.3) == pytest.approx(0.075)


def stripe(low: float, high: float, rise: float = 3.0) -> Callable[[Any], Any]:
    """Return logits of one pixel t: 0, and t - 2 with a rise on [low, high], where class 1 wins."""

    def logits(x: Any) -> Any:
        t = tf.reshape(x, [-1])
        inside = tf.cast((t >= low) & (t <= high), tf.float32)
        return tf.stack([tf.zeros_like(t), t - 2.0 + rise * inside], axis=1)

    return logits


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize(
    ("success", "low", "high", "end"),
    [
        ("last", 0.35, 0.45, 0.6),  # the steps 0.2, 0.4, 0.6 cross the stripe
        ("any", 0.35, 0.45, 0.4),
        ("any", 0.15, 0.45, 0.2),  # the first of two successes
        ("any", -0.1, 0.1, 0.0),  # misclassified at the start
        ("last", -0.1, 0.1, 0.6),
        ("any", 0.55, 0.65, 0.6),  # misclassified at the last step
        ("any", 0.7, 0.8, 0.6),  # never misclassified
    ],
)
def test_success_any_stops_at_the_first_misclassified_image(
    success: str, low: float, high: float, end: float, restarts: int
) -> None:
    attack = PGD(steps=3, step_size=0.2, start="none", success=success, restarts=restarts)
    zeros = np.zeros((1, 1, 1, 1), np.float32)
    x_adv = run(attack, stripe(low, high), Threat("linf", 0.6), zeros, [0])
    assert x_adv.item() == pytest.approx(end)


@pytest.mark.parametrize("success", ["last", "any"])
def test_the_last_image_of_a_restart_counts_where_none_is_misclassified(success: str) -> None:
    """The loss is higher on the way: -0.6 at 0.4, and -1.4 at the end."""
    attack = PGD(steps=3, step_size=0.2, start="none", success=success, restarts=2)
    zeros = np.zeros((1, 1, 1, 1), np.float32)
    x_adv = run(attack, stripe(0.35, 0.45, rise=1.0), Threat("linf", 0.6), zeros, [0])
    assert x_adv.item() == pytest.approx(0.6)


def test_a_normal_start_is_a_thousandth_of_normal_noise_within_the_threat() -> None:
    draw = 0.001 * noise.normal(X.shape, SEED).numpy()
    for eps, limit in ((1.0, 1.0), (0.0005, 0.0005), (0.0, 0.0)):
        start = PGD(start="normal").begin(tf.constant(X), Threat("linf", eps, WIDE), SEED)
        np.testing.assert_allclose(start, X + np.clip(draw, -limit, limit), atol=1e-6)


@pytest.mark.parametrize("attack", [PGD(steps=4, success="any"), MultiTargeted(steps=4)])
def test_a_random_start_that_is_misclassified_is_a_success(attack: Any) -> None:
    """The network is wrong below the image, and its gradient leads upwards.

    Half of the starts are below. These examples end at their start after one pass, or after two
    where the attack queries the clean image.
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
    queries = 1 if isinstance(attack, PGD) else 2
    assert (outcome.queries.numpy()[wrong] == queries).all()
    assert (outcome.queries.numpy()[~wrong] == queries + 4).all()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "kl"])
def test_more_restarts_break_no_fewer_examples(curved: Any, loss: str) -> None:
    """The first start is that of one restart; its successes stay and losses only grow."""
    rng, threat = np.random.default_rng(6), Threat("linf", 0.05)
    x = rng.random((200, 2, 2, 1)).astype("float32")
    y = tf.argmax(curved(x), axis=1, output_type=tf.int32).numpy()

    def value(restarts: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which examples are broken, and their losses."""
        logits = curved(run(PGD(steps=3, restarts=restarts, loss=loss), curved, threat, x, y))
        wrong = ~losses.correct(logits, tf.constant(y)).numpy()
        target = curved(x) if loss == "kl" else tf.constant(y)
        return wrong, getattr(losses, loss)(logits, target).numpy()

    (broken, loss_of_one), (broken_by_five, loss_of_five) = value(1), value(5)
    assert (broken_by_five >= broken).all()
    assert broken_by_five.sum() > broken.sum()
    assert (loss_of_five >= loss_of_one - 1e-5)[~broken_by_five].all()


def test_restart_that_broke_the_example_is_kept() -> None:
    """Class 1 wins on [0.5, 0.6] only, where the loss is lower than at other starts."""

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


def test_same_seed_gives_the_same_images(curved: Any) -> None:
    threat, second_seed = Threat("linf", 0.1), noise.seed_for(0, 1, "test")
    for attack in (FGSM(), PGD(steps=2), PGD(steps=2, restarts=2), PGD(steps=1, start="normal")):
        first = run(attack, curved, threat)
        np.testing.assert_array_equal(run(attack, curved, threat), first)
        assert (run(attack, curved, threat, seed=second_seed) != first).any()


def test_kl_has_no_gradient_at_the_image_and_grows_from_a_start(curved: Any) -> None:
    """KL(p(x) || p(x')) has its minimum at x' = x and grows from a random start."""
    threat, start, x = Threat("linf", 0.1), noise.fold(SEED, 0), tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = losses.kl(curved(x), reference=curved(X))
    assert np.abs(tape.gradient(value, x)).max() < 1e-5  # rounding
    x_adv = run(PGD(steps=3, step_size=0.01, loss="kl"), curved, threat)
    before = losses.kl(curved(threat.random_start(x, start)), curved(X))
    assert (losses.kl(curved(x_adv), curved(X)) > before).numpy().all()


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        (FGSM(), 1),
        (FGSM(loss="kl"), 2),  # one for the clean prediction
        (PGD(steps=7), 7),
        (PGD(steps=7, loss="kl"), 8),
        (PGD(steps=7, success="any"), 8),  # one for the last image
        (PGD(steps=4, restarts=3), 15),  # one for the loss of each of the three last images
    ],
)
def test_number_of_passes_through_the_network(network: Any, attack: Any, passes: int) -> None:
    counted = Counted(network)
    run(attack, counted, Threat("linf", 0.1))
    assert counted.calls == passes


def test_attack_is_traced_once_for_all_eps_and_seeds(curved: Any) -> None:
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


def test_maximise_reaches_the_optimum_of_an_objective() -> None:
    """The maximum of sum(c x) is at x + eps * sign(c), and no gradient flows through the result."""
    x, threat = tf.constant(X), Threat("linf", 0.1, WIDE)
    c = tf.constant(np.random.default_rng(1).normal(size=X.shape).astype("float32"))

    def objective(images: Any) -> Any:
        return tf.reduce_sum(c * images, axis=(1, 2, 3))

    with tf.GradientTape() as tape:
        tape.watch(x)
        best = PGD(success="any").maximise(objective, x, threat=threat, seed=SEED)
        total = tf.reduce_sum(best)
    np.testing.assert_allclose(best, X + 0.1 * np.sign(c), atol=1e-6)
    assert tape.gradient(total, x) is None


def test_images_may_be_arrays_and_labels_any_integers(network: Any) -> None:
    for attack in (FGSM(start="none"), PGD(steps=1, start="none"), PGD(steps=2, loss="margin")):
        for y in (Y, Y.astype("uint8"), Y.astype("int64"), list(Y)):
            x_adv = attack(network, X, y, threat=Threat("linf", 0.1, WIDE), seed=(0, 1))
            np.testing.assert_allclose(x_adv, X + 0.1 * SIGN, atol=1e-6)


def test_nan_gradients_leave_finite_images() -> None:
    """sqrt(x - 0.5) is NaN below 0.5, and those pixels do not move."""

    def nan(x: Any) -> Any:
        return tf.stack([tf.sqrt(x[:, 0, 0, 0] - 0.5), x[:, 0, 0, 0]], axis=1)

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
        (lambda: PGD(step_size=-1), "step_size: expected a number > 0, received -1"),
        (lambda: PGD(step_size="big"), "step_size: expected a number or a fraction"),
        (lambda: PGD(success="first"), "success: expected one of any, last, received 'first'"),
        (lambda: PGD(loss="cross_entrpy"), "(did you mean 'cross_entropy'?)"),
        (lambda: FGSM(start="uniforn"), "(did you mean 'uniform'?)"),
        (lambda: FGSM(step_scale=0), "step_scale: expected a number > 0, received 0"),
    ],
)
def test_mistakes_are_one_line(make: Callable[[], Any], message: str) -> None:
    assert message in error_line(make)


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


def transferred_pgd(step_size: Any) -> Transfer:
    """Return PGD on a network in another folder."""
    return Transfer("somewhere", PGD(step_size=step_size))


@pytest.mark.parametrize(
    ("threat", "shape", "step", "line"),
    [
        (Threat("linf", 0.03), None, 2, "[0, 1], received 2 (did you mean 2/255?)"),
        (Threat("linf", 0.03, (-1, 1)), (9, 9, 3), 4, "[-1, 1], received 4 (did you mean 8/255?)"),
        (Threat("linf", 8, (0, 255)), None, 300, "[0, 255], received 300"),
        (Threat("l2", 0.5), (3, 3, 1), 3.01, "[0, 1], received 3.01 (did you mean 3.01/255?)"),
        (Threat("l1", 12), (3, 3, 1), 9.5, "[0, 1], received 9.5 (did you mean 9.5/255?)"),
        (Threat("linf", 0.03), None, 1, None),  # as long as the side of the box
        (Threat("linf", 8, (0, 255)), None, 255, None),
        (Threat("l2", 0.5), (3, 3, 1), 3, None),  # as long as the diagonal of the box, sqrt(9)
        (Threat("l1", 12), (3, 3, 1), 9, None),
        (Threat("l2", 0.5), None, 100, None),  # the size of the images is unknown
        (Threat("linf", 0.03), None, None, None),
    ],
)
@pytest.mark.parametrize("make", [PGD, MultiTargeted, transferred_pgd])
def test_step_longer_than_the_box_is_refused(
    make: Any, threat: Threat, shape: Any, step: Any, line: str | None
) -> None:
    attack = make(step_size=step)
    if line is None:
        attack.check(threat, shape)
    else:
        key = "attack.step_size" if isinstance(attack, Transfer) else "step_size"
        message = error_line(lambda: attack.check(threat, shape))
        assert message == f"{key}: expected a step within the box {line}"


def test_evaluation_refuses_a_step_longer_than_the_box() -> None:
    attacks = ["fgsm", {"name": "pgd", "step_size": 2}]
    line = error_line(lambda: list_attacks(attacks, Threat("linf", 0.03)))
    assert line.startswith("attacks[1].step_size: ") and " 2/255" in line


def test_a_step_that_is_a_tensor_is_not_compared_with_the_box() -> None:
    PGD(step_size=tf.constant(5.0)).check(Threat("linf", 0.03))


def test_steps_that_together_hardly_move_an_image_are_refused() -> None:
    line = error_line(lambda: PGD(step_size="2/255").check(Threat("linf", 8, (0, 255))))
    assert line.endswith("reach 5% of eps 8 or more, received 10 of 0.00784314 (did you mean 2?)")
