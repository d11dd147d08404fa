"""APGD against the public AutoAttack (references/apgd.npz)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.parity.networks import EPS, digits_network, images, reference
from tests.products import slow_but
from tfrobust import Threat, losses, noise
from tfrobust.attacks import APGD
from tfrobust.attacks.apgd_steps import Halving, Sparse

NAMES = {"cross_entropy": "ce", "dlr": "dlr", "targeted_dlr": "targeted"}


REFERENCE = reference("apgd")


@pytest.fixture(scope="module")
def network() -> Any:
    """Return the network of the references."""
    return digits_network()


@pytest.mark.parametrize(
    ("p", "loss"),
    [("linf", "cross_entropy"), ("linf", "dlr"), ("l2", "cross_entropy"), ("l1", "dlr")],
)
def test_losses_of_one_run_are_those_of_autoattack(p: str, loss: str, network: Any) -> None:
    """From the same start, 40 images that stay in the batch have the same loss at every step.

    The best images are compared where the loss is not flat. One image may differ, since rounding
    decides the sign of a tiny gradient.
    """
    start, expected, best, best_value = (
        REFERENCE[f"{p}_{NAMES[loss]}_{key}"] for key in ("start", "values", "best", "value")
    )
    steps, threat, values = len(expected) - 1, Threat(p, EPS[p]), []
    x, y = (tf.constant(array[:40]) for array in images())

    def look(x_adv: Any) -> Any:
        logits = network(x_adv)
        values.append(getattr(losses, loss)(logits, y))
        return values[-1], ~losses.correct(logits, y)

    rule = Sparse(threat, tf.constant(steps)) if p == "l1" else Halving(threat, steps, 0.75)
    attack = APGD(loss=loss)
    end = attack.begin(tf.constant(start[..., None]), x, rule)
    end |= {"x": x, "queries": tf.zeros_like(y)}
    for step in range(steps + 1):
        end = attack.advance(look, tf.constant(step), end, rule, leave=False)
    assert np.shape(values) == expected.shape
    same = np.isclose(values, expected, rtol=5e-3, atol=5e-3).all(axis=0)
    same &= np.isclose(end["value"], best_value, rtol=1e-3, atol=1e-3)
    near = np.abs(end["best"].numpy()[..., 0] - best).max(axis=(1, 2)) < 2e-3
    same &= near | (np.abs(best_value) < 0.01)
    assert same.sum() >= 39


CASES = list(itertools.product(EPS, NAMES))
FAST = [("linf", "targeted_dlr"), ("l2", "dlr"), ("l1", "cross_entropy")]


@pytest.mark.parametrize("case", slow_but(CASES, FAST), ids="-".join)
def test_robust_accuracy_is_in_the_range_of_autoattack(case: tuple[str, str], network: Any) -> None:
    """The number of robust images of 200 is in the range of the reference's seeds, up to one."""
    p, loss = case
    x, y = images()
    craft = tf.function(APGD(loss=loss).run, autograph=False)
    seed = noise.seed_for(0, 0, "test")
    outcome = craft(network, x, y, threat=Threat(p, EPS[p]), seed=seed)
    counts = REFERENCE[f"robust_{p}_{NAMES[loss]}"]
    robust = losses.correct(network(outcome.images), tf.constant(y)).numpy().sum()
    assert counts.min() - 1 <= robust <= counts.max() + 1


def test_dlr_losses_are_those_of_autoattack() -> None:
    names = ("logits", "labels", "targets")
    logits, labels, targets = (tf.constant(REFERENCE[name]) for name in names)
    np.testing.assert_allclose(losses.dlr(logits, labels), REFERENCE["dlr"], rtol=1e-5)
    values = losses.targeted_dlr(logits, labels, targets)
    np.testing.assert_allclose(values, REFERENCE["targeted_dlr"], rtol=1e-5, atol=1e-6)
