"""Once-for-all networks with widths equal, at each width, the network of that width."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.config import find, load
from pipelines.spec import parse
from tests.products import slow_but
from tfrobust import PGD, Threat
from tfrobust.errors import UserError
from tfrobust.exporting import export
from tfrobust.methods import Oat
from tfrobust.models import MODELS, PRECISIONS, load_network, narrow, small_cnn, with_precision
from tfrobust.models.conditional import DualBatchNorm, FiLM, Slim

RNG = np.random.default_rng(0)
LAMBDAS, WIDTHS = [0.0, 0.2, 1.0], [0.5, 0.75, 1.0]
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "small_cnn": ("small_cnn", {"filters": [4, 8], "kernel": 3, "units": 8}),
    "small_resnet": ("small_resnet", {"groups": [4, 8]}),
    "wide_resnet": ("wide_resnet", {"depth": 10, "width": 1}),
    "softplus": ("wide_resnet", {"depth": 10, "width": 1, "activation": "softplus"}),
    "preact_50": ("preact_resnet", {"depth": 50, "width": 4}),
    "resnet_18": ("resnet", {"depth": 18, "width": 4}),
    "resnet_50": ("resnet", {"depth": 50, "width": 4, "stem": "imagenet"}),
}
IMAGES = RNG.random((4, 16, 16, 1)).astype("float32")
STRENGTH = np.float32([0.0, 0.2, 1.0, 0.0])
THREAT = Threat("linf", 0.1)


def slimmable(name: str = "small_cnn") -> keras.Model:
    """Return a network whose weights and BatchNorm averages differ between channels."""
    keras.utils.set_random_seed(0)
    kind, options = NETWORKS[name]
    network = MODELS[kind]((16, 16, 1), 3, lambdas=LAMBDAS, widths=WIDTHS, **options)
    rng = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, DualBatchNorm):
            layer.set_weights([w + rng.uniform(0, 0.5, w.shape) for w in layer.get_weights()])
    return network


def at(width: float, strength: Any = STRENGTH) -> dict[str, Any]:
    """Return the inputs of a network for IMAGES at a width."""
    return {"image": IMAGES, "strength": strength, "width": np.full(4, width, np.float32)}


@pytest.mark.parametrize("name", slow_but(NETWORKS, ["small_cnn", "softplus"]))
def test_a_network_at_a_width_has_the_logits_of_the_network_narrowed_to_it(name: str) -> None:
    network = slimmable(name)
    for width in WIDTHS:
        thin = narrow(network, width)
        result = thin({"image": IMAGES, "strength": STRENGTH})
        np.testing.assert_allclose(result, network(at(width)), rtol=1e-3, atol=1e-4)
    mixed = network(at(1.0) | {"width": np.float32([0.5, 1.0, 0.75, 0.5])}).numpy()
    for row, width in enumerate([0.5, 1.0, 0.75, 0.5]):
        np.testing.assert_allclose(mixed[row], network(at(width))[row], rtol=1e-3, atol=1e-4)
    assert np.abs(network(at(0.5)) - network(at(1.0))).max() > 1e-3


def test_a_narrowed_network_has_the_weights_of_the_first_channels() -> None:
    network, halves = slimmable(), {"filters": [2, 4], "kernel": 3, "units": 4}
    thin, expected = narrow(network, 0.5), small_cnn((16, 16, 1), 3, lambdas=LAMBDAS, **halves)
    assert [w.shape for w in thin.weights] == [w.shape for w in expected.weights]

    def weights_of(kind: type, number: int) -> list[list[np.ndarray]]:
        """Return the weights of a layer in the narrowed and in the wide network."""
        layers = [[la for la in m.layers if isinstance(la, kind)] for m in (thin, network)]
        return [of_kind[number].get_weights() for of_kind in layers]

    cut, wide = weights_of(keras.layers.Conv2D, 1)
    np.testing.assert_array_equal(cut[0], wide[0][:, :, :2, :4])
    cut, wide = weights_of(DualBatchNorm, 0)
    for new, old in zip(cut, wide, strict=True):
        np.testing.assert_array_equal(new, old[[0, 3], :2])  # the first width of lambda 0 and > 0
    cut, wide = weights_of(FiLM, 0)
    np.testing.assert_array_equal(cut[0], wide[0].reshape(-1, 2, 4)[:, :, :2].reshape(-1, 4))
    cut, wide = weights_of(keras.layers.Dense, 0)
    flat = wide[0].reshape(4, 4, 8, 8)[:, :, :4, :4].reshape(-1, 4)
    np.testing.assert_array_equal(cut[0], flat)
    cut, wide = weights_of(keras.layers.Dense, 1)
    np.testing.assert_array_equal(cut[0], wide[0][:4])


def test_slim_keeps_the_first_channels_and_sets_the_others_to_zero() -> None:
    """Half of three channels are two, and at least one channel is kept."""
    x = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3)
    layer = Slim([0.1, 0.5, 1.0])
    result = layer([x, np.float32([[0, 1, 0], [1, 0, 0]])])
    np.testing.assert_array_equal(result, [[1, 2, 0], [4, 0, 0]])


def test_batch_norm_normalises_each_width_and_kind_of_image_separately(
    rng: np.random.Generator,
) -> None:
    """On a mixed batch it equals Keras's on the examples of lambda 0, or > 0, and one width."""
    x = rng.normal(1.0, 2.0, (12, 3, 3, 5)).astype("float32")
    strength, width = np.float32([0, 0.3] * 6), np.repeat([0, 1], 6)
    layer = DualBatchNorm()
    result = layer([x, strength, np.eye(2, dtype=np.float32)[width]], training=True).numpy()
    for row in range(4):
        examples = ((strength > 0) == row // 2) & (width == row % 2)
        plain = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        expected = plain(x[examples], training=True)
        np.testing.assert_allclose(result[examples], expected, atol=1e-5)
        np.testing.assert_allclose(layer.moving_mean[row], plain.moving_mean, rtol=1e-5)
        np.testing.assert_allclose(layer.moving_variance[row], plain.moving_variance, rtol=1e-4)


def test_a_pass_at_one_width_does_not_change_the_others() -> None:
    """Statistics of other widths do not move, and no gradient reaches channels beyond the width."""
    network = slimmable()
    norms = [layer for layer in network.layers if isinstance(layer, DualBatchNorm)]
    before = [norm.moving_mean.numpy() for norm in norms]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(at(0.5), training=True) ** 2)
    gradients = tape.gradient(loss, [w.value for w in network.trainable_variables])
    for norm, old in zip(norms, before, strict=True):
        moved = (norm.moving_mean.numpy() != old).any(axis=1)
        np.testing.assert_array_equal(moved, [True, False, False] * 2)
    weights = network.trainable_variables
    result = {w.shape: g.numpy() for w, g in zip(weights, gradients, strict=True)}
    for shape, used in (((3, 3, 4, 8), np.s_[:, :, :2, :4]), ((8, 3), np.s_[:4])):
        inside = np.count_nonzero(result[shape][used])
        assert 0 < inside == np.count_nonzero(result[shape])


