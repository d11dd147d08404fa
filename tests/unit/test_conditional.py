"""Once-for-all networks and their training: layers by hand, and how lambdas are drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tfrobust import APGD, PGD, Adv, Attack, Natural, Square, Threat
from tfrobust.errors import UserError
from tfrobust.exporting import export
from tfrobust.methods import Oat
from tfrobust.models import MODELS, PRECISIONS, load_network, small_cnn, with_precision
from tfrobust.models.conditional import DualBatchNorm, Encoding, FiLM
from tfrobust.models.layers import Dropout
from tfrobust.xla import fixed_shapes

LAMBDAS = [0.0, 0.2, 1.0]
SMALL: dict[str, dict[str, Any]] = {
    "small_cnn": {"filters": [4], "kernel": 3, "units": 8},
    "small_resnet": {"groups": [4, 8]},
    "wide_resnet": {"depth": 10, "width": 1},
    "resnet": {"depth": 18, "width": 4},
    "preact_resnet": {"depth": 18, "width": 4},
}
THREAT = Threat("linf", 0.1)


def test_dual_batchnorm_is_a_batchnorm_for_each_kind_of_lambda(rng: np.random.Generator) -> None:
    """On a mixture of examples it equals two BatchNorms of Keras, each on one kind."""
    x = rng.normal(1.0, 2.0, (12, 3, 3, 5)).astype("float32")
    strength = rng.permutation([0.0] * 5 + [0.3] * 3 + [1.0] * 4).astype("float32")
    dual = DualBatchNorm()
    plain = [keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5) for _ in range(2)]
    for _ in range(3):
        result = dual([x, strength], training=True).numpy()
        for kind, layer in enumerate(plain):
            rows = (strength > 0) == kind
            np.testing.assert_allclose(result[rows], layer(x[rows], training=True), atol=1e-5)
            np.testing.assert_allclose(dual.moving_mean[kind], layer.moving_mean, rtol=1e-5)
            variance = layer.moving_variance
            np.testing.assert_allclose(dual.moving_variance[kind], variance, rtol=1e-4)
    result = dual([x, strength]).numpy()
    for kind, layer in enumerate(plain):
        rows = (strength > 0) == kind
        np.testing.assert_allclose(result[rows], layer(x[rows]), atol=1e-5)


def test_dual_batchnorm_keeps_the_statistics_of_an_absent_kind(rng: np.random.Generator) -> None:
    dual = DualBatchNorm()
    dual([rng.normal(3.0, 1.0, (4, 2)).astype("float32"), np.zeros(4, "float32")], training=True)
    np.testing.assert_array_equal(dual.moving_mean[1], [0.0, 0.0])
    np.testing.assert_array_equal(dual.moving_variance[1], [1.0, 1.0])
    assert (np.abs(dual.moving_mean[0]) > 0.1).all()


def test_film_by_hand(rng: np.random.Generator) -> None:
    def leaky(values: np.ndarray) -> np.ndarray:
        return np.where(values > 0, values, 0.01 * values)

    x = rng.normal(size=(3, 2, 2, 2)).astype("float32")
    code = rng.normal(size=(3, 4)).astype("float32")
    layer = FiLM()
    result = layer([x, code])
    w1, b1, w2, b2 = (weight.numpy() for weight in layer.weights)
    scale_and_offset = leaky(leaky(code @ w1 + b1) @ w2 + b2)
    scale, offset = np.split(scale_and_offset[:, None, None], 2, axis=-1)
    np.testing.assert_allclose(result, x * scale + offset, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoding", ["random", "dct", "onehot", "none"])
def test_encodings_of_the_lambdas_are_orthogonal(encoding: str) -> None:
    layer = Encoding(LAMBDAS, encoding)
    codes = layer(tf.constant([0.0, 0.2, 1.0, 0.19])).numpy()
    assert codes.shape == (4, {"random": 128, "dct": 128, "onehot": 3, "none": 1}[encoding])
    if encoding == "none":
        np.testing.assert_allclose(codes[:, 0], [0.0, 0.2, 1.0, 0.19])
        return
    np.testing.assert_array_equal(codes[3], codes[1])  # 0.2 is the nearest to 0.19
    products = codes[:3] @ codes[:3].T
    np.testing.assert_allclose(products / np.diag(products), np.eye(3), atol=1e-5)


@pytest.mark.parametrize("name", slow_but(SMALL, ["small_cnn"]))
def test_network_with_lambdas_is_saved_and_trained(
    rng: np.random.Generator, name: str, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    network = MODELS[name]((16, 16, 1), 3, lambdas=LAMBDAS, **SMALL[name])
    x = rng.random((4, 16, 16, 1)).astype("float32")

    def at(model: keras.Model, strength: float) -> tf.Tensor:
        return model({"image": x, "strength": np.full(4, strength, "float32")})

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
        ({"encoding": "rand"}, "encoding: .*did you mean 'random'"),
        ({"lambdas": np.linspace(0, 1, 129)}, "lambdas: expected at most 128, as encoding random"),
    ],
)
def test_wrong_lambdas_of_a_network_are_refused(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_cnn((8, 8, 1), 3, **options)


def small_oat() -> Oat:
    """Return OAT of a small network for images [8, 8, 1] of three classes."""
    keras.utils.set_random_seed(0)
    network = small_cnn((8, 8, 1), 3, lambdas=LAMBDAS, **SMALL["small_cnn"])
    return Oat(network, threat=THREAT, attack=PGD(steps=2), lambdas=LAMBDAS)


def batch_of(model: Any, size: int) -> dict[str, tf.Tensor]:
    """Return a batch of random images before crafting."""
    x = np.random.default_rng(0).random((size, 8, 8, 1)).astype("float32")
    return model.as_batch((tf.constant(x), tf.constant(np.arange(size) % 3)))


def test_lambdas_are_drawn_as_in_the_paper() -> None:
    """ceil(B / 3) lambdas are 0 and the others are drawn evenly from the rest, in any order."""
    model = small_oat()
    draws: list[np.ndarray] = []
    for step in range(40):
        model.step.assign(step)
        draws.append(model.perturb(batch_of(model, 10))["strength"].numpy())
    strength = np.round(np.array(draws, float), 3)  # [40, 10]
    assert (np.sum(strength == 0, axis=1) == 4).all()
    assert set(strength.ravel()) == set(LAMBDAS)
    assert abs(np.sum(strength == 0.2) - np.sum(strength == 1.0)) < 60
    assert (strength == 0).any(axis=0).all()


def test_images_with_lambda_0_are_not_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes, forward = small_oat(), set(), Oat.forward
    batch = batch_of(model, 9)

    def counted(self: Oat, inputs: Any, mode: Any) -> Any:
        sizes.add(len(inputs["image"]))
        return forward(self, inputs, mode)

    monkeypatch.setattr(Oat, "forward", counted)
    result = model.perturb(batch)
    unchanged = (result["adv"].numpy() == batch["image"].numpy()).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(unchanged, result["strength"].numpy() == 0)
    assert sizes == {6}


def test_an_attacked_image_has_the_noise_of_its_place_and_is_attacked_at_its_lambda() -> None:
    """So it ends as in an attack on the whole batch, up to pixels whose gradient is near 0."""
    model = small_oat()
    batch = batch_of(model, 9)
    result = model.perturb(batch)
    expected = model.adversary(batch | {"strength": result["strength"]})
    attacked = result["strength"].numpy() > 0
    differs = np.abs(result["adv"] - expected)[attacked] > 1e-5
    assert attacked.sum() == 6 and differs.mean() < 0.01


def test_loss_at_a_lambda_is_that_of_adv_with_this_clean_weight() -> None:
    """At 0 it is the loss of natural training, at 1 that of adversarial training."""
    model = small_oat()
    batch = batch_of(model, 6)
    batch["adv"] = THREAT.random_start(batch["image"], [0, 1])

    def network_at(value: float) -> keras.Model:
        """Return the network of the image alone, with lambda fixed."""
        image = keras.Input((8, 8, 1))
        strength = keras.ops.ones_like(image[:, 0, 0, 0]) * value
        return keras.Model(image, model.network({"image": image, "strength": strength}))

    for value, cls, terms in (
        (0.0, Natural, {}),
        (0.2, Adv, {"clean_weight": 0.8}),
        (1.0, Adv, {}),
    ):
        result = model.robust_loss(batch | {"strength": tf.fill([6], value)})["loss"]
        expected = cls(network_at(value), threat=THREAT, **terms).robust_loss(batch)["loss"]
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "attack", [PGD(steps=4, restarts=2, success="any"), APGD(steps=4), Square(queries=9)]
)
def test_an_attack_that_broken_examples_leave_is_at_the_lambdas_of_those_that_stay(
    attack: Attack,
) -> None:
    """Training failed, as the lambdas of the whole batch met the images of a part of it."""
    model = Oat(small_oat().network, threat=Threat("linf", 0.02), attack=attack, lambdas=LAMBDAS)
    batch = batch_of(model, 24)
    with fixed_shapes():  # none leaves
        expected = model.perturb(batch)
    found = model.perturb(batch)
    np.testing.assert_array_equal(found["strength"], expected["strength"])
    np.testing.assert_allclose(found["adv"], expected["adv"], atol=1e-6)
    right = model.robust_loss(batch | found)["robust_accuracy"][0]
    assert 0 < np.count_nonzero(right) < 24 - 8, "some leave and some stay"


def test_an_example_has_its_own_noise_of_dropout_though_others_leave() -> None:
    """Dropout had noise for all attacked examples, and the attack only some of them."""
    keras.utils.set_random_seed(0)
    image, strength = keras.Input((8, 8, 1), name="image"), keras.Input((), name="strength")
    features = Dropout(0.3)(keras.layers.Dense(16, "relu")(keras.layers.Flatten()(image)))
    both = keras.layers.Concatenate()([features, keras.layers.Reshape((1,))(strength)])
    inputs = {"image": image, "strength": strength}
    network = keras.Model(inputs, keras.layers.Dense(3)(both))
    attack = PGD(steps=4, restarts=2, success="any")
    options: Any = {"threat": Threat("linf", 0.02), "lambdas": LAMBDAS, "craft": "frozen"}
    model = Oat(network, attack=attack, **options)
    batch = batch_of(model, 24)
    with fixed_shapes():  # none leaves
        expected = model.perturb(batch)
    np.testing.assert_allclose(model.perturb(batch)["adv"], expected["adv"], atol=1e-6)


def test_oat_and_adv_refuse_a_network_with_the_wrong_inputs() -> None:
    with pytest.raises(
        UserError, match="network: expected one of image and strength .*, received 'image'"
    ):
        Oat(small_cnn((8, 8, 1), 3, **SMALL["small_cnn"]), threat=THREAT)
    network = small_cnn((8, 8, 1), 3, lambdas=LAMBDAS, **SMALL["small_cnn"])
    with pytest.raises(UserError, match="lambdas: expected 0 and rising numbers up to 1"):
        Oat(network, threat=THREAT, lambdas=[0.5, 1.0])
    with pytest.raises(UserError, match="network: expected one of image .*, received 'image and s"):
        Adv(network, threat=THREAT)


def test_exported_network_has_the_logits_and_gradients_at_each_lambda(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    network = small_cnn((8, 8, 1), 3, lambdas=LAMBDAS, **SMALL["small_cnn"])
    x = rng.random((3, 8, 8, 1)).astype("float32")
    export(network, tmp_path / "saved", x)
    network.save(tmp_path / "model.keras")
    for path in ("saved", "model.keras"):
        loaded = load_network(tmp_path / path)
        assert loaded.strength == 1.0
        for strength in LAMBDAS:
            at = dataclasses.replace(loaded, strength=strength)
            inputs = {"image": tf.constant(x), "strength": tf.fill([3], strength)}
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(inputs["image"])
                logits, expected = at(inputs["image"]), network(inputs)
                first, expected_first = logits[:, 0], expected[:, 0]
            gradient = tape.gradient(first, inputs["image"])
            expected_gradient = tape.gradient(expected_first, inputs["image"])
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
