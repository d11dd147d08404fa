"""Once-for-all networks and their training: layers computed by hand, and the drawn lambdas."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tfrobust import PGD, Adv, Natural, Threat
from tfrobust.errors import UserError
from tfrobust.exporting import export
from tfrobust.methods import Oat
from tfrobust.models import MODELS, PRECISIONS, load_network, small_cnn, with_precision
from tfrobust.models.conditional import DualBatchNorm, Encoding, FiLM

RNG = np.random.default_rng(0)
LAMBDAS = [0.0, 0.2, 1.0]
SMALL: dict[str, dict[str, Any]] = {
    "small_cnn": {"filters": [4], "kernel": 3, "units": 8},
    "small_resnet": {"groups": [4, 8]},
    "wide_resnet": {"depth": 10, "width": 1},
    "resnet": {"depth": 18, "width": 4},
    "preact_resnet": {"depth": 18, "width": 4},
}
THREAT = Threat("linf", 0.1)


def test_dual_batchnorm_is_one_batchnorm_for_each_kind() -> None:
    """Trained on a mixture, it is two of Keras's BatchNorms, each on the examples of one kind."""
    x = RNG.normal(1.0, 2.0, (12, 3, 3, 5)).astype("float32")
    strength = RNG.permutation([0.0] * 5 + [0.3] * 3 + [1.0] * 4).astype("float32")
    dual = DualBatchNorm()
    plain = [keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5) for _ in range(2)]
    for _ in range(3):
        result = dual([x, strength], training=True).numpy()
        for kind, layer in enumerate(plain):
            mine = (strength > 0) == kind
            np.testing.assert_allclose(result[mine], layer(x[mine], training=True), atol=1e-5)
            np.testing.assert_allclose(dual.moving_mean[kind], layer.moving_mean, rtol=1e-5)
            spread = layer.moving_variance
            np.testing.assert_allclose(dual.moving_variance[kind], spread, rtol=1e-4)
    result = dual([x, strength]).numpy()
    for kind, layer in enumerate(plain):
        mine = (strength > 0) == kind
        np.testing.assert_allclose(result[mine], layer(x[mine]), atol=1e-5)


def test_dual_batchnorm_without_examples_of_a_kind() -> None:
    dual = DualBatchNorm()
    dual([RNG.normal(3.0, 1.0, (4, 2)).astype("float32"), np.zeros(4, "float32")], training=True)
    np.testing.assert_array_equal(dual.moving_mean[1], [0.0, 0.0])
    np.testing.assert_array_equal(dual.moving_variance[1], [1.0, 1.0])
    assert (np.abs(dual.moving_mean[0]) > 0.1).all()


