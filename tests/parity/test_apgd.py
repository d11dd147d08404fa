"""APGD against the public AutoAttack (references/apgd.npz)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.parity.networks import EPS, REFERENCES, digits_network, images
from tests.products import slow_but
from tfrobust import Threat, losses, noise
from tfrobust.attacks import APGD
from tfrobust.attacks.apgd_steps import Halving, Sparse

NAMES = {"cross_entropy": "ce", "dlr": "dlr", "targeted_dlr": "targeted"}


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCES / "apgd.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def network() -> Any:
    return digits_network()


@pytest.mark.parametrize(
    ("p", "loss"),
    [("linf", "cross_entropy"), ("linf", "dlr"), ("l2", "cross_entropy"), ("l1", "dlr")],
)
def test_one_run_from_the_same_start(
    p: str, loss: str, network: Any, reference: dict[str, np.ndarray]
) -> None:
    """The loss at every step is that of the reference, for 40 images that stay in the batch.

    The best images are compared where the loss is not flat. One image may differ, since rounding
    decides the sign of a tiny gradient.
    """
    run = {k: reference[f"{p}_{NAMES[loss]}_{k}"] for k in ("start", "values", "best", "value")}
    steps, threat, values = len(run["values"]) - 1, Threat(p, EPS[p]), []
    x, y = (tf.constant(a[:40]) for a in images())

    def look(x_adv: Any) -> Any:
        logits = network(x_adv)
        values.append(getattr(losses, loss)(logits, y))
        return values[-1], ~losses.correct(logits, y)

    rule = Sparse(threat, tf.constant(steps)) if p == "l1" else Halving(threat, steps, 0.75)
    attack = APGD(loss=loss)
    end = attack.begin(tf.constant(run["start"][..., None]), x, rule)
    end |= {"x": x, "queries": tf.zeros_like(y)}
    for k in range(steps + 1):
        end = attack.advance(look, tf.constant(k), end, rule, leave=False)
    assert np.shape(values) == run["values"].shape
    same = np.isclose(values, run["values"], rtol=5e-3, atol=5e-3).all(axis=0)
    same &= np.isclose(end["value"], run["value"], rtol=1e-3, atol=1e-3)
    near = np.abs(end["best"].numpy()[..., 0] - run["best"]).max(axis=(1, 2)) < 2e-3
    same &= near | (np.abs(run["value"]) < 0.01)
    assert same.sum() >= 39


CASES = list(itertools.product(EPS, NAMES))
FAST = [("linf", "targeted_dlr"), ("l2", "dlr"), ("l1", "cross_entropy")]


@pytest.mark.parametrize("case", slow_but(CASES, FAST), ids="-".join)
def test_robust_accuracy(
    case: tuple[str, str], network: Any, reference: dict[str, np.ndarray]
) -> None:
    """As many of 200 images stay right as under the reference's seeds, give or take one."""
    p, loss = case
    attack, (x, y) = APGD(loss=loss), images()
    craft = tf.function(attack.run, autograph=False)
    seed = noise.seed_for(0, 0, "test")
    done = craft(network, x, y, threat=Threat(p, EPS[p]), seed=seed)
    counts = reference[f"robust_{p}_{NAMES[loss]}"]
    right = losses.correct(network(done.images), tf.constant(y))
    assert counts.min() - 1 <= int(tf.reduce_sum(tf.cast(right, tf.int32))) <= counts.max() + 1


def test_dlr_of_random_logits(reference: dict[str, np.ndarray]) -> None:
    logits, labels, targets = (
        tf.constant(reference[name]) for name in ("logits", "labels", "targets")
    )
    np.testing.assert_allclose(losses.dlr(logits, labels), reference["dlr"], rtol=1e-5)
    values = losses.targeted_dlr(logits, labels, targets)
    np.testing.assert_allclose(values, reference["targeted_dlr"], rtol=1e-5, atol=1e-6)
