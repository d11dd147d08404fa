"""Counts of an evaluation, exact, on networks whose answers are known.

One pixel t: class 1 where t > 0.5. Class of an image at distance d from 0.5 breaks exactly when
eps > d.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import FGSM, PGD, Attack, Threat
from tfrobust.evaluation import Trial, adversaries, evaluate, predictor, worst_case
from tfrobust.registry import UserError

# Distances 0.4, 0.3, 0.2, 0.1 below and above 0.5.
T = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8], np.float32)
X, Y = T.reshape(-1, 1, 1, 1), (T > 0.5).astype(np.int32)
Y[1] = 1  # wrong on the clean image: never robust, whatever an attack does to it
PLAIN = FGSM(start="none", step_scale=1.0)


def network(x: Any) -> Any:
    t = tf.reshape(x, [-1])
    return tf.stack([0.5 - t, t - 0.5], axis=1)


def flags(threat: Threat, *trials: Trial, logits_fn: Any = network, **options: Any) -> list[Any]:
    return list(evaluate(logits_fn, X, Y, threat, trials, progress=False, **options))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_exact_counts_with_a_partial_last_batch(batch_size: int) -> None:
    threat = Threat("linf", 0.25)
    clean, attacked = flags(threat, Trial(PLAIN, "fgsm"), batch_size=batch_size)
    np.testing.assert_array_equal(clean.robust, [1, 0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(attacked.robust, [1, 0, 0, 0, 0, 0, 1])
    assert (clean.name, attacked.name) == ("clean", "fgsm")
    assert clean.accuracy == pytest.approx(6 / 7) and attacked.accuracy == pytest.approx(2 / 7)


def test_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images in batches of three: one shape for predictions, one for the attack."""
    calls = []

    def counted(x: Any) -> Any:
        calls.append(tf.executing_eagerly())
        return network(x)

    flags(Threat("linf", 0.1), Trial(PLAIN, "fgsm"), logits_fn=counted, batch_size=3)
    assert calls == [False, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_wrong(bad: float) -> None:
    """Everywhere above 0.65, where class 1 is right: no credit, and the evaluation goes on."""

    def broken(x: Any) -> Any:
        return tf.where(tf.reshape(x, [-1, 1]) > 0.65, bad, network(x))

    trials = (Trial(PLAIN, "fgsm"), Trial(PGD(steps=3), "pgd"))
    clean, fgsm, pgd = flags(Threat("linf", 0.05), *trials, logits_fn=broken)
    np.testing.assert_array_equal(clean.robust, [1, 0, 1, 1, 1, 0, 0])
    assert not (fgsm.robust & ~clean.robust).any() and not (pgd.robust & ~clean.robust).any()
    assert not predictor(broken)(X)[5:].max() >= 0


@dataclasses.dataclass(frozen=True)
class Moves(Attack):
    """Adds a constant, or NaN."""

    by: float = 0.0
    title = "Moves"

    def __call__(self, logits_fn: Any, x: Any, y: Any, *, threat: Any, seed: Any) -> Any:
        return x + self.by


@pytest.mark.parametrize(
    ("by", "threat", "message"),
    [
        (0.101, Threat("linf", 0.1), r"^Moves: made images at distance 0\.10.*, eps is 0\.1$"),
        (0.101, Threat("l2", 0.1), "made images at distance"),
        (0.3, Threat("linf", 0.5), "outside the box"),
        (-0.3, Threat("linf", 0.5), "outside the box"),
        (np.nan, Threat("linf", 0.1), "not finite"),
    ],
)
def test_an_attack_that_cheats_stops_the_evaluation(by: float, threat: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        adversaries(network, X, Y, Moves(by), threat)


def test_rounding_is_no_cheating() -> None:
    x_adv = adversaries(network, X, Y, Moves(0.1), Threat("linf", 0.1))
    np.testing.assert_array_equal(x_adv, X + np.float32(0.1))


def test_clean_mistakes_stay_mistakes() -> None:
    """0.2 has label 1 and is wrong; moved to 0.55 it is called 1, which counts for nothing."""
    trial = Trial(Moves(0.35), "moves", examples=2)
    clean, moved = flags(Threat("linf", 0.5), trial)
    shifted = adversaries(network, X[:2], Y[:2], trial.attack, Threat("linf", 0.5))
    np.testing.assert_array_equal(predictor(network)(shifted), Y[:2])
    np.testing.assert_array_equal(moved.robust, [1, 0])


def test_worst_case_over_the_images_that_all_saw() -> None:
    trials = (
        Trial(dataclasses.replace(PLAIN, step_scale=0.5), "half"),  # breaks 0.4 and 0.6
        Trial(PLAIN, "whole", examples=4),
    )
    clean, half, whole = flags(Threat("linf", 0.25), *trials)
    np.testing.assert_array_equal(half.robust, [1, 0, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(whole.robust, [1, 0, 0, 0])
    np.testing.assert_array_equal(worst_case([clean, half]), half.robust)
    np.testing.assert_array_equal(worst_case([clean, half, whole]), [1, 0, 0, 0])


def test_more_examples_than_there_are() -> None:
    *_, attacked = flags(Threat("linf", 0.1), Trial(PLAIN, "fgsm", examples=99))
    assert len(attacked.robust) == 7


def test_the_seed_decides_the_images() -> None:
    threat = Threat("linf", 0.3)

    def images(seed: int) -> np.ndarray:
        return adversaries(network, X, Y, FGSM(step_scale=0.1), threat, seed=seed, batch_size=3)

    np.testing.assert_array_equal(images(1), images(1))
    assert (images(1) != images(2)).all()
    start = images(1) - X
    assert len(np.unique(start)) == 7  # every batch has noise of its own


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda t: flags(t, Trial(PLAIN, "a"), Trial(PGD(), "a")), "attacks: expected names that"),
        (lambda t: flags(t, Trial(PLAIN, "clean")), "attacks: expected names that differ"),
        (lambda t: list(evaluate(network, X * 255, Y, t, [])), "x: expected images in [0, 1], rec"),
        (lambda t: list(evaluate(network, X.astype("float64"), Y, t, [])), "x: expected float32"),
        (lambda t: list(evaluate(network, X, Y[:, None], t, [])), "y: expected 7 class numbers"),
        (lambda t: list(evaluate(network, X[:0], Y[:0], t, [])), "x: expected at least one image"),
    ],
)
def test_mistakes_are_one_line(run: Callable[[Threat], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(Threat("linf", 0.1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
