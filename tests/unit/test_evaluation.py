"""Evaluations of networks whose results can be counted by hand.

Images have one pixel t, and class 1 is predicted where t > 0.5, so an image at distance d from 0.5
is broken exactly when eps > d.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tests.products import slow_but
from tfrobust import FGSM, PGD, Attack, Threat
from tfrobust.attacks import APGD, Outcome
from tfrobust.evaluation import (
    Evaluation,
    ListedAttack,
    adversaries,
    eps_curve,
    evaluate,
    landscape,
    least_eps,
    list_attacks,
    margins,
    predictor,
    run,
    valley,
    worst_case,
)

# Distances 0.4, 0.3, 0.2, 0.1 below and above 0.5.
T = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8], np.float32)
X, Y = T.reshape(-1, 1, 1, 1), (T > 0.5).astype(np.int32)
Y[1] = 1  # the network is wrong on this clean image
FULL = FGSM(start="none", step_scale=1.0)  # at eps 0.25 breaks 0.3, 0.4, 0.6 and 0.7
HALF = FGSM(start="none", step_scale=0.5)  # at eps 0.25 breaks 0.4 and 0.6


def network(x: Any) -> Any:
    """Return the logits 0.5 - t and t - 0.5."""
    t = tf.reshape(x, [-1])
    return tf.stack([0.5 - t, t - 0.5], axis=1)


def results(
    threat: Threat, *attacks: ListedAttack, logits_fn: Any = network, **options: Any
) -> Any:
    """Return the clean result and that of each attack on X."""
    options = {"mode": "each", "progress": False} | options
    return list(run(logits_fn, X, Y, threat, attacks, **options))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_counts_are_exact_with_a_partial_last_batch(batch_size: int) -> None:
    fgsm = ListedAttack(FULL, "fgsm", examples=99)  # more than the images take all of them
    clean, attacked = results(Threat("linf", 0.25), fgsm, batch_size=batch_size)
    np.testing.assert_array_equal(clean.robust, [1, 0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(attacked.robust, [1, 0, 0, 0, 0, 0, 1])
    assert (clean.name, attacked.name) == ("clean", "fgsm")
    assert clean.accuracy == pytest.approx(6 / 7) and attacked.accuracy == pytest.approx(2 / 7)


def test_network_is_traced_once_for_predictions_and_twice_for_an_attack() -> None:
    """One eager pass counts the classes."""
    calls = []

    def counted(x: Any) -> Any:
        calls.append(tf.executing_eagerly())
        return network(x)

    results(Threat("linf", 0.1), ListedAttack(FULL, "fgsm"), logits_fn=counted, batch_size=3)
    assert calls == [True] + [False] * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_with_logits_that_are_not_finite_are_wrong(bad: float) -> None:
    """Class 1 would be right for these images, those above 0.65; the evaluation continues."""

    def broken(x: Any) -> Any:
        return tf.where(tf.reshape(x, [-1, 1]) > 0.65, bad, network(x))

    attack_list = (ListedAttack(FULL, "fgsm"), ListedAttack(PGD(steps=3), "pgd"))
    clean, fgsm, pgd = results(Threat("linf", 0.05), *attack_list, logits_fn=broken)
    np.testing.assert_array_equal(clean.robust, [1, 0, 1, 1, 1, 0, 0])
    assert not (fgsm.robust & ~clean.robust).any() and not (pgd.robust & ~clean.robust).any()
    assert not predictor(broken)(X)[5:].max() >= 0


@dataclasses.dataclass(frozen=True)
class Moves(Attack):
    """An attack that adds a constant, or NaN."""

    by: float = 0.0
    title = "Moves"

    def run(self, logits_fn: Any, x: Any, y: Any, *, threat: Any, seed: Any) -> Outcome:
        one = tf.ones_like(y)
        return Outcome(x + self.by, one > 0, one, one)


@pytest.mark.parametrize(
    ("by", "threat", "message"),
    [
        (0.100003, Threat("linf", 0.1), r"^Moves: made images at distance 0\.10.*, eps is 0\.1$"),
        (0.100003, Threat("l2", 0.1), "made images at distance"),
        (0.3, Threat("linf", 0.5), "outside the box"),
        (-0.3, Threat("linf", 0.5), "outside the box"),
        (np.nan, Threat("linf", 0.1), "not finite"),
    ],
)
def test_attack_that_leaves_the_threat_stops_the_evaluation(
    by: float, threat: Any, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        adversaries(network, X, Y, Moves(by), threat)


def test_distance_beyond_eps_by_rounding_is_accepted() -> None:
    x_adv = adversaries(network, X, Y, Moves(0.1), Threat("linf", 0.1))
    np.testing.assert_array_equal(x_adv, X + np.float32(0.1))


def test_image_that_is_wrong_when_clean_is_never_robust() -> None:
    """The image 0.2 has label 1; the attack moves it to 0.55, where class 1 is predicted."""
    listed = ListedAttack(Moves(0.35), "moves", examples=2)
    clean, moved = results(Threat("linf", 0.5), listed)
    shifted = adversaries(network, X[:2], Y[:2], listed.attack, Threat("linf", 0.5))
    np.testing.assert_array_equal(predictor(network)(shifted), Y[:2])
    np.testing.assert_array_equal(moved.robust, [1, 0])


def test_worst_case_is_over_the_attacks_that_saw_the_most_images() -> None:
    attack_list = (ListedAttack(HALF, "half"), ListedAttack(FULL, "full", examples=4))
    clean, half, full = results(Threat("linf", 0.25), *attack_list)
    np.testing.assert_array_equal(half.robust, [1, 0, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(full.robust, [1, 0, 0, 0])
    np.testing.assert_array_equal(worst_case([clean, half]), half.robust)
    np.testing.assert_array_equal(worst_case([clean, half, full]), half.robust)
    both = Evaluation([clean, half, full])
    assert both.robust_accuracy == half.accuracy and both.subsets == {4: 0.25}
    assert str(both).splitlines()[-1] == "worst case: 25.00% of the first 4"


def test_same_seed_gives_the_same_images_and_batches_differ() -> None:
    threat = Threat("linf", 0.3)

    def images(seed: int) -> np.ndarray:
        return adversaries(network, X, Y, FGSM(step_scale=0.1), threat, seed=seed, batch_size=3)

    np.testing.assert_array_equal(images(1), images(1))
    assert (images(1) != images(2)).all()
    assert len(np.unique(images(1) - X)) == 7


def test_cascade_attacks_only_images_that_are_still_robust() -> None:
    attack_list = (ListedAttack(HALF, "half"), ListedAttack(FULL, "full"))
    each = results(Threat("linf", 0.25), *attack_list)
    cascade = results(Threat("linf", 0.25), *attack_list, mode="cascade")
    assert [result.attacked for result in each] == [7, 6, 6]
    assert [result.attacked for result in cascade] == [7, 6, 4]
    for of_each, of_cascade in zip(each, cascade, strict=True):
        np.testing.assert_array_equal(of_each.robust, of_cascade.robust)
    # In the reverse order the weak attack breaks no more images; its row has the worst case.
    clean, full, half = results(Threat("linf", 0.25), *attack_list[::-1], mode="cascade")
    np.testing.assert_array_equal(half.robust, full.robust)
    assert half.attacked == 2
    assert (half.queries, half.gradients) == (4, 2)  # for each of two images a step and a query


def test_suite_is_a_cascade_with_a_row_of_its_own() -> None:
    suite = [ListedAttack(HALF, "S: half", suite="S"), ListedAttack(FULL, "S: full", suite="S")]
    before, after = ListedAttack(FULL, "before"), ListedAttack(HALF, "after")
    rows = results(Threat("linf", 0.25), before, *suite, after)
    assert [row.name for row in rows] == ["clean", "before", "S: half", "S: full", "S", "after"]
    assert [row.attacked for row in rows] == [7, 6, 6, 4, 6, 6]
    np.testing.assert_array_equal(rows[4].robust, [1, 0, 0, 0, 0, 0, 1])
    assert rows[4].queries == rows[2].queries + rows[3].queries


def test_finished_results_are_not_repeated() -> None:
    attack_list = (ListedAttack(HALF, "half"), ListedAttack(FULL, "full"))
    straight = results(Threat("linf", 0.25), *attack_list, mode="cascade")
    calls = []

    def counted(x: Any) -> Any:
        calls.append(1)
        return network(x)

    again = results(
        Threat("linf", 0.25), *attack_list, mode="cascade", logits_fn=counted, finished=straight[:2]
    )
    # Four calls count the classes, trace an attack twice and predict its images; none is clean.
    assert len(calls) == 4 and again[:2] == straight[:2]
    for part in ("robust", "attacked"):  # only images that the finished attack left are attacked
        np.testing.assert_array_equal(getattr(again[2], part), getattr(straight[2], part))


def test_images_of_a_result_are_those_that_broke_first() -> None:
    """The half step breaks 0.4 and 0.6, the full step 0.3 and 0.7; 0.2 is wrong when clean."""
    threat = Threat("linf", 0.25)
    result = evaluate(network, X, Y, threat, [HALF, FULL], images=True, check=False)
    moved = result.images.ravel() - T
    np.testing.assert_allclose(moved, [0.25, 0.0, 0.25, 0.125, -0.125, -0.25, -0.25], atol=1e-6)
    broken = predictor(network)(result.images) != Y
    np.testing.assert_array_equal(broken, ~result.robust)


def test_evaluate_prints_one_line_for_each_attack() -> None:
    threat = Threat("linf", 0.25)
    attack = {"name": "fgsm", "start": "none", "label": "FGSM"}
    result = evaluate(network, X, Y, threat, attack, check=False)
    assert result.clean_accuracy == pytest.approx(6 / 7)
    assert result.robust_accuracy == pytest.approx(2 / 7)
    assert str(result) == "clean: 85.71% of 7\nFGSM: 28.57% of 7\nworst case: 28.57% of 7"


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ([ListedAttack(FULL, "a")] * 2, "attacks: expected attacks whose labels differ"),
        ([ListedAttack(FULL, "clean")], "expected labels other than allow_pickle, clean, "),
        ([{"name": "pgd", "examples": 0}], "attacks[0].examples: expected int >= 1, received 0"),
        ([{"name": "pgd", "step": 3}], "attacks[0].step: unknown key"),
        ([{"name": "autoattack", "version": "standrd"}], "(did you mean 'standard'?)"),
        ("autoatack", "did you mean 'autoattack'"),
        ({"name": "pgd", "label": "AutoAttack"}, "attacks[0].label: expected a label that does "),
        ([{"steps": 3}], "attacks[0]: expected a mapping with 'name'"),
    ],
)
def test_mistakes_are_one_line(attacks: Any, message: str) -> None:
    line = error_line(lambda: evaluate(network, X, Y, Threat("linf", 0.1), attacks))
    assert message in line


def test_attacks_and_budgets_of_the_suites_autoattack_and_paper() -> None:
    linf = Threat("linf", 0.3)
    standard = list_attacks("autoattack", linf)
    attacks = [row.attack for row in standard]
    assert [row.name for row in standard] == [f"AutoAttack: {attack.title}" for attack in attacks]
    assert len(standard) == 4 and {row.suite for row in standard} == {"AutoAttack"}
    plus = list_attacks({"name": "autoattack", "version": "plus"}, linf)
    assert set(attacks) - {APGD()} < {row.attack for row in plus}
    assert len(plus) == 6 and {row.suite for row in plus} == {"AutoAttack plus"}
    first, second, *rest = (row.attack for row in list_attacks("autoattack", Threat("l1", 12.0)))
    assert (first.restarts, second.targets) == (5, 5)  # as in the public code
    assert rest == attacks[2:]
    both = list_attacks(["autoattack", {"name": "autoattack", "label": "AA"}], linf)
    assert [row.name for row in both[4:]] == [f"AA (AutoAttack): {a.title}" for a in attacks]
    assert {row.suite for row in both} == {"AutoAttack", "AA (AutoAttack)"}
    small, full = (list_attacks({"name": "paper", "budget": b}, linf) for b in ("small", "paper"))
    assert small == list_attacks("paper", linf)
    assert [row.name for row in small] == [row.name for row in full]
    assert {row.examples for row in full if row.name != "RayS"} == {None}
    assert small[1].attack.step_size == 0.01
    cifar = list_attacks("paper", Threat("linf", "8/255"))
    assert cifar[1].attack.step_size == pytest.approx(0.007)
    assert "RayS" not in [row.name for row in list_attacks("paper", Threat("l2", 0.5))]


def test_batch_that_does_not_fit_into_memory_is_one_line() -> None:
    def logits(images: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    x, y = np.full((20, 2, 2, 1), 0.5, np.float32), np.zeros(20, np.int32)
    options: Any = {"batch_size": 10, "check": False}
    line = error_line(lambda: evaluate(logits, x, y, Threat("linf", 0.1), "fgsm", **options))
    assert line == "batch_size: expected batches that fit into memory, received 10; lower it"


def linear(weights: Any) -> Any:
    """Return the function from images [B, H, W, C] to their linear logits."""
    size, weights = len(weights), tf.constant(weights, tf.float32)
    return lambda images: tf.reshape(images, [-1, size]) @ weights


@pytest.mark.parametrize("dtype", slow_but(["float16", "float64"], ["float16"]))
def test_every_attack_runs_on_a_network_of_another_dtype(dtype: str) -> None:
    x = np.random.default_rng(0).random((20, 2, 2, 1)).astype("float32")
    weights = tf.constant(np.random.default_rng(1).normal(size=(4, 5)), dtype)

    def logits(images: Any) -> Any:
        return tf.cast(tf.reshape(images, [-1, 4]), dtype) @ weights

    y = np.argmax(logits(x), axis=1)
    attacks = ["fgsm", {"name": "pgd", "steps": 3, "success": "any"}, {"name": "apgd", "steps": 4}]
    attacks += [{"name": "fab", "steps": 3}, {"name": "multi_targeted", "steps": 2}]
    attacks += [{"name": "square", "queries": 9}, {"name": "rays", "queries": 9}]
    result = evaluate(logits, x, y, Threat("linf", 0.2), attacks, check=False)
    assert result.robust_accuracy < 1
    assert str(result).splitlines()[-1] == f"worst case: {result.robust_accuracy:.2%} of 20"


def test_box_from_0_to_255_allows_its_larger_rounding() -> None:
    """The rounding error of float32 is in proportion to the pixels."""
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype("float32")
    logits_fn = linear(np.random.default_rng(1).normal(size=(48, 3)))
    y, threat = np.argmax(logits_fn(x), axis=1), Threat("linf", 0.7, box=(0, 255))
    evaluate(logits_fn, x, y, threat, "fgsm", check=False)


def test_least_eps_is_the_first_radius_beyond_the_distance() -> None:
    """The distances are 0.4, 0.2, 0.1, 0.1, 0.2 and 0.3, and one image is wrong when clean."""
    threat, clean = Threat("linf", 0.14), np.array([1, 0, 1, 1, 1, 1, 1], bool)
    radii = 0.14 * np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2])
    least = least_eps(network, X, Y, threat, clean=clean, batch_size=3)
    np.testing.assert_array_equal(least, [np.inf, 0, *radii[[6, 3, 3, 6]], np.inf])
    rows = eps_curve(least, threat)
    assert [row.eps for row in rows] == pytest.approx(radii)
    accuracy = np.array([row.robust_accuracy for row in rows])
    np.testing.assert_allclose(7 * accuracy, [6, 6, 6, 4, 4, 4, 2, 2])
    assert {row.examples for row in rows} == {7}


def test_eps_0_gives_no_curve() -> None:
    clean = np.array([1, 0, 1, 1, 1, 1, 1], bool)
    least = least_eps(network, X, Y, Threat("linf", 0.0), clean=clean)
    np.testing.assert_array_equal(least, np.where(clean, np.inf, 0))
    assert eps_curve(least, Threat("linf", 0.0)) == []


def test_broken_image_is_not_attacked_at_larger_eps() -> None:
    """All 7 images break at the smallest eps, after 20 steps and one query for each."""
    traces, images = [], tf.Variable(0)

    def counted(x: Any) -> Any:
        traces.append(1)
        images.assign_add(tf.shape(x)[0])
        return network(x)

    near = np.full_like(X, 0.5) + 1e-3
    right = np.ones(7, bool)
    least = least_eps(counted, near, np.ones(7, np.int32), Threat("linf", 0.4), clean=right)
    np.testing.assert_allclose(least, 0.1)
    assert int(images) == 7 * 21 and len(traces) == 2


@pytest.mark.parametrize("name", slow_but(["evaluated", "evaluated_by_others"], ["evaluated"]))
def test_two_devices_give_the_results_of_one(on_two_devices: Any, name: str) -> None:
    """Each device takes a batch; images, flags, queries and gradients are equal."""
    result = on_two_devices(name)
    assert result["replicas"] == 2
    for attack, (one, two) in enumerate(zip(result["one"], result["two"], strict=True)):
        np.testing.assert_allclose(two[0], one[0], atol=1e-6, err_msg=str(attack))
        assert two[1:] == one[1:], attack
    assert any(not all(right) for _, right, *_ in result["one"])


def test_landscape_of_a_linear_network_in_closed_form() -> None:
    """For two classes the loss is the logistic loss of the margin.

    With d the difference of the weights, the margin falls by eps ||d||_1 for each unit along the
    signs of d, and by eps <d, r> along random signs r.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 2)).astype("float32")
    x, y = (0.4 + 0.2 * rng.random((3, 2, 2, 1))).astype("float32"), np.array([0, 1, 0])
    result = landscape(linear(weights), x, y, Threat("linf", 0.1), batch_size=100)
    away = (weights[:, 1 - y] - weights[:, y]).T
    at_image = np.sum(x.reshape(3, 4) * away, axis=1)
    axis, middle = result.axis, 12
    assert axis[middle] == 0 and axis[middle + 8] == 1
    along = at_image[:, None] + 0.1 * axis * np.abs(away).sum(axis=1)[:, None]
    np.testing.assert_allclose(result.margin[:, middle], along, atol=1e-5)
    np.testing.assert_allclose(result.loss, np.log1p(np.exp(result.margin)), rtol=1e-4)
    signs = np.array(list(itertools.product([-1, 1], repeat=4)))
    slopes = (result.margin[:, middle + 8, middle] - at_image) / 0.1
    for slope, expected in zip(slopes, away, strict=True):
        assert np.abs(signs @ expected - slope).min() < 1e-4
    # At eps 1 all pixels are clipped to 0 or 1.
    edge = landscape(linear(weights), x, y, Threat("linf", 1.0)).margin[:, middle, -1]
    np.testing.assert_allclose(edge, np.maximum(away, 0).sum(axis=1), rtol=1e-5)


