"""The networks that the gate accepts: logits that are finite, in inference mode."""

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

from tests.errors import error_line
from tfrobust import FGSM, PGD, Adv, Threat
from tfrobust.evaluation import (
    craft,
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
    """Return a network for images [6, 6, 1] that ends with the `last` layers."""
    keras.utils.set_random_seed(seed)
    body = [L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(units)]
    return keras.Sequential([keras.Input((6, 6, 1)), *body, *last])


# Logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_softmax_is_recognised_in_any_precision(dtype: str) -> None:
    logits = network()

    def soft(x: Any) -> Any:
        return tf.nn.softmax(tf.cast(4 * logits(x), dtype))

    assert kind_of_outputs(np.asarray(soft(X), np.float64)) == "probabilities"
    line = error_line(lambda: check_inputs(soft, X, Y, THREAT))
    assert line.startswith("logits_fn: expected logits, received probabilities; attacks need log")


def test_sigmoids_are_recognised() -> None:
    logits = network()
    line = error_line(lambda: check_inputs(lambda x: tf.sigmoid(logits(x)), X, Y, THREAT))
    assert "received probabilities, a sigmoid for each class; attacks need logits: rem" in line


@pytest.mark.parametrize("units", [2, 3])
@pytest.mark.parametrize("last", ["none", "relu", "zeros", "small", "normed"])
def test_logits_of_a_fresh_network_are_accepted(last: str, units: int) -> None:
    layers = {"relu": [L.ReLU()], "normed": [L.LayerNormalization()]}.get(last, [])
    for seed in range(8):
        model = network(*layers, seed=seed, units=units)
        if last in ("zeros", "small"):
            kernel = model.layers[-1].kernel
            kernel.assign((0.0 if last == "zeros" else 1e-3) * kernel)
        check_inputs(lambda x, model=model: model(x), X, Y % units, THREAT)


def compiled(model: keras.Model) -> Adv:
    """Return adversarial training of a network."""
    adv = Adv(model, threat=THREAT)
    adv.compile("sgd")
    return adv


ENDS = {
    "softmax": lambda: network(L.Activation("softmax")),
    "Softmax": lambda: network(L.Softmax()),
    "sigmoid": lambda: network(L.Activation("sigmoid")),
    "inside": lambda: keras.Sequential([keras.Input((6, 6, 1)), network(L.Activation("softmax"))]),
}


@pytest.mark.parametrize("end", ENDS)
def test_training_on_probabilities_is_refused_with_advice_that_works(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled(ENDS[end]())
    line = error_line(lambda: model.fit(X, Y, verbose=0))
    assert line.startswith("network: expected logits, received probabilities")
    assert int(model.step) == 0
    code = advice(model.network)
    assert code in line
    monkeypatch.chdir(tmp_path)
    namespace = {"keras": keras, "network": model.network}
    exec(code, namespace)
    compiled(namespace["network"]).fit(X, Y, verbose=0)


def test_evaluation_of_probabilities_is_refused() -> None:
    model = compiled(network(L.Softmax()))
    for call in (model.evaluate, model.test_on_batch, model.train_on_batch):
        assert "network: expected logits, received prob" in error_line(partial(call, X, Y))


@pytest.mark.parametrize("key", ["'logits'", "0"])
def test_network_of_several_outputs_is_refused_with_advice_that_works(key: str) -> None:
    one = network()
    (logits,) = one.outputs
    outputs = {"logits": logits, "more": 2 * logits} if key == "'logits'" else [logits] * 2
    several = keras.Model(one.inputs, outputs)
    code = f"lambda x: network(x)[{key}]"
    assert f"(of several, as {code})" in error_line(lambda: check_inputs(several, X, Y, THREAT))
    check_inputs(eval(code, {"network": several}), X, Y, THREAT)
    check_inputs(
        keras.Model(one.inputs, {"logits": logits}), X, Y, THREAT
    )  # a single output is taken


def test_network_of_one_output_is_refused_with_advice_that_works() -> None:
    for activation, code in (
        ("linear", "tf.zeros_like(z), z"),
        ("sigmoid", "tf.math.log(tf.concat([1 - p, p]"),
    ):
        one = network(L.Activation(activation), units=1)
        line = error_line(partial(check_inputs, one, X, Y > 0, THREAT))
        assert "expected at least two logits, received one" in line and code in line
        assert code in error_line(partial(compiled(one).fit, X, Y > 0, verbose=0))
    logit = network(units=1)

    def logits(x: Any) -> Any:
        return tf.concat([tf.zeros_like(logit(x)), logit(x)], axis=1)

    np.testing.assert_array_equal(predictor(logits)(X), logit(X)[:, 0] > 0)


# Finite


def broken(x: Any) -> Any:
    """Return logits that are NaN where the first pixel is above one half."""
    logits = tf.reshape(x, [-1, 36])[:, :3]
    return tf.where(logits[:, :1] > 0.5, np.nan, logits)


def test_logits_that_are_not_finite_are_reported_before_an_attack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("absl").propagate = True
    count = int((X[:, 0, 0, 0] > 0.5).sum())
    with caplog.at_level("WARNING", "absl"):
        check_inputs(broken, X, Y, THREAT)
    assert f"NaN or infinite logits for {count} of 40 images, which count as wrong" in caplog.text
    line = error_line(lambda: check_inputs(lambda x: broken(1 + x), X, Y, THREAT))
    assert line.startswith("logits_fn: expected finite logits, received NaN or infinite ones")
    assert line.endswith(" for all of 40 images")


def test_images_with_nan_logits_count_as_broken_everywhere() -> None:
    """They are broken at the smallest eps of the curve, although marked as right."""

    def never(x: Any) -> Any:
        return broken(1 + x)

    assert (predictor(never)(X) == -1).all()
    least = least_eps(never, X, Y, THREAT, clean=np.ones(40, bool))
    np.testing.assert_allclose(least, 0.025)
    assert not craft(never, X, Y, FGSM(), THREAT).right.any()


# Images that the evaluation makes


class Far(PGD):
    """An attack that leaves the ball."""

    def images(self, logits_fn: Any, x: Any, y: Any, *, threat: Any, seed: Any) -> Any:
        return tf.clip_by_value(x + 0.2, 0.0, 1.0)


def test_images_of_an_eps_curve_must_stay_in_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[least_eps.__module__], "PGD", Far)
    with pytest.raises(RuntimeError, match="made images at distance 0.2"):
        least_eps(network(), X, Y, THREAT, clean=np.ones(40, bool))


# Inference mode


def random_layers() -> keras.Model:
    """Return a network whose training mode is random."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1))
    x = L.RandomTranslation(0.4, 0.4, fill_mode="constant")(image)
    x = L.Dropout(0.5)(L.GaussianNoise(0.5)(L.RandomFlip()(x)))
    return keras.Model(image, L.Dense(3)(L.Flatten()(x)))


class WithoutTraining(keras.Model):
    """The network with random layers, in a `call` without `training`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = random_layers()

    def call(self, x: Any) -> Any:
        return self.inner(x)


def test_inference_passes_training_false_to_any_callable() -> None:
    model = random_layers()
    expected = model(X, training=False).numpy()
    traced = tf.function(lambda x, training=True: model(x, training=training))
    wrapped = WithoutTraining()
    wrapped.inner.set_weights(model.get_weights())
    for function in (model, model.call, traced, wrapped):
        np.testing.assert_allclose(inference(function)(X), expected, atol=1e-6)
    bound = partial(model, training=True)  # has the mode already
    assert inference(bound) is bound


def test_object_of_a_saved_model_is_in_inference_mode(tmp_path: Path) -> None:
    """Its class has no signature, and `training` was left at its default."""

    images = tf.TensorSpec([None, 2])

    class Noisy(tf.Module):
        @tf.function
        def __call__(self, x: Any, training: bool = True) -> Any:
            return x + 1.0 if training else x

        @tf.function(input_signature=[images])
        def plain(self, x: Any) -> Any:
            return x

    module = Noisy()
    for mode in (True, False):
        module.__call__.get_concrete_function(images, training=mode)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for function in (loaded, loaded.plain):
        np.testing.assert_array_equal(inference(function)(tf.zeros([3, 2])), np.zeros([3, 2]))


def test_layers_that_a_function_calls_are_in_inference_mode() -> None:
    """Keras would call RandomTranslation in training mode, and with it the layers after it."""
    model, other = random_layers(), network()
    wrapped = WithoutTraining()
    wrapped.inner.set_weights(model.get_weights())
    exact, of_other = model(X, training=False), other(X)
    flat = L.Flatten()  # its call takes no `training`
    for function, expected in (
        (lambda x: model(x), exact),
        (tf.function(lambda x: model(x)), exact),
        (wrapped.call, exact),
        (lambda x: 2 * model(x) + other(x), 2 * exact + of_other),
        (lambda x: flat(x), tf.reshape(X, [40, 36])),
        (inference(lambda x: model(x)), exact),
    ):
        np.testing.assert_allclose(inference(function)(tf.constant(X)), expected, atol=1e-5)


def test_function_that_was_traced_before_is_in_inference_mode() -> None:
    """Its graph was traced in Keras's default mode, in which it stays for its owner."""
    model = random_layers()
    images = tf.TensorSpec([None, 6, 6, 1])
    function = tf.function(lambda x: model(x), input_signature=[images])
    exact = model(X, training=False)
    assert not np.allclose(function(X), exact)
    np.testing.assert_allclose(inference(function)(tf.constant(X)), exact, atol=1e-5)
    assert not np.allclose(function(X), exact)


def test_function_may_ask_for_training_mode_of_its_layers() -> None:
    """The mode of one network has no influence on the other, nor on calls outside."""
    model = random_layers()
    modes = []

    class Mode(L.Layer):
        def call(self, x: Any, training: Any = None) -> Any:
            modes.append(training)
            return model(x)

    outer, inner = Mode(), Mode()
    inference(lambda x: outer(x, training=True) + inner(x))(tf.constant(X))
    outer(tf.constant(X))
    assert modes == [True, False, None]


def test_random_layers_are_off_in_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every result of the model is that of the function that passes `training=False`."""
    monkeypatch.setattr(sanity_checks, "CHECKS", (sanity_checks.random_output,))
    model = random_layers()

    def exact(x: Any) -> Any:
        return model(x, training=False)

    y = np.argmax(exact(X), axis=1)
    options: Any = {"attacks": [FGSM(), PGD(steps=3)], "progress": False}
    evaluation = evaluate(model, X, y, THREAT, **options)
    assert evaluation.clean_accuracy == 1.0
    expected = evaluate(exact, X, y, THREAT, check=False, **options)
    for result, of_exact in zip(evaluation.results, expected.results, strict=True):
        np.testing.assert_array_equal(result.robust, of_exact.robust)
    (noise,) = evaluation.checks
    assert not noise.warns and noise.value == 0

    def measured(function: Any) -> list[np.ndarray]:
        least = least_eps(function, X, y, THREAT, clean=np.ones(len(X), bool))
        lines = valley(function, X, y, THREAT)
        return [least, *lines, *margins(function, X, y, THREAT).values()]

    for result, of_exact in zip(measured(model), measured(exact), strict=True):
        np.testing.assert_allclose(result, of_exact, rtol=1e-5, atol=1e-6)
    export(model, tmp_path / "saved", X)
    saved = open_saved_model(tmp_path / "saved")
    np.testing.assert_allclose(saved.serve(X), exact(X), atol=1e-5)
