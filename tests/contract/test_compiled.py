"""Training steps and attacks compute the same with XLA as without."""

from __future__ import annotations

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

FAST = ("atlas",)  # of the methods; the others take some seconds each
SIZES = {"linf": 0.08, "l2": 0.4, "l1": 1.5}


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
    """A compiled step in half precision moves the weights equally, up to rounding."""

    def network(_: Any) -> keras.Model:
        keras.utils.set_random_seed(1)
        return with_precision(small_cnn((4, 4, 1), 3, pool=False), precision)

    monkeypatch.setattr(two_devices, "network", network)
    before = np.concatenate([w.ravel() for w in network(None).get_weights()])
    after, as_compiled = (trained(method, how)[0][: len(before)] for how in (False, True))
    assert np.linalg.norm(as_compiled - after) < 0.1 * np.linalg.norm(after - before)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    "method", [*METHODS, "awp over oat", *(f"{m} with BatchNorm" for m in ("atlas", "awp", "iaat"))]
)
def test_a_compiled_step_on_two_devices(
    on_two_devices: Callable[[str], dict[str, Any]], method: str
) -> None:
    plain, as_compiled = (on_two_devices("compiled")[f"{method} {how}"] for how in (False, True))
    np.testing.assert_allclose(as_compiled["weights"], plain["weights"], rtol=1e-5, atol=1e-6)
    assert as_compiled["logs"] == pytest.approx(plain["logs"], rel=1e-4)


