"""Attacks around other attacks: EOT for random networks, BPDA for layers without a gradient."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import Threat, evaluate, noise
from tfrobust.attacks import APGD, ATTACKS, BPDA, EOT, FAB, FGSM, PGD, MultiTargeted, Square
from tfrobust.attacks.gradient import averaged, differentiated
from tfrobust.registry import build

SEED = noise.seed_for(0, 0, "test")
THREAT = Threat("linf", 0.3)
W = np.array([[1.0, -1.0, 0.0], [0.5, 2.0, 0.1], [-1.0, 1.0, -2.0], [0.3, -0.2, 1.0]], np.float32)
X = np.random.default_rng(0).uniform(0.3, 0.7, (6, 2, 2, 1)).astype(np.float32)
Y = np.asarray((X.reshape(6, 4) @ W).argmax(axis=1), np.int32)


@keras.saving.register_keras_serializable("test")
class Rounded(keras.layers.Layer):
    """Rounding to tenths, whose gradient is 0."""

    def call(self, x: Any) -> Any:
        return tf.round(10 * x) / 10


def behind(layer: keras.layers.Layer, **more: Any) -> keras.Model:
    """Return the network of logits layer(x) W, with the layer's channels added up."""
    image = keras.Input((2, 2, 1))
    values = keras.layers.Lambda(lambda x: tf.reduce_sum(x, -1), **more)(layer(image))
    dense = keras.layers.Dense(3, use_bias=False)
    network = keras.Model(image, dense(keras.layers.Flatten()(values)))
    dense.set_weights([W])
    return network


def test_gradient_is_the_mean_of_its_draws() -> None:
    """The draws k * x, k = 1, 2, 3, have mean gradient 2; value and success are of the last."""
    draws = []

    def look(x: Any) -> Any:
        draws.append(len(draws) + 1)
        return draws[-1] * tf.reshape(x, [-1]), tf.fill([2], draws[-1] == 3)

    ones = tf.ones([2, 1, 1, 1])
    with averaged(3):
        value, wrong, gradient = differentiated(look, ones)
    np.testing.assert_allclose(gradient, 2 * ones)
    np.testing.assert_allclose(value, [3.0, 3.0])
    assert wrong.numpy().all()


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(),
        PGD(steps=4),
        PGD(steps=3, restarts=2),
        PGD(steps=2, loss="kl"),
        PGD(steps=2, loss="kl", restarts=2),
        APGD(steps=4),
        FAB(steps=3),
        EOT(PGD(steps=1), 2),
    ],
)
def test_eot_of_a_network_without_noise_is_the_attack_at_more_passes(attack: Any) -> None:
    calls = []

    def network(x: Any) -> Any:
        calls.append(1)
        return tf.reshape(x, [-1, 4]) @ W

    plain, mean = (
        each.run(network, X[:1], Y[:1], threat=THREAT.at(0.01), seed=SEED)
        for each in (attack, EOT(attack, 3))
    )
    np.testing.assert_allclose(mean.images, plain.images, atol=1e-6)
    assert (mean.gradients == 3 * plain.gradients).numpy().all()
    assert int(plain.queries[0] + mean.queries[0]) == len(calls)


def test_eot_follows_the_mean_gradient_of_a_random_network() -> None:
    """One draw in three has another gradient in the first pixel, of twice the size.

    The mean therefore has the sign of the two others, in graphs too.
    """
    count = tf.Variable(0)

    def network(x: Any) -> Any:
        sign = tf.where(count.assign_add(1) % 3 == 0, -1.9, 1.0)
        z = tf.reshape(x, [-1, 4]) * tf.stack([sign, 1.0, 1.0, 1.0])
        return tf.stack([tf.reduce_sum(z, axis=1), tf.zeros(tf.shape(x)[0])], axis=1)

    @tf.function(autograph=False)
    def craft() -> Any:
        return EOT(FGSM(1.0, loss="margin", start="none"), 3)(
            network, tf.constant(X), tf.zeros(6, tf.int32), threat=THREAT, seed=SEED
        )

    np.testing.assert_allclose(craft(), X - 0.3, atol=1e-6)


def test_bpda_sees_through_rounding() -> None:
    """The logits are those of the rounded image; the step is that of the image itself."""
    network, attack = behind(Rounded(name="rounded")), FGSM(start="none", step_scale=1.0)
    blind = attack(network, X, Y, threat=THREAT, seed=SEED)
    np.testing.assert_array_equal(blind, X)
    straight = BPDA(attack, ["rounded"])
    logits = straight.differentiable(network)(tf.constant(X))
    np.testing.assert_array_equal(logits, network(X))
    images = straight(network, X, Y, threat=THREAT, seed=SEED)
    plain = attack(lambda x: tf.reshape(x, [-1, 4]) @ W, X, Y, threat=THREAT, seed=SEED)
    np.testing.assert_allclose(images, plain, atol=1e-6)
    # Outside BPDA the layer keeps its gradient.
    np.testing.assert_array_equal(attack(network, X, Y, threat=THREAT, seed=SEED), X)


