"""Threats with a factor on eps for each feature, on tables, series and images.

No attack and no method moves a feature that cannot change, or any other beyond its own eps.
"""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tests.products import slow_but
from tfrobust import Threat, losses, noise
from tfrobust.attacks import ATTACKS, FAB, PGD, Square
from tfrobust.attacks.apgd_steps import Sparse
from tfrobust.attacks.fab import nearest_boundary
from tfrobust.evaluation.image_checks import check_adversarial
from tfrobust.gate import check_threat
from tfrobust.jacobian import squared_jacobian
from tfrobust.norms import DUAL
from tfrobust.registry import build

SEED = noise.seed_for(0, 0, "test")
SHAPES = {"table": (9,), "series": (5, 2), "image": (3, 3, 2)}
EPS = {"linf": 0.2, "l2": 0.5, "l1": 1.2}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
SMALL: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 10},
    "eot": {"attack": {"name": "pgd", "steps": 4}, "samples": 2},
    "fab": {"steps": 5},
    "multi_targeted": {"steps": 4},
    "pgd": {"steps": 4},
    "rays": {"queries": 40},
    "square": {"queries": 25},
}
NAMES = [name for name in ATTACKS if name not in ("bpda", "saved_images", "transfer")]
CASES = {
    f"{name} {norm} {form}": (name, norm, form)
    for name in [*NAMES, "fab untargeted"]
    for norm in EPS
    for form in SHAPES
    if name != "rays" or norm == "linf"
}
FAST = [case for case in CASES if case.endswith("linf table") or case == "square l2 series"]


def factors_for(shape: tuple[int, ...]) -> np.ndarray:
    """Return factors 0, 0.1 to 2 in an irregular order; a third of the features cannot change."""
    factors = np.random.default_rng(3).uniform(0.1, 2.0, shape).astype("float32")
    factors.ravel()[::3] = 0.0
    return factors


def linear(weights: np.ndarray) -> Any:
    """Return logits x @ weights, [D, C], of inputs of any shape with D features."""
    return lambda x: tf.reshape(x, [-1, len(weights)]) @ tf.constant(weights, tf.float32)


def scaled_distance(x_adv: np.ndarray, x: np.ndarray, threat: Threat) -> np.ndarray:
    """Return ||(x_adv - x) / factors||_p in float64, after an assertion that no other moved."""
    factors = threat.factors(x.shape[1:])
    assert factors is not None
    delta = (x_adv.astype(float) - x.astype(float)).reshape(len(x), -1)
    free = factors.ravel() > 0
    assert not delta[:, ~free].any()
    return np.linalg.norm(delta[:, free] / factors.ravel()[free], ORDER[threat.norm], axis=1)


@pytest.mark.parametrize("case", slow_but(CASES, FAST))
def test_no_attack_moves_a_feature_beyond_its_eps(case: str) -> None:
    name, norm, form = CASES[case]
    attack: Any = FAB(steps=5, targets=None) if " " in name else None
    attack = attack or build(ATTACKS, {"name": name, **SMALL.get(name, {})}, "attack")
    shape = SHAPES[form]
    rng = np.random.default_rng(0)
    x = rng.random((20, *shape)).astype("float32")
    x[0], x[1] = 0.0, 1.0
    network = linear(rng.normal(size=(int(np.prod(shape)), 3)))
    y = tf.argmax(network(x), axis=1, output_type=tf.int32)
    threat = Threat(norm, EPS[norm], per_feature=factors_for(shape))
    outcome = attack.run(network, tf.constant(x), y, threat=threat, seed=SEED)
    images = outcome.images.numpy()
    assert scaled_distance(images, x, threat).max() <= EPS[norm] + 1e-5
    check_adversarial(name, threat, images, x)
    assert (images != x).any() and images.min() >= 0 and images.max() <= 1
    wrong = tf.argmax(network(images), axis=1, output_type=tf.int32) != y
    np.testing.assert_array_equal(outcome.success, wrong)
    before, after = (np.mean(losses.cross_entropy(network(z), y)) for z in (x, images))
    assert after > before


