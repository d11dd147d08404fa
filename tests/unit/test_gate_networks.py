"""How the gate judges networks: logits or not, in training mode or not, finite or not."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_data import fails
from tfrobust import FGSM, PGD, Adv, Threat
from tfrobust.evaluation import (
    craft,
    eps_curve,
    evaluate,
    least_eps,
    margins,
    predictor,
    sanity_checks,
    valley,
)
from tfrobust.exporting import export
from tfrobust.gate import advice, check_inputs, inference, kind_of_outputs
from tfrobust.models.saved import open_saved_model

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.random((40, 6, 6, 1)).astype("float32")
Y = RNG.integers(0, 3, 40)
THREAT = Threat("linf", 0.1)


def network(*last: Any, seed: int = 0, units: int = 3) -> keras.Model:
    keras.utils.set_random_seed(seed)
    body = [L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(units)]
    return keras.Sequential([keras.Input((6, 6, 1)), *body, *last])


def plain(function: Any) -> Any:
    """Return a function of which only the outputs are known."""
    return lambda x: function(x)


# Logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_softmax_is_known_at_any_precision(dtype: str) -> None:
    logits = network()
    soft = lambda x: tf.nn.softmax(tf.cast(4 * logits(x), dtype))  # noqa: E731
    assert kind_of_outputs(np.asarray(soft(X), np.float64)) == "probabilities"
    line = fails(lambda: check_inputs(soft, X, Y, THREAT))
    assert line.startswith("logits_fn: expected logits, received probabilities; attacks need log")


def test_sigmoids_are_known() -> None:
    logits = network()
    line = fails(lambda: check_inputs(lambda x: tf.sigmoid(logits(x)), X, Y, THREAT))
    assert "received probabilities, a sigmoid for each class; attacks need logits: rem" in line


@pytest.mark.parametrize("units", [2, 3])
@pytest.mark.parametrize("last", ["none", "relu", "zeros", "small", "normed"])
def test_logits_of_a_fresh_network_are_never_taken_for_others(last: str, units: int) -> None:
    for seed in range(8):
        last_layers = [L.LayerNormalization()] if last == "normed" else []
        model = network(*last_layers, seed=seed, units=units)
        if last in ("zeros", "small"):
            model.layers[-1].kernel.assign(
                (0.0 if last == "zeros" else 1e-3) * model.layers[-1].kernel
            )
        logits = tf.nn.relu if last == "relu" else tf.identity
        check_inputs(lambda x, f=logits, m=model: f(m(x)), X, Y % units, THREAT)


ENDS = {
    "softmax": lambda: network(L.Activation("softmax")),
    "Softmax": lambda: network(L.Softmax()),
    "sigmoid": lambda: network(L.Activation("sigmoid")),
    "inside": lambda: keras.Sequential([keras.Input((6, 6, 1)), network(L.Activation("softmax"))]),
}


@pytest.mark.parametrize("end", ENDS)
def test_training_is_refused_with_advice_that_works(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Adv(ENDS[end](), threat=THREAT)
    model.compile("sgd")
    line = fails(lambda: model.fit(X, Y, verbose=0))
    assert line.startswith("network: expected logits, received probabilities")
    assert int(model.step) == 0
    way = advice(model.network)
    assert way in line
    monkeypatch.chdir(tmp_path)
    exec(way, namespace := {"keras": keras, "network": model.network})
    mended = namespace["network"]
    model = Adv(mended, threat=THREAT)
    model.compile("sgd")
    model.fit(X, Y, verbose=0)


def test_validation_alone_is_refused_too() -> None:
    model = Adv(network(L.Softmax()), threat=THREAT)
    model.compile("sgd")
    for call in (model.evaluate, model.test_on_batch, model.train_on_batch):
        assert "network: expected logits, received prob" in fails(lambda c=call: c(X, Y))


@pytest.mark.parametrize("key", ["'logits'", "0"])
def test_one_of_several_outputs_is_named(key: str) -> None:
    made = network()
    logits = made.outputs[0]
    named = {"logits": logits, "more": 2 * logits}
    several = keras.Model(made.inputs, named if key == "'logits'" else [logits] * 2)
    way = f"lambda x: network(x)[{key}]"
    assert f"(of several, as {way})" in fails(lambda: check_inputs(several, X, Y, THREAT))
    check_inputs(eval(way, {"network": several}), X, Y, THREAT)
    check_inputs(keras.Model(made.inputs, {"logits": logits}), X, Y, THREAT)  # of one it is plain


def test_one_output_is_told_how_to_become_two() -> None:
    for end, two in (
        (None, "tf.zeros_like(z), z"),
        ("sigmoid", "tf.math.log(tf.concat([1 - p, p]"),
    ):
        one = network(*([L.Activation(end)] if end else []), units=1)
        line = fails(lambda one=one: check_inputs(one, X, Y > 0, THREAT))
        assert "expected at least two logits, received one" in line and two in line
        model = Adv(one, threat=THREAT)
        model.compile("sgd")
        assert two in fails(lambda model=model: model.fit(X, Y > 0, verbose=0))
    z = network(units=1)
    pair = lambda x: tf.concat([tf.zeros_like(z(x)), z(x)], 1)  # noqa: E731
    assert predictor(pair)(X).tolist() == (z(X)[:, 0] > 0).numpy().astype(int).tolist()


# Finite


def broken(x: Any) -> Any:
    """Return NaN where the first pixel is above one half."""
    logits = tf.reshape(x, [-1, 36])[:, :3]
    return tf.where(logits[:, :1] > 0.5, np.nan, logits)


def test_logits_that_are_not_finite_are_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("absl").propagate = True
    count = int((X[:, 0, 0, 0] > 0.5).sum())
    with caplog.at_level("WARNING", "absl"):
        check_inputs(broken, X, Y, THREAT)
    assert f"NaN or infinite logits for {count} of 40 images, which count as wrong" in caplog.text
    line = fails(lambda: check_inputs(lambda x: broken(1 + x), X, Y, THREAT))
    assert (
        line
        == "logits_fn: expected finite logits, received NaN or infinite ones for all of 40 images"
    )


def test_not_finite_is_wrong_everywhere() -> None:
    """Images with NaN are broken at the least eps and robust at none, although marked as right."""
    never = lambda x: broken(1 + x)  # noqa: E731
    assert (predictor(never)(X) == -1).all()
    least = least_eps(never, X, Y, THREAT, clean=np.ones(40, bool))
    np.testing.assert_allclose(least, 0.025)
    assert not craft(never, X, Y, FGSM(), THREAT).right.any()


# Images that the evaluation makes


class Far(PGD):
    def __call__(self, logits_fn: Any, x: Any, y: Any, *, threat: Any, seed: Any) -> Any:
        return tf.clip_by_value(x + 0.2, 0.0, 1.0)


def test_images_of_an_eps_curve_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[least_eps.__module__]
    monkeypatch.setattr(module, "PGD", Far)
    with pytest.raises(RuntimeError, match="made images at distance 0.2"):
        least_eps(network(), X, Y, THREAT, clean=np.ones(40, bool))


# Inference mode


def random_layers() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1))
    x = L.RandomTranslation(0.4, 0.4, fill_mode="constant")(image)
    x = L.Dropout(0.5)(L.GaussianNoise(0.5)(L.RandomFlip()(x)))
    return keras.Model(image, L.Dense(3)(L.Flatten()(x)))


class WithoutTraining(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.inner = random_layers()

    def call(self, x: Any) -> Any:
        return self.inner(x)


def test_inference_of_whatever_takes_training() -> None:
    model = random_layers()
    expected = model(X, training=False).numpy()
    traced = tf.function(lambda x, training=True: model(x, training=training))
    for callable_ in (model, model.call, traced, WithoutTraining()):
        if isinstance(callable_, WithoutTraining):
            callable_.inner.set_weights(model.get_weights())
        np.testing.assert_allclose(inference(callable_)(X), expected, atol=1e-6)
    run = inference(model)
    assert inference(run) is run
    chosen = partial(model, training=True)
    assert inference(chosen) is chosen
    assert inference(broken) is broken


def test_random_layers_are_off_wherever_a_network_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanity_checks, "CHECKS", (sanity_checks.random_output,))
    model = random_layers()
    exact = lambda x: model(x, training=False)  # noqa: E731
    y = np.argmax(exact(X), axis=1)
    options: Any = {"attacks": [FGSM(), PGD(steps=3)], "progress": False}
    ours = evaluate(model, X, y, THREAT, **options)
    theirs = evaluate(exact, X, y, THREAT, check=False, **options)
    assert ours.clean_accuracy == 1.0
    for mine, other in zip(ours.results, theirs.results, strict=True):
        np.testing.assert_array_equal(mine.robust, other.robust)
    (noise,) = ours.checks
    assert not noise.warns and noise.value == 0
    for function in (valley, margins):
        pairs = (function(f, X, y, THREAT) for f in (model, exact))
        mine, other = (p._asdict() if hasattr(p, "_asdict") else p for p in pairs)
        for name in mine:
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-5, atol=1e-6)
    clean = np.ones(len(X), bool)
    mine, other = (
        eps_curve(least_eps(f, X, y, THREAT, clean=clean), THREAT) for f in (model, exact)
    )
    assert mine == other
    export(model, tmp_path / "saved", X)
    saved = open_saved_model(tmp_path / "saved")
    np.testing.assert_allclose(saved.serve(X), exact(X), atol=1e-5)