def attacked(attack: Attack, norm: str, run: Callable[..., Any]) -> Any:
    """Return the outcome of `run` on 13 images, where `run` takes (images, labels, number)."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Flatten(), keras.layers.Dense(16, "tanh"), keras.layers.Dense(5)]
    network = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    x = np.random.default_rng(0).random((13, 6, 6, 1), np.float32)
    y = np.asarray(network(x)).argmax(1).astype(np.int32)
    threat = Threat(norm, SIZES[norm])
    attack.check(threat, (6, 6, 1))

    def logits_fn(images: tf.Tensor) -> tf.Tensor:
        return network(images, training=False)

    def made(images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> Outcome:
        seed = noise.seed_for(0, number, "test")
        return attack.run(logits_fn, images, labels, threat=threat, seed=seed)

    return run(made)(x, y, tf.constant(1))


QUICK = (APGD(steps=12), Square(queries=30))
OTHERS = (
    APGD("targeted_dlr", steps=10, targets=3),
    APGD(steps=8, eot=2),
    FAB(steps=10),
    FGSM(),
    PGD(steps=5, restarts=2, success="any"),
    MultiTargeted(steps=5),
    UniformNoise(),
)
RUNS = [
    *((attack, "linf") for attack in QUICK),
    *(
        pytest.param(attack, norm, marks=pytest.mark.slow)
        for attack, norm in [
            *((attack, norm) for attack in QUICK for norm in ("l2", "l1")),
            *((attack, norm) for attack in OTHERS for norm in SIZES),
            (RayS(queries=30), "linf"),
        ]
    ),
]


@pytest.mark.parametrize(("attack", "norm"), RUNS, ids=lambda part: getattr(part, "title", part))
def test_a_compiled_attack_finds_what_it_finds(attack: Attack, norm: str, xla: None) -> None:
    """A compiled attack gives the same flags at the same cost.

    This is so where broken examples stay in the batch, and where they leave in stages a batch that
    is filled up.
    """
    plain = attacked(attack, norm, lambda f: tf.function(f, autograph=False))
    for run in (compiled, lambda made: Staged(made, 16)):
        as_compiled = attacked(attack, norm, run)
        np.testing.assert_allclose(as_compiled.images, plain.images, atol=1e-4)
        for name in ("success", "queries", "gradients"):
            np.testing.assert_array_equal(getattr(as_compiled, name), getattr(plain, name))
    most = plain.success.numpy().mean()
    assert most < 1 and (most > 0 or isinstance(attack, FGSM | UniformNoise))


def linear() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Return a linear network, and images that it classifies correctly."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    network.add(keras.layers.Dense(3))
    x = np.random.default_rng(0).random((23, 4, 4, 1), np.float32)
    return network, x, np.asarray(network(x)).argmax(1).astype(np.int32)


def test_few_shapes_are_compiled(xla: None) -> None:
    """Few shapes are compiled, each once, although examples leave a batch of 8.

    These are the beginning and the end of the attack, and a stage of its loop for each of the sizes
    8, 4, 2 and 1.
    """
    network, x, y = linear()
    traced: list[Any] = []

    def run(images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> Outcome:
        traced.append(images.shape)
        attack = PGD(steps=8, restarts=2, success="any")
        seed, threat = noise.seed_for(0, number, "test"), Threat("linf", 0.05)
        return attack.run(network, images, labels, threat=threat, seed=seed)

    staged, batches = Staged(run, 8), [slice(0, 8), slice(8, 16), slice(16, 23), slice(20, 23)]
    for number, rows in enumerate(batches):
        staged(x[rows], y[rows], number)
    assert {shape[0] for shape in traced} == {8, 4}
    assert len(traced) <= 2 * (1 + 1 + 4)
    before = len(traced)
    for number, rows in enumerate(batches):
        staged(x[rows], y[rows], number)
    assert len(traced) == before


LEAVING = {
    PGD(steps=10, success="any"): 0.2,
    APGD(steps=10): 0.2,
    FAB(steps=10): 0.2,
    Square(queries=80): 0.4,
    RayS(queries=80): 0.4,
}


@pytest.mark.parametrize("attack", slow_but(LEAVING, [Square(queries=80)]))
def test_broken_examples_leave_a_compiled_batch_within_a_restart(attack: Attack, xla: None) -> None:
    network, x, y = linear()
    threat, sizes = Threat("linf", LEAVING[attack]), []
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


def test_an_evaluation_that_is_compiled(xla: None) -> None:
    """A compiled evaluation has the same flags, and the record says that it was compiled."""
    network, x, y = linear()
    attacks = [PGD(steps=8, restarts=2, success="any"), Square(queries=20)]
    options: dict[str, Any] = {"batch_size": 8, "check": False, "progress": False}
    threat = Threat("linf", 0.05)
    results = [
        evaluate(network, x, y, threat, attacks, jit_compile=how, **options).results
        for how in (False, True)
    ]
    for plain, as_compiled in zip(*results, strict=True):
        np.testing.assert_array_equal(as_compiled.robust, plain.robust)
    assert [row.provenance.xla for row in results[1][1:]] == [True, True]
    assert 0 < results[0][-1].robust.mean() < 1


def test_what_xla_does_not_take_is_not_compiled_by_default(
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
    for other in ("false", 1):
        with pytest.raises(UserError, match="^jit_compile: expected true, false or auto"):
            craft(logits_fn, x, y, jit_compile=other, **options)


def fitted(steps: int, rows: int = 4, **settings: Any) -> Adv:
    network, x, y = linear()
    model = Adv(network, threat=Threat("linf", 0.1), validation_attack=FGSM(), **settings)
    model.compile("sgd", jit_compile=True)
    model.steps_per_execution = steps
    model.fit(x[: 5 * rows], y[: 5 * rows], batch_size=rows, verbose=0)
    return model


@pytest.mark.slow
def test_steps_that_follow_each_other_are_all_done(xla: None) -> None:
    """All steps between two returns to the host are done.

    This holds also where their number changes between two calls of `fit`, as when a run is resumed.
    """
    _, x, y = linear()
    model = fitted(1)
    assert int(model.step) == 5 and model.jit_compile
    model.steps_per_execution = 5
    history = model.fit(x[:20], y[:20], batch_size=4, verbose=0, validation_data=(x[:12], y[:12]))
    assert int(model.step) == 10
    alone = model.evaluate(x[:12], y[:12], batch_size=4, verbose=0, return_dict=True)
    assert history.history["val_loss"][0] == pytest.approx(alone["loss"], rel=1e-5)


def test_what_is_traced_anew_is_compiled_anew(xla: None) -> None:
    """A changed setting takes effect once Keras makes its function again, as without XLA."""
    _, x, y = linear()
    model = fitted(1)
    before = model.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"]
    model.validation_attack = PGD(steps=5, step_size=1.0)
    model.threat = Threat("linf", 0.9)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"] == before
    model.make_test_function(force=True)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"] < before
    weights = model.network.get_weights()[0]
    model.l2 = 100.0
    model.make_train_function(force=True)
    model.fit(x[:4], y[:4], batch_size=4, verbose=0)
    assert np.abs(model.network.get_weights()[0] - weights).max() > 0.1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_and_strings_beside_the_images(jit_compile: bool, xla: None) -> None:
    """XLA reads any row of a table and accepts no strings."""
    network, x, y = linear()
    facts = {"num_examples": 8, "steps_per_epoch": 1, "warmup_epochs": 0}
    model = Iaat(network, threat=Threat("linf", 0.1), validation_attack=FGSM(), **facts)
    model.compile("sgd", jit_compile=jit_compile)
    batch = {"image": x[:8], "label": y[:8], "file": np.array(["a.png"] * 8)}
    data = [tf.data.Dataset.from_tensor_slices(batch | {"index": rows}).batch(4)
            for rows in (np.arange(8), np.arange(8) + 1)]  # fmt: skip
    assert np.isfinite(model.fit(data[0], verbose=0).history["loss"]).all()
    with pytest.raises(UserError, match=r"^index: expected rows 0 to 7 .num_examples is 8., rec"):
        model.fit(data[1], verbose=0)