WEIGHTS = np.random.default_rng(5).normal(size=(9, 2)).astype("float32")
FACTORS = factors_for((9,))
WIDE = (-50.0, 50.0)
DUAL_ORDER = {norm: ORDER[dual] for norm, dual in DUAL.items()}


def nearest(norm: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of the boundary of the linear network, |z_y - z_t| / ||w g||_dual."""
    slope = WEIGHTS[:, 0] - WEIGHTS[:, 1]
    return np.abs(x @ slope) / np.linalg.norm(FACTORS * slope, DUAL_ORDER[norm])


@pytest.mark.parametrize("norm", slow_but(EPS, ["linf"]))
def test_attacks_on_a_linear_network_succeed_from_the_exact_distance_on(norm: str) -> None:
    """In a wide box every gradient attack breaks exactly the rows whose distance is below eps."""
    rng = np.random.default_rng(1)
    x, network = rng.normal(size=(40, 9)).astype("float32"), linear(WEIGHTS)
    y = tf.argmax(network(x), axis=1, output_type=tf.int32)
    exact = nearest(norm, x, y.numpy())
    eps = float(np.median(exact))
    threat = Threat(norm, eps, WIDE, FACTORS)
    clear = np.abs(exact - eps) > 0.02 * eps
    for attack in (PGD(steps=60, success="any"), FAB(steps=10)):
        outcome = attack.run(network, tf.constant(x), y, threat=threat, seed=SEED)
        np.testing.assert_array_equal(outcome.success.numpy()[clear], (exact < eps)[clear])
    end = FAB(steps=10).search(network, x, y, threat=threat.at(0.0), seed=SEED)
    np.testing.assert_allclose(end["distance"], 1.05 * exact, rtol=0.06)


@pytest.mark.parametrize("form", slow_but(["table", "series"], ["table"]))
def test_square_reaches_the_optimal_corner(form: str) -> None:
    """The optimum of a linear network under Linf is x - factor * eps * sign(slope), features at
    the ends among them."""
    shape = SHAPES[form]
    factors = np.where(np.arange(np.prod(shape)) == 4, 0.0, 1.0).reshape(shape)
    weights = np.random.default_rng(2).normal(size=(int(np.prod(shape)), 2))
    x, y = np.full((8, *shape), 0.5, np.float32), np.zeros(8, int)
    network = linear(weights)
    threat = Threat("linf", 0.25, per_feature=factors)

    def never_wrong(z: tf.Tensor) -> tf.Tensor:
        return network(z) + tf.constant([1e3, 0.0])  # so the search goes on to its last window

    @tf.function(autograph=False)
    def attacked() -> Any:
        return Square(queries=600)(never_wrong, x, y, threat=threat, seed=SEED)

    images = attacked().numpy()
    sign = np.sign(weights[:, 1] - weights[:, 0]).reshape(shape)
    np.testing.assert_allclose(images, x + 0.25 * factors * sign, atol=1e-6)


def test_factors_by_hand() -> None:
    """Of (0.5, -0.5, 0.5) at eps 0.2 remain (0.2, 0, 0.1), and the distance is 0.2 / 1 = 0.2."""
    threat = Threat("linf", 0.2, per_feature=[1, 0, 0.5])
    x = tf.constant([[0.5, 0.5, 0.5]])
    moved = threat.project(tf.constant([[1.0, 0.0, 1.0]]), x)
    np.testing.assert_allclose(moved, [[0.7, 0.5, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(threat.distance(moved, x), [0.2], rtol=1e-6)
    assert np.isinf(threat.distance(tf.constant([[0.5, 0.50001, 0.5]]), x).numpy()).all()
    steepest = threat.steepest(tf.constant([[3.0, 9.0, -1.0]]))
    np.testing.assert_array_equal(steepest, [[1.0, 0.0, -0.5]])
    l1 = Threat("l1", 1.0, per_feature=[1, 0, 4]).steepest(tf.constant([[3.0, 9.0, -1.0]]))
    np.testing.assert_array_equal(l1, [[0.0, 0.0, -4.0]])  # |4 * -1| is the largest


def test_apgd_for_l1_moves_the_feature_that_is_steepest_by_its_factor() -> None:
    """The slopes 3 and 2 are 1.5 and 2 after the factors 0.5 and 1."""
    threat, x = Threat("l1", 1.0, WIDE, per_feature=[0.5, 1]), tf.zeros([1, 2])
    state = {"x": x, "x_adv": x, "step": tf.constant([0.5]), "changed": tf.constant([1.0])}
    rule, slope = Sparse(threat, tf.constant(10)), tf.constant([[3.0, 2.0]])
    moved = rule.move(tf.constant(0), state, slope)["x_adv"]
    np.testing.assert_allclose(moved, [[0.0, 0.5]], rtol=1e-5)


def test_fab_takes_the_boundary_that_is_nearest_by_the_factors() -> None:
    """3 a - 1 and 2 b - 1 are 0 at a distance of 1 / 0.3 and 1 / 2, with the factors 0.1 and 1."""
    network = lambda x: tf.stack([0 * x[:, 0], 3 * x[:, 0] - 1, 2 * x[:, 1] - 1], axis=1)  # noqa: E731
    threat, label = Threat("linf", 0.1, per_feature=[0.1, 1]), tf.constant([0])
    value, slope = nearest_boundary(network, tf.zeros([1, 2]), label, threat)
    np.testing.assert_array_equal(value, [-1.0])
    np.testing.assert_array_equal(slope, [[0.0, 2.0]])


def test_a_mapping_names_features_on_the_last_axis() -> None:
    threat = Threat("linf", 0.2, per_feature={"2": 0, 0: "1/2"})
    np.testing.assert_array_equal(threat.factors((3,)), [0.5, 1, 0])
    np.testing.assert_array_equal(threat.factors((2, 3)), [[0.5, 1, 0]] * 2)
    assert Threat("linf", 0.2).factors((3,)) is None


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_random_starts_fill_the_ball_of_the_features_that_can_change(norm: str) -> None:
    """The radius of a uniform draw in d dimensions has the median 0.5^(1/d); here d is 2."""
    threat = Threat(norm, 0.4, WIDE, per_feature=[0, 3, 0, 0, 0.5, 0])
    x = tf.zeros([4000, 6])
    distance = threat.distance(threat.random_start(x, SEED), x).numpy()
    assert np.median(distance) == pytest.approx(0.4 * 0.5**0.5, rel=0.03)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, -1], "per_feature: expected numbers >= 0, received -1.0"),
        ([0, 0], "per_feature: expected at least one number above 0"),
        ([[1, 2], [3]], "per_feature: expected an array of numbers"),
        (["a"], "per_feature: expected a number or a fraction such as 8/255, received 'a'"),
        ({}, "per_feature: expected numbers of features from 0, each with its factor"),
        ({"radius": 0}, "each with its factor, received 'radius'"),
        ({3: float("nan")}, "per_feature.3: expected a number"),
        (0.5, "per_feature: expected an array of numbers, received 0.5"),
    ],
)
def test_wrong_factors_are_one_line(value: Any, message: str) -> None:
    assert message in error_line(lambda: Threat("linf", 0.1, per_feature=value))


def test_factors_that_do_not_fit_the_inputs_are_one_line() -> None:
    for value, message in (
        ([1, 2], "numbers that broadcast to inputs (3,), received (2,)"),
        ({3: 0}, "threat.per_feature: expected features 0 to 2, received 3"),
    ):
        threat = Threat("linf", 0.1, per_feature=value)
        assert message in error_line(lambda threat=threat: check_threat(threat, (3,)))
    zeros = Threat("linf", 0.1, per_feature={0: 0, 1: 0})
    message = "threat.per_feature: expected at least one number above 0"
    assert message in error_line(lambda: check_threat(zeros, (2,)))


@pytest.mark.parametrize(("factors", "most"), [([0.01, 0.1, 0], 10), ([1, 2, 0], 0.5)])
def test_no_feature_moves_further_than_the_box_is_wide(factors: list[float], most: float) -> None:
    """The largest factor times eps, or times a step, is at most 1."""
    threat = Threat("linf", most, per_feature=factors)
    check_threat(threat, (3,))
    PGD(step_size=most).check(threat, (3,))
    message = f"eps: expected at most {most:g}, the linf width of images in [0, 1] over the largest"
    assert message in error_line(lambda: check_threat(threat.at(1.01 * most), (3,)))
    message = "step_size: expected a step within the box"
    assert message in error_line(lambda: PGD(step_size=1.01 * most).check(threat, (3,)))


@pytest.mark.parametrize("value", [[1, 0.5, 0], [[1.0], [0.0]], {2: 0}])
def test_keras_saves_and_loads_factors(value: Any) -> None:
    threat = Threat("l2", 0.5, per_feature=value)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(threat)))
    assert keras.saving.deserialize_keras_object(config) == threat


def test_the_check_of_images_measures_each_feature() -> None:
    threat = Threat("linf", 0.2, per_feature=[1, 0, 0.01])
    x = np.full((2, 3), 0.5, np.float32)
    check_adversarial("attack", threat, x + np.float32([0.2, 0, 0.002]), x)
    for delta in ([0.0, 1e-6, 0.0], [0.0, 0.0, 0.0021], [0.21, 0.0, 0.0]):
        with pytest.raises(RuntimeError, match="at distance"):
            check_adversarial("attack", threat, x + np.float32(delta), x)


def test_every_image_is_checked_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of four pixels are checked at once; the last of five is wrong."""
    monkeypatch.setattr("tfrobust.evaluation.image_checks.PIXELS", 8)
    x, threat = np.full((5, 2, 2, 1), 0.5, np.float32), Threat("linf", 0.1)
    check_adversarial("attack", threat, x + np.float32(0.1), x)
    for change, message in ((0.11, "at distance"), (0.6, "the box"), (np.nan, "not finite")):
        changed = x.copy()
        changed[4, 0] += change
        with pytest.raises(RuntimeError, match=message):
            check_adversarial("attack", threat, changed, x)


def test_the_check_of_images_leaves_room_for_rounding_in_a_wide_box() -> None:
    """In float32 200 + 0.0785 is 200.0785065; divided by the factor, 7.85 becomes 7.85065."""
    threat = Threat("linf", 7.85, (0, 255), per_feature=[0.01, 1])
    x = np.full((1, 2), 200, np.float32)
    moved = threat.project(tf.constant(x + 10), x).numpy()
    assert (moved[0, 0] - 200) / 0.01 > 7.8504
    check_adversarial("attack", threat, moved, x)
    with pytest.raises(RuntimeError, match="at distance"):
        check_adversarial("attack", threat, moved + np.float32([0.001, 0]), x)


def test_the_jacobian_counts_columns_by_their_factors() -> None:
    """The mean over the classes' unit vectors of C ||v W diag(w)||^2 is ||W diag(w)||^2."""
    threat = Threat("linf", 0.1, per_feature=FACTORS)
    x = tf.repeat(tf.constant(np.ones((1, 9), np.float32)), 2, axis=0)
    _, squared = squared_jacobian(linear(WEIGHTS), x, tf.eye(2), threat)
    expected = ((FACTORS[:, None] * WEIGHTS) ** 2).sum()
    np.testing.assert_allclose(np.mean(squared), expected, rtol=1e-5)
