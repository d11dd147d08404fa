"""Training steps and attacks compute the same with XLA as without."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tests.unit import two_devices
from tfrobust import FGSM, PGD, Adv, Threat, noise
from tfrobust.attacks import (
    APGD,
    EOT,
    FAB,
    Attack,
    MultiTargeted,
    Outcome,
    RayS,
    Square,
    Staged,
    UniformNoise,
)
from tfrobust.errors import UserError
from tfrobust.evaluation import craft, evaluate
from tfrobust.methods import METHODS, Iaat
from tfrobust.models import small_cnn, with_precision
from tfrobust.xla import compiled

FAST = ("atlas",)  # every other method takes some seconds
SIZES = {"linf": 0.08, "l2": 0.4, "l1": 1.5}


def trained(method: str, jit_compile: bool) -> tuple[np.ndarray, dict[str, float]]:
    """Return all weights as one vector, and the logs, after three steps."""
    model = two_devices.model_for(method)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), jit_compile=jit_compile)
    return two_devices.fit(model, 3)


@pytest.mark.parametrize("method", slow_but(METHODS, FAST))
def test_compiled_training_step_equals_the_uncompiled_one(method: str, xla: None) -> None:
    weights, logs = trained(method, jit_compile=False)
    compiled_weights, compiled_logs = trained(method, jit_compile=True)
    np.testing.assert_allclose(compiled_weights, weights, rtol=1e-5, atol=1e-6)
    assert compiled_logs == pytest.approx(logs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("method", ["atlas", "free", "squeeze"])
def test_compiled_training_step_in_half_precision(
    method: str, precision: str, xla: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled step in half precision moves the weights equally, up to rounding."""

    def network(_: Any) -> keras.Model:
        keras.utils.set_random_seed(1)
        return with_precision(small_cnn((4, 4, 1), 3, pool=False), precision)

    monkeypatch.setattr(two_devices, "network", network)
    before = np.concatenate([weight.ravel() for weight in network(None).get_weights()])
    plain, xla_weights = (trained(method, jit)[0][: len(before)] for jit in (False, True))
    assert np.linalg.norm(xla_weights - plain) < 0.1 * np.linalg.norm(plain - before)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    "method", [*METHODS, "awp over oat", *(f"{m} with BatchNorm" for m in ("atlas", "awp", "iaat"))]
)
def test_compiled_training_step_on_two_devices(
    on_two_devices: Callable[[str], dict[str, Any]], method: str
) -> None:
    plain, as_compiled = (on_two_devices("compiled")[f"{method} {jit}"] for jit in (False, True))
    np.testing.assert_allclose(as_compiled["weights"], plain["weights"], rtol=1e-5, atol=1e-6)
    assert as_compiled["logs"] == pytest.approx(plain["logs"], rel=1e-4)