def test_clean_and_adversarial_margins_in_closed_form() -> None:
    """The margin is |2 t - 1| where the image is right, and the attack reduces it by 2 eps."""
    result = margins(network, X, Y, Threat("linf", 0.05), batch_size=3)
    expected = np.where(Y == 1, 2 * T - 1, 1 - 2 * T)
    np.testing.assert_allclose(result["clean"], expected, atol=1e-6)
    np.testing.assert_allclose(result["adversarial"], expected - 0.1, atol=1e-6)


def test_valley_of_a_linear_network_in_closed_form() -> None:
    """For two classes the extremes are at corners of the ball.

    They are log(1 + exp(-m +- eps ||d||_1)) with the margin m and the difference d of the weights.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 2)).astype("float32")
    x, y = (0.3 + 0.4 * rng.random((6, 2, 2, 1))).astype("float32"), np.arange(6) % 2
    result = valley(linear(weights), x, y, Threat("linf", 0.1))
    away = (weights[:, 1 - y] - weights[:, y]).T
    margin, reach = -np.sum(x.reshape(6, 4) * away, axis=1), 0.1 * np.abs(away).sum(axis=1)
    for part, shift in ((result.clean, 0), (result.highest, reach), (result.lowest, -reach)):
        np.testing.assert_allclose(part, np.log1p(np.exp(shift - margin)), rtol=1e-4)