def test_a_stand_in_may_be_a_function_and_its_output_is_broadcast() -> None:
    """Eight steps of a thermometer have, together, eight times the gradient of their stand-in."""

    @keras.saving.register_keras_serializable("test")
    def half(x: Any) -> Any:
        return 0.5 * x

    levels = tf.range(8, dtype=tf.float32) / 8
    steps = keras.layers.Lambda(lambda x: tf.cast(x > levels, tf.float32), name="thermometer")
    network, attack = behind(steps), BPDA(FGSM(), {"thermometer": half})
    with tf.GradientTape() as tape:
        images = tf.Variable(X)
        total = tf.reduce_sum(attack.differentiable(network)(images)[:, 0])
    np.testing.assert_allclose(
        tape.gradient(total, images), 4 * np.tile(W[:, 0], 6).reshape(X.shape), rtol=1e-6
    )
    assert attack.settings(THREAT)["layers"] == {"thermometer": "half"}
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(attack)))
    assert keras.saving.deserialize_keras_object(config) == attack


def test_the_gradient_of_a_replaced_layer_itself_does_not_count() -> None:
    """The layer 3 x, whose stand-in is x, has the slope 1 and not 3 or 4."""
    network = behind(keras.layers.Rescaling(3.0, name="triple"))
    with tf.GradientTape() as tape:
        images = tf.Variable(X)
        total = tf.reduce_sum(BPDA(FGSM(), ["triple"]).differentiable(network)(images)[:, 0])
    expected = np.tile(W[:, 0], 6).reshape(X.shape)
    np.testing.assert_allclose(tape.gradient(total, images), expected, rtol=1e-6)


def test_bpda_around_bpda_replaces_the_layers_of_both() -> None:
    image = keras.Input((2, 2, 1))
    network = behind(keras.Sequential([image, Rounded(name="inner"), Rounded(name="outer")]))
    attack = FGSM(start="none", step_scale=1.0)
    both = BPDA(attack, ["inner", "outer"])(network, X, Y, threat=THREAT, seed=SEED)
    each = BPDA(BPDA(attack, ["inner"]), ["outer"])
    assert (both != X).numpy().any()
    np.testing.assert_array_equal(each(network, X, Y, threat=THREAT, seed=SEED), both)


def test_a_stand_in_need_not_be_finite() -> None:
    """The logarithm is infinite at 0, where the layer and so the logits are not."""
    network = behind(Rounded(name="rounded"))
    dark = np.where(X > 0.5, X, np.float32(0.0))
    logits = BPDA(APGD(), {"rounded": tf.math.log}).differentiable(network)(tf.constant(dark))
    np.testing.assert_array_equal(logits, network(dark))


def test_the_settings_name_a_stand_in_of_any_kind() -> None:
    leaky = functools.partial(keras.ops.leaky_relu, negative_slope=0.1)
    kinds = {"a": leaky, "b": keras.layers.ReLU(), "c": tf.nn.softplus, "d": "relu"}
    names = {"a": "partial", "b": "ReLU", "c": "softplus", "d": "relu"}
    assert BPDA(PGD(), kinds).settings(THREAT)["layers"] == names


def test_wrappers_are_built_from_a_config_and_inside_each_other() -> None:
    spec = {"name": "bpda", "layers": ["rounded"], "attack": {"name": "pgd", "steps": 3}}
    attack = build(ATTACKS, {"name": "eot", "samples": 2, "attack": spec}, "attacks[0]")
    assert attack == EOT(BPDA(PGD(steps=3), ["rounded"]), 2) and hash(attack)
    assert attack.title == "PGD-3 BPDA rounded EOT 2"
    settings = json.loads(json.dumps(attack.settings(THREAT)))
    assert settings["attack"]["layers"] == {"rounded": "linear"}
    assert settings["attack"]["attack"]["step_size"] == pytest.approx(0.25)
    assert EOT(MultiTargeted(top=2), 5).fitted(3).attack.top == 2
    assert EOT(APGD("dlr"), 5).fitted(2).attack.loss == "margin"


NETWORK = behind(Rounded(name="rounded"), name="added")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: EOT(PGD(), 0), "samples: expected int >= 1, received 0"),
        (
            lambda: EOT(Square()),
            "attack: expected one that follows the gradient of a loss, such as",
        ),
        (
            lambda: EOT(FAB(targets=None)),
            "attack: expected one that follows the gradient of a loss",
        ),
        (lambda: BPDA("square", ["a"]), "attack: expected one that follows gradients of the attac"),
        (lambda: EOT({"name": "pdg"}), "attack.name: expected one of"),
        (lambda: BPDA(PGD(), []), "layers: expected a list of the names of layers, or a mapping"),
        (lambda: BPDA(PGD(), "rounded"), "layers: expected a list of the names of layers, or a"),
        (lambda: BPDA(PGD(), {"a": "reelu"}), "layers.a: expected a function or an activation"),
    ],
)
def test_mistakes_are_one_line(make: Callable[[], Any], line: str) -> None:
    assert error_line(make).startswith(line)


@pytest.mark.parametrize(
    ("attack", "network", "line"),
    [
        (BPDA(PGD(), ["round"]), NETWORK, "layers: expected one of .* mean 'rounded'"),
        (EOT(BPDA(PGD(), ["round"])), NETWORK, "attack.layers: expected one of .* 'rounded'"),
        (BPDA(PGD(), ["added"]), NETWORK, r"layers.added: expected a stand-in with .*2, 2\) of"),
        (BPDA(PGD(), ["a"]), lambda x: tf.reshape(x, [-1, 4]) @ W, "layers: expected a Keras net"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_anything_is_written(
    attack: Any, network: Any, line: str, tmp_path: Path
) -> None:
    def run() -> None:
        evaluate(
            network, X, Y, THREAT, [attack], folder=tmp_path / "f", check=False, progress=False
        )

    message = error_line(run)
    assert re.match(line, message), message
    assert not (tmp_path / "f").exists()
