"""AWP around other methods, on the linear network of test_method_searches.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tests.unit.test_method_searches import FLAT, THREAT, W, X, Y, batch_of, cross_entropy_gradient
from tfrobust import FGSM, PGD, Adv, Threat
from tfrobust.errors import UserError
from tfrobust.methods import Awp, Ema, Natural, Squeeze, Trades
from tfrobust.registry import parameters


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    """Return the network of logits x W."""
    return linear(W)


@pytest.mark.parametrize(("gamma", "l2"), [(0.0, 0.0), (0.2, 0.0), (0.2, 3.0)])
def test_awp_takes_the_gradient_at_the_perturbed_weights(
    network: Any, gamma: float, l2: float
) -> None:
    """Natural training becomes W - lr * gradient at W + gamma ||W|| g / ||g||.

    The penalty on the weights has a part in this gradient, but not in g.
    """
    model = Awp(network, threat=THREAT, method="natural", gamma=gamma, l2=l2)
    model.compile(keras.optimizers.SGD(0.5))
    model.train_step((tf.constant(X), tf.constant(Y)))
    first, _ = cross_entropy_gradient(FLAT, W)
    moved = W + gamma * np.linalg.norm(W) * first / np.linalg.norm(first)
    expected = W - 0.5 * (cross_entropy_gradient(FLAT, moved)[0] + l2 * moved)
    np.testing.assert_allclose(model.network.get_weights()[0], expected, rtol=1e-4, atol=1e-6)
    assert int(model.inner.step) == 1


def test_awp_equals_its_method_during_the_warm_up(linear: Callable[..., Any]) -> None:
    def trained(cls: Any, **options: Any) -> np.ndarray:
        """Return the kernel after three steps."""
        model = cls(linear(W), threat=THREAT, l2=0.01, seed=3, **options)
        model.compile(keras.optimizers.SGD(0.5))
        for _ in range(3):
            model.train_step((tf.constant(X), tf.constant(Y)))
        return model.network.get_weights()[0]

    expected = trained(Adv, attack=FGSM())
    waiting = trained(Awp, gamma=0.2, warmup_epochs=2, steps_per_epoch=2)
    np.testing.assert_allclose(waiting, expected, rtol=1e-5, atol=1e-6)
    perturbed = trained(Awp, gamma=0.2, warmup_epochs=1, steps_per_epoch=2)
    assert np.abs(perturbed - expected).max() > 1e-4


def test_the_regularisers_of_the_activations_count_in_awp() -> None:
    """All examples have weight 0, so that the step is that of the regulariser alone."""

    def trained(cls: Any, **options: Any) -> np.ndarray:
        image = keras.Input((2, 2, 1))
        dense = keras.layers.Dense(2, activity_regularizer=keras.regularizers.L2(0.5))
        network = keras.Model(image, dense(keras.layers.Flatten()(image)))
        dense.set_weights([W, np.zeros(2)])
        model = cls(network, threat=THREAT, **options)
        model.compile(keras.optimizers.SGD(0.5))
        model.train_step((tf.constant(X), tf.constant(Y), tf.zeros(len(X))))
        return dense.get_weights()[0]

    expected = trained(Natural)
    assert np.abs(expected - W).max() > 1e-3
    np.testing.assert_allclose(trained(Awp, method="natural", gamma=0.0), expected, rtol=1e-5)


def test_awp_moves_the_averages_of_batchnorm_once_a_step() -> None:
    def averages(cls: Any, **options: Any) -> list[np.ndarray]:
        """Return BatchNorm's moving mean and variance after a step."""
        keras.utils.set_random_seed(0)
        layers = [keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(2)]
        network = keras.Sequential([keras.Input((2, 2, 1)), *layers])
        model = cls(network, threat=THREAT, **options)
        model.compile(keras.optimizers.SGD(0.1))
        model.train_step((tf.constant(X), tf.constant(Y)))
        return network.get_weights()[2:4]

    for actual, expected in zip(averages(Awp, method="natural"), averages(Natural), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_awp_perturbs_as_its_method_and_names_the_key_of_a_mistake(network: Any) -> None:
    method = {"name": "squeeze", "beta": 2.0}
    model = Awp(network, threat=THREAT, method=method, ramp_steps=4)
    assert model.craft == "frozen" and model.attack == PGD(start="normal")
    assert {"adv", "collaborative"} == set(model.perturb(batch_of(model)))
    for wrong, message in (
        ("awp", "method.name: expected one of adv"),
        ("free", "method.name: expected one of adv"),
        ({"name": "squeeze", "betta": 1.0}, "method.betta: unknown key.*did you mean 'beta'"),
        ({"name": "squeeze", "beta": -1.0}, "method.beta: expected a number >= 0"),
        ("iaat", "method.num_examples: expected int >= 1, of the training data"),
    ):
        with pytest.raises(UserError, match=message):
            Awp(network, threat=THREAT, method=wrong)


def test_awp_of_a_method_object_equals_awp_of_its_settings(linear: Callable[..., Any]) -> None:
    network, options = linear(W), {"threat": THREAT, "ramp_steps": 4, "steps_per_epoch": 2}
    options |= {"l2": 0.01, "averaging": Ema(decay=0.5)}
    of_object = Awp(network, method=Squeeze(network, beta=2.0, **options), gamma=0.02)
    settings = {"name": "squeeze", "beta": 2.0, "regularizer": "symmetric_kl"}
    of_settings = Awp(linear(W), method=settings, gamma=0.02, **options)
    for name in parameters(Awp).keys() - {"network", "name"}:
        assert getattr(of_object, name) == getattr(of_settings, name), name
    kernels = []
    for awp in (of_object, of_settings):
        awp.compile("sgd")
        awp.train_step((tf.constant(X), tf.constant(Y)))
        kernels.append(awp.network.get_weights()[0])
    np.testing.assert_array_equal(*kernels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda n, m: Awp(n, method=m, l2=0.1),
            "method: expected a name or a mapping beside l2 .an object has its own., received 'Sq",
        ),
        (lambda n, m: Awp(m.network, method=Awp(m.network, threat=THREAT)), "method: expected one"),
        (lambda n, m: Awp(keras.models.clone_model(n), method=m), "object built on the same netw"),
    ],
)
def test_awp_refuses_an_unsuitable_method_object(network: Any, make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(network, Squeeze(network, threat=THREAT, beta=2.0))


def test_awp_logs_the_scalars_of_its_step(linear: Callable[..., Any]) -> None:
    """They were those of the step after it."""
    logged, ramp = [], {"warmup_steps": 1, "ramp_steps": 4}
    for method in (
        Trades(linear(W), threat=THREAT, beta=2.0, **ramp),
        Awp(linear(W), threat=THREAT, method={"name": "trades", "beta": 2.0}, **ramp),
    ):
        method.compile("sgd")
        batch = (tf.constant(X), tf.constant(Y))
        logged.append([float(method.train_step(batch)["eps"]) for _ in range(6)])
    assert logged[0] == logged[1]
    np.testing.assert_allclose(logged[0], np.array([0, 0, 1, 2, 3, 4]) / 4 * THREAT.eps)


def test_a_subclass_of_awp_may_have_its_own_adversaries(network: Any) -> None:
    """Its `perturb` was ignored under several threats."""

    class Own(Awp):
        def perturb(self, batch: Any) -> Any:
            calls.append(self.threat)
            return super().perturb(batch)

    for threats in ([THREAT], [THREAT, Threat("l2", 0.2)]):
        calls: list[Any] = []
        model = Own(network, threat=threats, norms="max", attack=FGSM())
        model.compile("sgd")
        model.train_step((tf.constant(X), tf.constant(Y)))
        assert calls == threats


def test_awp_names_the_method_whose_loss_does_not_fit(network: Any) -> None:
    class Own(Adv):
        def robust_loss(self, batch: Any) -> Any:
            return super().robust_loss(batch) | {"loss": 1.0}

    model = Awp(network, threat=THREAT)
    model.inner = Own(network, threat=THREAT)
    model.compile("sgd")
    line = error_line(lambda: model.train_step((tf.constant(X), tf.constant(Y))))
    assert line.startswith("Own.robust_loss['loss']: expected one number for each example")