def outcome_of(attack: Attack, norm: str, wrap: Callable[..., Any]) -> Any:
    """Return the outcome of an attack on 13 images.

    Args:
        attack: The attack.
        norm: The norm, with its eps of SIZES.
        wrap: Wraps a function of (images, labels, batch number), as `tf.function` does.
    """
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Flatten(), keras.layers.Dense(16, "tanh"), keras.layers.Dense(5)]
    network = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    x = np.random.default_rng(0).random((13, 6, 6, 1), np.float32)
    y = np.asarray(network(x)).argmax(1).astype(np.int32)
    threat = Threat(norm, SIZES[norm])
    attack.check(threat, (6, 6, 1))

    def logits_fn(images: tf.Tensor) -> tf.Tensor:
        return network(images, training=False)

    def craft(images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> Outcome:
        seed = noise.seed_for(0, number, "test")
        return attack.run(logits_fn, images, labels, threat=threat, seed=seed)

    return wrap(craft)(x, y, tf.constant(1))


QUICK = Square(queries=30)
OTHERS = (
    APGD(steps=12),
    APGD("targeted_dlr", steps=10, targets=3),
    EOT(APGD(steps=8), 2),
    FAB(steps=10),
    FGSM(),
    PGD(steps=5, restarts=2, success="any"),
    MultiTargeted(steps=5),
    UniformNoise(),
)
RUNS = [*itertools.product([QUICK, *OTHERS], SIZES), (RayS(queries=30), "linf")]


@pytest.mark.parametrize(
    "run", slow_but(RUNS, [(QUICK, "linf")]), ids=lambda run: f"{run[0].title} {run[1]}"
)
def test_compiled_attack_equals_the_uncompiled_one(run: tuple[Attack, str], xla: None) -> None:
    """The flags and costs are equal whether broken examples stay in the batch or leave it."""
    attack, norm = run
    plain = outcome_of(attack, norm, lambda craft: tf.function(craft, autograph=False))
    for wrap in (compiled, lambda craft: Staged(craft, 16)):
        as_compiled = outcome_of(attack, norm, wrap)
        np.testing.assert_allclose(as_compiled.images, plain.images, atol=1e-4)
        for name in ("success", "queries", "gradients"):
            np.testing.assert_array_equal(getattr(as_compiled, name), getattr(plain, name))
    broken = plain.success.numpy().mean()
    assert broken < 1 and (broken > 0 or isinstance(attack, FGSM | UniformNoise))


def linear() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Return a linear network, images [23, 4, 4, 1] and its predictions for them, [23]."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    network.add(keras.layers.Dense(3))
    x = np.random.default_rng(0).random((23, 4, 4, 1), np.float32)
    return network, x, np.asarray(network(x)).argmax(1).astype(np.int32)


def test_staged_attack_is_compiled_once_for_each_batch_size(xla: None) -> None:
    """Traces are the attack's beginning, its end, and its loop for 8, 4, 2 and 1 examples."""
    network, x, y = linear()
    traced: list[tf.TensorShape] = []

    def run(images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> Outcome:
        traced.append(images.shape)
        attack = PGD(steps=8, restarts=2, success="any")
        seed, threat = noise.seed_for(0, number, "test"), Threat("linf", 0.05)
        return attack.run(network, images, labels, threat=threat, seed=seed)

    staged, counts = Staged(run, 8), []
    for _ in range(2):
        for number, rows in enumerate([slice(0, 8), slice(8, 16), slice(16, 23), slice(20, 23)]):
            staged(x[rows], y[rows], number)
        counts.append(len(traced))
    assert {shape[0] for shape in traced} == {8, 4}
    assert counts[0] == counts[1] <= 2 * (1 + 1 + 4)


EPS_OF_SOME = {  # breaks some of the examples
    PGD(steps=10, success="any"): 0.2,
    APGD(steps=10): 0.2,
    FAB(steps=10): 0.2,
    Square(queries=80): 0.4,
    RayS(queries=80): 0.4,
}


@pytest.mark.parametrize("attack", slow_but(EPS_OF_SOME, [Square(queries=80)]))
def test_broken_examples_leave_a_compiled_batch_within_a_restart(attack: Attack, xla: None) -> None:
    """The first loop of the attack has all 16 examples, the last one fewer."""
    network, x, y = linear()
    threat, sizes = Threat("linf", EPS_OF_SOME[attack]), []
    attack.check(threat, x.shape[1:])

    def run(images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> Outcome:
        seed = noise.seed_for(0, number, "test")
        return attack.run(network, images, labels, threat=threat, seed=seed)

    staged = Staged(run, 16)
    stage = staged._stage

    def counted(*arguments: Any) -> Any:
        *_, active, _, _ = arguments
        sizes.append(len(active["broken"]))
        return stage(*arguments)

    staged._stage = counted
    outcome = staged(x[:16], y[:16], 0)
    assert sizes[0] == 16 and sizes[-1] < 16 and outcome.success.numpy().any()


def test_compiled_evaluation_equals_the_uncompiled_one(xla: None) -> None:
    """The flags are the same, and the record says that XLA compiled the attacks."""
    network, x, y = linear()
    attacks = [PGD(steps=8, restarts=2, success="any"), Square(queries=20)]
    options: dict[str, Any] = {"batch_size": 8, "check": False, "progress": False}
    threat = Threat("linf", 0.05)
    results = [
        evaluate(network, x, y, threat, attacks, jit_compile=jit, **options).results
        for jit in (False, True)
    ]
    for plain, as_compiled in zip(*results, strict=True):
        np.testing.assert_array_equal(as_compiled.robust, plain.robust)
    assert [row.provenance.xla for row in results[1][1:]] == [True, True]
    assert 0 < results[0][-1].robust.mean() < 1


def test_auto_does_not_compile_a_network_that_xla_refuses(
    xla: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network, x, y = linear()

    def logits_fn(images: tf.Tensor) -> tf.Tensor:
        result = tf.numpy_function(lambda v: v, [network(images)], tf.float32)
        return tf.ensure_shape(result, [None, 3])

    monkeypatch.setattr("tfrobust.xla.on_gpus", lambda strategy: True)
    options: Any = {"attack": Square(queries=5), "threat": Threat("linf", 0.05)}
    plain = craft(logits_fn, x, y, **options)
    result = craft(logits_fn, x, y, jit_compile="auto", **options)
    np.testing.assert_array_equal(result.right, plain.right)
    assert "Square-5: not compiled: XLA does not take this network" in caplog.text
    assert not result.xla
    for wrong in ("false", 1):
        with pytest.raises(UserError, match="^jit_compile: expected true, false or auto"):
            craft(logits_fn, x, y, jit_compile=wrong, **options)


def fitted() -> Adv:
    """Return a compiled model of the linear network after five steps on four images each."""
    network, x, y = linear()
    model = Adv(network, threat=Threat("linf", 0.1), validation_attack=FGSM())
    model.compile("sgd", jit_compile=True)
    model.steps_per_execution = 1
    model.fit(x[:20], y[:20], batch_size=4, verbose=0)
    return model


@pytest.mark.slow
def test_no_step_is_lost_when_steps_per_execution_change(xla: None) -> None:
    """`steps_per_execution` may change between two calls of `fit`, as in a resumed run."""
    _, x, y = linear()
    model = fitted()
    assert int(model.step) == 5 and model.jit_compile
    model.steps_per_execution = 5
    history = model.fit(x[:20], y[:20], batch_size=4, verbose=0, validation_data=(x[:12], y[:12]))
    assert int(model.step) == 10
    alone = model.evaluate(x[:12], y[:12], batch_size=4, verbose=0, return_dict=True)
    assert history.history["val_loss"][0] == pytest.approx(alone["loss"], rel=1e-5)


@pytest.mark.slow
def test_changed_setting_is_compiled_when_keras_makes_its_function_again(xla: None) -> None:
    """Until then the setting has no effect, as without XLA."""
    _, x, y = linear()
    model = fitted()

    def robust_accuracy() -> float:
        return model.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"]

    before = robust_accuracy()
    model.validation_attack = PGD(steps=5, step_size=1.0)
    model.threat = Threat("linf", 0.9)
    assert robust_accuracy() == before
    model.make_test_function(force=True)
    assert robust_accuracy() < before
    weights = model.network.get_weights()[0]
    model.l2 = 100.0
    model.make_train_function(force=True)
    model.fit(x[:4], y[:4], batch_size=4, verbose=0)
    assert np.abs(model.network.get_weights()[0] - weights).max() > 0.1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_step_takes_table_rows_and_strings_in_its_batch(
    jit_compile: bool, xla: None
) -> None:
    """XLA would read beyond a table without an error, and accepts no strings."""
    network, x, y = linear()
    facts = {"num_examples": 8, "steps_per_epoch": 1, "warmup_epochs": 0}
    model = Iaat(network, threat=Threat("linf", 0.1), validation_attack=FGSM(), **facts)
    model.compile("sgd", jit_compile=jit_compile)
    batch = {"image": x[:8], "label": y[:8], "file": np.array(["a.png"] * 8)}

    def data(rows: np.ndarray) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(batch | {"index": rows}).batch(4)

    assert np.isfinite(model.fit(data(np.arange(8)), verbose=0).history["loss"]).all()
    with pytest.raises(UserError, match=r"^index: expected rows 0 to 7 .num_examples is 8., rec"):
        model.fit(data(np.arange(8) + 1), verbose=0)