def model(**options: Any) -> Oat:
    """Return an OAT model of a small CNN with widths."""
    return Oat(slimmable(), threat=THREAT, attack=PGD(steps=2), **options)


def test_a_step_draws_one_width_for_its_batch() -> None:
    oat = model()
    batch = oat.as_batch((tf.constant(IMAGES), tf.constant([0, 1, 2, 0])))
    drawn = []
    for step in range(30):
        oat.step.assign(step)
        width = oat.perturb(batch)["width"].numpy()
        assert width.shape == (4,) and len(set(width)) == 1
        drawn.append(float(width[0]))
    assert {width: drawn.count(width) > 4 for width in WIDTHS} == dict.fromkeys(WIDTHS, True)
    full = oat.inputs({}, tf.constant(IMAGES))
    np.testing.assert_array_equal(full["width"], np.ones(4))


@pytest.mark.parametrize("width", slow_but(WIDTHS, [0.5]))
def test_attack_and_loss_at_a_width_are_those_of_the_narrowed_network(width: float) -> None:
    """The statistics are those of the batch."""
    oat = model(craft="frozen")
    thin = Oat(narrow(oat.network, width), threat=THREAT, attack=PGD(steps=2), craft="frozen")
    batch = oat.as_batch((tf.constant(IMAGES), tf.constant([0, 1, 2, 0])))
    oat._width = lambda: tf.constant(width)  # type: ignore[method-assign]
    entries = oat.perturb(batch)
    np.testing.assert_allclose(entries["adv"], thin.perturb(batch)["adv"], atol=1e-6)
    loss, expected = (m.robust_loss(batch | entries)["loss"] for m in (oat, thin))
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", slow_but(["small_cnn", "resnet_18"], ["small_cnn"]))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_training_step_is_finite_in_every_precision(name: str, precision: str) -> None:
    oat = Oat(with_precision(slimmable(name), precision), threat=THREAT, attack=PGD(steps=1))
    oat.compile(keras.optimizers.SGD(0.01))
    logs = oat.train_step((tf.constant(IMAGES), tf.constant([0, 1, 2, 0])))
    assert np.isfinite([float(value) for value in logs.values()]).all()