def test_film_by_hand() -> None:
    x, code = RNG.normal(size=(3, 2, 2, 2)), RNG.normal(size=(3, 4))
    x, code = x.astype("float32"), code.astype("float32")
    layer = FiLM()
    result = layer([x, code])
    w1, b1, w2, b2 = (weight.numpy() for weight in layer.weights)
    leaky = lambda v: np.where(v > 0, v, 0.01 * v)  # noqa: E731
    made = leaky(leaky(code @ w1 + b1) @ w2 + b2)
    mu, sigma = (part[:, None, None] for part in np.split(made, 2, axis=1))
    np.testing.assert_allclose(result, x * mu + sigma, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoding", ["random", "dct", "onehot", "none"])
def test_encoding_tells_the_lambdas_apart(encoding: str) -> None:
    layer = Encoding(LAMBDAS, encoding)
    codes = layer(tf.constant([0.0, 0.2, 1.0, 0.19])).numpy()
    assert codes.shape == (4, {"random": 128, "dct": 128, "onehot": 3, "none": 1}[encoding])
    if encoding == "none":
        np.testing.assert_allclose(codes[:, 0], [0.0, 0.2, 1.0, 0.19])
        return
    np.testing.assert_array_equal(codes[3], codes[1])  # the nearest
    products = codes[:3] @ codes[:3].T
    np.testing.assert_allclose(products / np.diag(products), np.eye(3), atol=1e-5)


@pytest.mark.parametrize("name", slow_but(SMALL, ["small_cnn"]))
def test_networks_take_lambda(name: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    network = MODELS[name]((16, 16, 1), 3, lambdas=LAMBDAS, **SMALL[name])
    x = RNG.random((4, 16, 16, 1)).astype("float32")
    at = lambda model, value: model({"image": x, "strength": np.full(4, value, "float32")})  # noqa: E731
    assert np.abs(at(network, 0.0) - at(network, 1.0)).max() > 1e-4
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(at(loaded, 0.2), at(network, 0.2))
    for precision in PRECISIONS:
        model = Oat(with_precision(network, precision), threat=THREAT, lambdas=LAMBDAS)
        model.compile(keras.optimizers.SGD(0.01))
        logs = model.train_step((tf.constant(x), tf.constant([0, 1, 2, 0])))
        assert all(np.isfinite(value) for value in logs.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambdas": [0.0, 2.0]}, r"lambdas: expected numbers in \[0, 1\]"),
        ({"lambdas": [0.2, 0.0]}, "lambdas: expected rising numbers"),
        ({"lambdas": LAMBDAS, "encoding": "rand"}, "encoding: .*did you mean 'random'"),
    ],
)
def test_mistakes_of_a_network(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_cnn((8, 8, 1), 3, **options)


def conditional(**options: Any) -> Oat:
    keras.utils.set_random_seed(0)
    network = small_cnn((8, 8, 1), 3, lambdas=LAMBDAS, **SMALL["small_cnn"])
    return Oat(network, threat=THREAT, attack=PGD(steps=2), lambdas=LAMBDAS, **options)


def batch_of(model: Any, size: int) -> dict[str, tf.Tensor]:
    x = RNG.random((size, 8, 8, 1)).astype("float32")
    return model.as_batch((tf.constant(x), tf.constant(np.arange(size) % 3)))


def test_lambdas_are_drawn_as_the_paper_says() -> None:
    """ceil(B / 3) lambdas are 0 and the others are drawn evenly from the rest, in any order."""
    model, places = conditional(), Counter()
    drawn: Counter[float] = Counter()
    for step in range(40):
        model.step.assign(step)
        result = model.perturb(batch_of(model, 10))["strength"].numpy()
        assert (result == 0).sum() == 4
        drawn.update(np.round(result.astype(float), 3))
        places.update(np.flatnonzero(result == 0))
    assert set(drawn) == set(LAMBDAS) and abs(drawn[0.2] - drawn[1.0]) < 60
    assert len(places) == 10


def test_no_attack_is_spent_on_lambda_0(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes, forward = conditional(), set(), Oat.forward
    batch = batch_of(model, 9)
    monkeypatch.setattr(
        Oat,
        "forward",
        lambda self, inputs, mode: (
            sizes.add(len(inputs["image"])),
            forward(self, inputs, mode),
        )[1],
    )
    result = model.perturb(batch)
    untouched = (result["adv"].numpy() == batch["image"].numpy()).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(untouched, result["strength"].numpy() == 0)
    assert sizes == {6}


def test_the_loss_at_one_lambda_is_that_of_its_ends() -> None:
    """The loss at one lambda is that of natural and adversarial training at this lambda.

    At 0 it is natural training, at 1 adversarial training, and between them adversarial training
    with this clean weight.
    """
    model = conditional()
    batch = batch_of(model, 6)
    batch["adv"] = THREAT.random_start(batch["image"], [0, 1])

    def ends(value: float) -> keras.Model:
        image = keras.Input((8, 8, 1))
        strength = keras.ops.ones_like(image[:, 0, 0, 0]) * value
        return keras.Model(image, model.network({"image": image, "strength": strength}))

    for value, cls, terms in (
        (0.0, Natural, {}),
        (0.2, Adv, {"clean_weight": 0.8}),
        (1.0, Adv, {}),
    ):
        result = model.robust_loss(batch | {"strength": tf.fill([6], value)})["loss"]
        expected = cls(ends(value), threat=THREAT, **terms).robust_loss(batch)["loss"]
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_lambda_is_refused() -> None:
    with pytest.raises(
        UserError, match="network: expected one of image and strength .*, received 'image'"
    ):
        Oat(small_cnn((8, 8, 1), 3, **SMALL["small_cnn"]), threat=THREAT)
    network = small_cnn((8, 8, 1), 3, lambdas=LAMBDAS, **SMALL["small_cnn"])
    with pytest.raises(UserError, match="lambdas: expected 0 and rising numbers up to 1"):
        Oat(network, threat=THREAT, lambdas=[0.5, 1.0])
    with pytest.raises(UserError, match="network: expected one of image .*, received 'image and s"):
        Adv(network, threat=THREAT)


def test_the_export_takes_both_inputs(tmp_path: Path) -> None:
    """The export gives the network's logits at any lambda, and the gradient that attacks need."""
    network = small_cnn((8, 8, 1), 3, lambdas=LAMBDAS, **SMALL["small_cnn"])
    x = RNG.random((3, 8, 8, 1)).astype("float32")
    export(network, tmp_path / "saved", x)
    network.save(tmp_path / "model.keras")
    for path in ("saved", "model.keras"):
        loaded = load_network(tmp_path / path)
        assert loaded.strength == 1.0
        for strength in LAMBDAS:
            at = dataclasses.replace(loaded, strength=strength)
            inputs = {"image": tf.constant(x), "strength": tf.fill([3], strength)}
            slopes = []
            for function, images in ((at, inputs["image"]), (network, inputs)):
                with tf.GradientTape() as tape:
                    tape.watch(inputs["image"])
                    logits = function(images)
                    total = tf.reduce_sum(logits[:, 0])
                slopes.append((logits, tape.gradient(total, inputs["image"])))
            for result, expected in zip(*slopes, strict=True):
                np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
