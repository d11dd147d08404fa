"""What XLA compiles is what is computed without it: training steps and attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit import two_devices
from tfrobust import PGD, Threat
from tfrobust.attacks import APGD, ATTACKS, FAB, Attack, RayS, Square
from tfrobust.methods import METHODS
from tfrobust.models import small_cnn, with_precision
from tfrobust.xla import compiled

FAST = ("atlas", "oat")  # of the methods; the others take some seconds each
QUERIES = {"rays": RayS(queries=30), "square": Square(queries=30)}
SIZES = {"linf": 0.08, "l2": 0.4, "l1": 1.5}


def slow_but(names: Any, fast: Any) -> list[Any]:
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


def trained(method: str, jit_compile: bool) -> tuple[np.ndarray, dict[str, float]]:
    model = two_devices.model_for(method)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), jit_compile=jit_compile)
    return two_devices.fit(model, 3)


@pytest.mark.parametrize("method", slow_but(METHODS, FAST))
def test_a_compiled_step_is_the_step(method: str, xla: None) -> None:
    (weights, logs), (as_compiled, logged) = (trained(method, how) for how in (False, True))
    np.testing.assert_allclose(as_compiled, weights, rtol=1e-5, atol=1e-6)
    assert logged == pytest.approx(logs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("method", ["atlas", "free", "squeeze"])
def test_a_compiled_step_in_half_precision(
    method: str, precision: str, xla: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its rounding: what it moves the weights by is about the same."""

    def network(_: Any) -> keras.Model:
        keras.utils.set_random_seed(1)
        return with_precision(small_cnn((4, 4, 1), 3, pool=False), precision)

    monkeypatch.setattr(two_devices, "network", network)
    before = np.concatenate([w.ravel() for w in network(None).get_weights()])
    after, as_compiled = (trained(method, how)[0][: len(before)] for how in (False, True))
    assert np.linalg.norm(as_compiled - after) < 0.1 * np.linalg.norm(after - before)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "atlas with BatchNorm", "awp with BatchNorm"])
def test_a_compiled_step_on_two_devices(
    on_two_devices: Callable[[str], dict[str, Any]], method: str
) -> None:
    plain, as_compiled = (on_two_devices("compiled")[f"{method} {how}"] for how in (False, True))
    np.testing.assert_allclose(as_compiled["weights"], plain["weights"], rtol=1e-5, atol=1e-6)
    assert as_compiled["logs"] == pytest.approx(plain["logs"], rel=1e-4)


def attacked(attack: Attack, norm: str, run: Callable[..., Any]) -> Any:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Flatten(), keras.layers.Dense(16, "tanh"), keras.layers.Dense(5)]
    network = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    x = tf.random.stateless_uniform([16, 6, 6, 1], [1, 2], alg="philox")
    y, seed = tf.argmax(network(x), 1, tf.int32), tf.constant([1, 2], tf.int64)
    threat = Threat(norm, SIZES[norm])
    attack.check(threat, (6, 6, 1))

    def logits_fn(images: tf.Tensor) -> tf.Tensor:
        return network(images, training=False)

    return run(lambda: attack.run(logits_fn, x, y, threat=threat, seed=seed))()


@pytest.mark.parametrize("norm", ["linf", *slow_but(["l2", "l1"], ())])
@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=5, restarts=2, success="any"),
        APGD(steps=12),
        Square(queries=30),
        *(
            pytest.param(attack, marks=pytest.mark.slow)
            for attack in (
                APGD("targeted_dlr", steps=10, targets=3),
                APGD(steps=8, eot=2),
                FAB(steps=10),
                RayS(queries=30),
                *(kind() for name, kind in ATTACKS.items() if name in ("fgsm", "uniform_noise")),
                ATTACKS["multi_targeted"](steps=5),
            )
        ),
    ],
    ids=lambda attack: getattr(attack, "title", attack),
)
def test_a_compiled_attack_finds_what_it_finds(attack: Attack, norm: str, xla: None) -> None:
    """The same flags at the same cost; broken examples stay in the batch, and nothing changes."""
    if isinstance(attack, RayS) and norm != "linf":
        pytest.skip("RayS is for Linf")
    plain = attacked(attack, norm, lambda f: tf.function(f, autograph=False))
    as_compiled = attacked(attack, norm, compiled)
    np.testing.assert_allclose(as_compiled.images, plain.images, atol=1e-4)
    for name in ("success", "queries", "gradients"):
        np.testing.assert_array_equal(getattr(as_compiled, name), getattr(plain, name))
    assert 0 < plain.success.numpy().mean() < 1 or attack.title.startswith("Uniform")