def test_a_saved_network_takes_a_width(tmp_path: Path) -> None:
    network = slimmable()
    export(network, tmp_path / "saved", IMAGES)
    network.save(tmp_path / "model.keras")
    for path in ("saved", "model.keras"):
        loaded = load_network(tmp_path / path)
        assert (loaded.strength, loaded.width) == (1.0, 1.0)
        for width in WIDTHS:
            thin = dataclasses.replace(loaded, strength=0.2, width=width)
            expected = network(at(width, np.full(4, 0.2, np.float32)))
            np.testing.assert_allclose(thin(IMAGES), expected, rtol=1e-4, atol=1e-5)
    oat = model()
    oat.save(tmp_path / "oat.keras")
    loaded = keras.saving.load_model(tmp_path / "oat.keras")
    assert loaded.widths == WIDTHS
    np.testing.assert_array_equal(loaded.predict(at(0.5)), oat.predict(at(0.5)))


@pytest.mark.parametrize("widths", [[], [0.5], [1.0, 0.5], [0.0, 1.0]])
def test_widths_that_do_not_rise_to_one_are_refused(widths: list[float]) -> None:
    with pytest.raises(UserError, match="widths: expected rising numbers above 0, the last of the"):
        small_cnn((8, 8, 1), 3, lambdas=LAMBDAS, widths=widths)


def test_a_width_that_a_network_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="widths: expected none in a network without lambdas"):
        small_cnn((8, 8, 1), 3, widths=WIDTHS)
    with pytest.raises(UserError, match="network: expected one that was built with widths"):
        narrow(small_cnn((8, 8, 1), 3, lambdas=LAMBDAS), 0.5)
    with pytest.raises(UserError, match="width: expected one of the network's, .*received 0.6"):
        narrow(slimmable(), 0.6)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("digits_oat", "widths=[1.0]", r"widths: expected none \(the network takes no widths\)"),
        ("digits_oats", "widths=[0.6]", r"widths: expected some of model.widths \[0.5, 0.75, 1.0"),
        ("digits_oats", "widths=[2.0]", r"widths: expected different numbers in \[0, 1\]"),
        ("digits_oats", "widths=[1.0, 1.0]", r"widths: expected different numbers in \[0, 1\]"),
    ],
)
def test_mistaken_widths_of_an_evaluation_are_refused(
    name: str, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=f"evaluation.{message}"):
        parse(name, load(find(name), [f"evaluation.{override}"]))
