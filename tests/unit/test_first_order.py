"""The first-order distance of the nearest class in closed form and by the full Jacobian."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_sanity_checks import BLACK, W, X, checks_module, honest, rounded, sample
from tfrobust import Threat
from tfrobust.evaluation import Result
from tfrobust.evaluation.first_order import first_order_distances
from tfrobust.evaluation.sanity_checks import first_order


@pytest.mark.parametrize(("norm", "q"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_first_order_distance_of_a_linear_network_in_closed_form(norm: str, q: float) -> None:
    logits = honest(X).numpy()
    order = np.sort(logits, axis=1)
    rows = np.arange(len(X))
    y = logits.argmax(axis=1)
    margin = logits[rows, y][:, None] - logits
    between = np.linalg.norm(W.T[y][:, None] - W.T[None], ord=q, axis=2)
    margin[rows, y], between[rows, y] = np.inf, 1
    distance = (margin / between).min(axis=1)
    squares = (np.linalg.norm(W.T, ord=q, axis=1) ** 2).sum()
    bound = (order[:, 2] - order[:, 1]) / np.sqrt(2 * squares)
    check = first_order(sample(honest, threat=Threat(norm, 0.05)))
    assert (bound <= distance + 1e-6).all()
    assert check.value == pytest.approx(np.median(bound), rel=1e-4)
    assert f"class is {np.median(distance):.3g} (more" in check.text
    assert f"more than eps at {(distance > 0.05).sum()} of 60" in check.text
    assert f"more than eps at {(bound > 0.05).sum()}, of" in check.text
    assert not check.warns


@pytest.mark.parametrize(
    "factors",
    [None, np.linspace(0, 2, 12).reshape(2, 2, 3)],
    ids=lambda f: "plain" if f is None else "factors",
)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_class_by_class_equal_those_of_the_full_jacobian(norm: str, factors: Any) -> None:
    """The network is not linear, and the numbers of classes and images have no common divisor.

    Factors on eps multiply the slopes of their features.
    """
    rng = np.random.default_rng(4)
    a, b = (rng.normal(size=size).astype("float32") for size in ((12, 16), (16, 7)))

    def network(x: Any) -> Any:
        return tf.tanh(tf.reshape(x, [-1, 12]) @ a) @ b

    x = tf.constant(rng.random((9, 2, 2, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = network(x)
    slopes = tape.batch_jacobian(logits, x).numpy().reshape(9, 7, 12)
    slopes *= 1 if factors is None else factors.ravel()
    y, rows, q = logits.numpy().argmax(1), np.arange(9), {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    margin = logits.numpy()[rows, y][:, None] - logits.numpy()
    between = np.linalg.norm(slopes[rows, y][:, None] - slopes, ord=q, axis=2)
    margin[rows, y], between[rows, y] = np.inf, 1
    squares = (np.linalg.norm(slopes, ord=q, axis=2) ** 2).sum(1)
    graph = tf.function(first_order_distances, autograph=False)
    for function in (first_order_distances, graph):
        threat = Threat(norm, per_feature=factors)
        bound, distance = function(network, x, tf.constant(y, tf.int32), threat)
        np.testing.assert_allclose(distance, (margin / between).min(1), rtol=1e-4)
        np.testing.assert_allclose(bound, margin.min(1) / np.sqrt(2 * squares), rtol=1e-4)


def test_first_order_takes_blocks_of_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block has 3 images of 4 pixels, and the network is traced once."""
    sizes, traces = [], []

    def counted(x: Any) -> Any:
        tf.py_function(lambda size: sizes.append(int(size)), [tf.shape(x)[0]], [])
        traces.append(1)
        return honest(x)

    expected = first_order(sample(honest))
    look = sample(counted)
    sizes.clear()
    traces.clear()
    monkeypatch.setattr(checks_module, "PIXELS", 12)
    result = first_order(look)
    assert result.value == pytest.approx(expected.value, rel=1e-6) and result.text == expected.text
    assert sizes == [3] * 20 and traces == [1]


def test_first_order_warns_of_broken_images_with_infinite_distance() -> None:
    clean = Result("clean", np.ones(60, bool), 0.0)
    broken = Result("Square", np.arange(60) >= 7, 0.0, BLACK, 60, 60)
    check = first_order(sample(rounded, results=[clean, broken]))
    assert check.warns and "attacks broke 7)" in check.text
    assert check.value is None  # stands for infinity in JSON
    json.dumps(check.value, allow_nan=False)
