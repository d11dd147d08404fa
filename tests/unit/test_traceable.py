"""A function can be attacked if TensorFlow can trace it once for all batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import PGD, Threat
from tfrobust.attacks import Square
from tfrobust.errors import UserError
from tfrobust.evaluation import craft, evaluate
from tfrobust.evaluation.crafting import check_traceable

X = np.random.default_rng(0).random((6, 2, 2, 1)).astype("float32")
W = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
SHAPE = X.shape[1:]


# The functions return logits, [B, 3], of images [B, 2, 2, 1].
def linear(x: Any) -> Any:
    return tf.reshape(x, [-1, 4]) @ W


def branches(x: Any) -> Any:
    if tf.reduce_mean(x) > 2.0:
        return linear(-x)
    return linear(x)


class Branches(keras.Layer):
    def call(self, x: Any) -> Any:
        return branches(x)


def predicts(x: Any) -> Any:
    image = keras.Input(SHAPE)
    network = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image)))
    return tf.constant(network.predict(x, verbose=0))


FAILING = {
    "if": branches,
    "if in a layer": Branches(),
    "for": lambda x: tf.concat([linear(image[None]) for image in x], 0),
    "len": lambda x: linear(x[: len(x)]),
    "static number of images": lambda x: linear(tf.reshape(x, [x.shape[0], *SHAPE])),
    "numpy()": lambda x: linear(x.numpy()),
    "logits.numpy()": lambda x: linear(x).numpy(),
    "NumPy": lambda x: linear(np.clip(x, 0, 1)),
    "predict": predicts,
}


@pytest.mark.parametrize("name", FAILING)
def test_a_function_that_cannot_be_traced_is_refused_in_one_line(name: str) -> None:
    assert FAILING[name](tf.constant(X)).shape == (6, 3)  # each works when it is called
    line = error_line(lambda: check_traceable(FAILING[name], SHAPE))
    assert line.startswith("logits_fn: expected a function that TensorFlow can trace, received one")
    assert "network(x), not network.predict(x)" in line and "tf.cond" in line
    assert "\x1b" not in line and len(line) < 600
    with pytest.raises(UserError, match="^logits_fn: expected a function that TensorFlow can"):
        craft(FAILING[name], X, np.zeros(6, int), PGD(steps=1), Threat("linf", 0.1))


def conditional(x: Any) -> Any:
    return tf.cond(tf.reduce_mean(x) > 2.0, lambda: linear(-x), lambda: linear(x))


@pytest.mark.parametrize("network", [linear, tf.function(branches), conditional])
def test_a_function_is_attacked_once_it_is_changed_as_the_error_says(network: Any) -> None:
    check_traceable(network, SHAPE)
    y = linear(X).numpy().argmax(axis=1)
    crafted = craft(network, X, y, PGD(steps=2), Threat("linf", 0.5))
    assert not crafted.right.all()


def test_logits_of_an_unknown_shape_are_refused() -> None:
    hidden = lambda x: tf.py_function(linear, [x], tf.float32)  # noqa: E731
    with pytest.raises(UserError, match="known shape .None, C. .set it with tf.ensure_shape.* rec"):
        check_traceable(hidden, SHAPE)
    check_traceable(lambda x: tf.ensure_shape(hidden(x), [None, 3]), SHAPE)


def test_a_network_without_gradients_is_attacked_by_square_but_not_by_pgd() -> None:
    """TensorFlow cannot differentiate tf.image.resize by area."""
    area = lambda x: linear(tf.image.resize(x, [2, 2], method="area"))  # noqa: E731
    y, threat = linear(X).numpy().argmax(axis=1), Threat("linf", 0.5)
    check_traceable(area, SHAPE)
    with pytest.raises(UserError, match=r"^logits_fn: .* gradients, .*ResizeArea.*square, rays"):
        craft(area, X, y, PGD(steps=2), threat)
    assert not craft(area, X, y, Square(queries=50), threat).right.all()


@pytest.fixture
def eager() -> Iterator[None]:
    """Run every tf.function eagerly."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_an_evaluation_has_the_same_results_where_functions_run_eagerly(eager: None) -> None:
    y = linear(X).numpy().argmax(axis=1)
    attacks = [PGD(steps=2), Square(queries=5)]
    result = evaluate(linear, X, y, Threat("linf", 0.1), attacks, check=False, progress=False)
    tf.config.run_functions_eagerly(False)
    expected = evaluate(linear, X, y, Threat("linf", 0.1), attacks, check=False, progress=False)
    for row, expected_row in zip(result.results, expected.results, strict=True):
        np.testing.assert_array_equal(row.robust, expected_row.robust)
