"""The checks of what a method of one's own declares, keeps and returns, and of an own attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import PGD, Threat, losses
from tfrobust.attacks import BPDA, EOT, Attack
from tfrobust.evaluation import craft
from tfrobust.methods import Adv
from tfrobust.methods.base import RobustModel

THREAT = Threat("linf", 0.1)
X = np.random.default_rng(0).random((8, 2, 2, 1)).astype("float32")
Y = np.arange(8) % 3


def network() -> keras.Model:
    layers = [keras.layers.Flatten(), keras.layers.Dense(3, name="logits")]
    return keras.Sequential([keras.Input((2, 2, 1)), *layers])


def with_terms(change: Callable[[dict[str, Any]], Any]) -> type[RobustModel]:
    """Return ADV with other terms of its loss."""

    class Own(Adv):
        def robust_loss(self, batch: Any) -> Any:
            return change(super().robust_loss(batch))

    return Own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda terms: terms | {"loss": terms["loss"][:, None]},
            "Own.robust_loss['loss']: expected one number for each example, shape (None,), "
            "received '(None, 1)'",
        ),
        (
            lambda terms: terms | {"loss": terms["loss"][:, None] * terms["loss"]},
            "Own.robust_loss['loss']: expected one number for each example, shape (None,), "
            "received '(None, None)'",
        ),
        (
            lambda terms: terms | {"loss": tf.reduce_mean(terms["loss"])},
            "Own.robust_loss['loss']: expected one number for each example, shape (None,), "
            "received '()'",
        ),
        (
            lambda terms: terms | {"robust_accuracy": terms["robust_accuracy"][:, None]},
            "Own.robust_loss['robust_accuracy']: expected one number for each example, shape "
            "(None,), received '(None, 1)'",
        ),
        (
            lambda terms: terms | {"loss": None},
            "Own.robust_loss['loss']: expected one number for each example, shape (None,), "
            "received 'NoneType'",
        ),
        (
            lambda terms: terms | {"loss": (terms["loss"], terms["loss"])},
            "Own.robust_loss['loss']: expected one number for each example, shape (None,), "
            "received 'tuple'",
        ),
        (
            lambda terms: {"robust_accuracy": terms["robust_accuracy"]},
            "Own.robust_loss: expected a mapping with 'loss', received 'one with robust_accuracy'",
        ),
        (
            lambda terms: terms["loss"],
            "Own.robust_loss: expected a mapping with 'loss', received 'SymbolicTensor'",
        ),
    ],
)
def test_a_loss_that_is_not_one_number_for_each_example_trains_nothing(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    two: Any = {"threat": [THREAT, Threat("l2", 0.3)], "norms": "max"}
    for options in ({"threat": THREAT}, two):
        model = with_terms(change)(network(), **options)
        model.compile("sgd")
        before = model.network.get_weights()
        assert error_line(lambda model=model: model.fit(X, Y, verbose=0)).startswith(message)
        for weight, old in zip(model.network.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize("eagerly", [False, True])
def test_entries_that_are_no_mapping_are_one_line(eagerly: bool) -> None:
    class Own(Adv):
        def perturb(self, batch: Any) -> Any:
            return self.adversary(batch)

    model = Own(network(), threat=THREAT)
    model.compile("sgd", run_eagerly=eagerly)
    line = error_line(lambda: model.fit(X, Y, verbose=0))
    kind = "EagerTensor" if eagerly else "SymbolicTensor"
    assert line == f"Own.perturb: expected a mapping such as {{'adv': x_adv}}, received '{kind}'"


@pytest.mark.parametrize("attribute", ["reports", "requires", "needs", "differentiate"])
def test_names_without_a_comma_are_refused_where_they_are_written(attribute: str) -> None:
    line = error_line(lambda: type("Own", (Adv,), {attribute: "gap"}))
    assert line == f"Own.{attribute}: expected a tuple such as ('gap',), received 'gap'"


def test_an_unknown_mode_of_the_network_is_refused() -> None:
    """It was a pass in training mode."""
    model = Adv(network(), threat=THREAT)
    logits_fn = model.logits_fn({"image": X}, "evl")
    line = error_line(lambda: logits_fn(tf.constant(X)))
    assert line.startswith("mode: expected one of eval, frozen, train, received 'evl' (did you")


def test_weights_of_the_method_itself_are_refused() -> None:
    """The optimizer moves the network's alone."""

    class Own(Adv):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.weight = self.add_weight(shape=(), name="temperature")

    model = Own(network(), threat=THREAT)
    model.compile("sgd")
    line = error_line(lambda: model.fit(X, Y, verbose=0))
    assert line.startswith("Own: expected no trainable weights beside the network's (make them")
    assert "temperature" in line


def test_a_frozen_teacher_is_no_part_of_what_is_trained() -> None:
    class Own(Adv):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.teacher = network()

    model = Own(network(), threat=THREAT)
    model.compile("sgd")
    line = error_line(lambda: model.fit(X, Y, verbose=0))
    assert "or set `trainable = False` on the layer or network that has them), received" in line
    model.teacher.trainable = False
    model.fit(X, Y, verbose=0)


def test_an_argument_under_another_name_is_named_when_the_model_is_saved(tmp_path: Any) -> None:
    class Own(Adv):
        def __init__(self, network: keras.Model, *, weight: float = 1.0, **kwargs: Any):
            self.strength = weight
            super().__init__(network, **kwargs)

    model = Own(network(), threat=THREAT)
    line = error_line(lambda: model.save(tmp_path / "model.keras"))
    assert line.startswith("Own: expected the argument weight as self.weight, to save it")


@dataclasses.dataclass(frozen=True)
class Returning(Attack):
    """An attack that returns what a function makes of the images."""

    make: Any = None
    title = "Own"

    def run(self, logits_fn: Any, x: Any, y: Any, *, threat: Any, seed: Any) -> Any:
        return self.make(x, losses.correct(logits_fn(x), y))


def test_an_attack_that_returns_no_outcome_is_one_line() -> None:
    attack = Returning(make=lambda x, right: x)
    expected = "Returning.run: expected an Outcome('images', 'success', 'queries', 'gradients')"
    line = error_line(lambda: craft(network(), X, Y, attack, THREAT))
    assert line.startswith(expected)
    model = Adv(network(), threat=THREAT, attack=attack)
    model.compile("sgd")
    assert error_line(lambda: model.fit(X, Y, verbose=0)).startswith(expected)


@pytest.mark.parametrize("wrapper", [EOT, lambda attack: BPDA(attack, ["logits"])])
def test_the_attack_inside_another_returns_an_outcome_too(wrapper: Any) -> None:
    class Own(PGD):
        def run(self, logits_fn: Any, x: Any, y: Any, *, threat: Any, seed: Any) -> Any:
            return x

    line = error_line(lambda: craft(network(), X, Y, wrapper(Own(steps=1)), THREAT))
    assert line.startswith("Own.run: expected an Outcome(")
