"""Training against several threats, on a linear network, whose adversaries have a closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tfrobust import FGSM, PGD, Threat, losses
from tfrobust.errors import UserError
from tfrobust.methods import METHODS
from tfrobust.methods.several_norms import Errors

THREATS = (Threat("linf", 0.05), Threat("l2", 0.3))
X = np.random.default_rng(0).uniform(0.3, 0.7, (24, 4, 4, 1)).astype(np.float32)
Y = (np.arange(24) % 3).astype(np.int32)
BATCH = {"image": tf.constant(X), "label": tf.constant(Y), "index": tf.range(24)}
FACTS = {"num_examples": 24, "batch_size": 8, "steps_per_epoch": 3}


def model(name: str = "adv", **options: Any) -> Any:
    """Return a model of a method on a linear network, always with the same weights."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    options = {"threat": THREATS, "validation_attack": PGD(steps=4)} | options
    options = {**METHODS[name].example, **options}
    return METHODS[name](keras.Sequential(layers), **options)


def test_threats_are_drawn_in_proportion_to_their_errors() -> None:
    """The error is 1 - right / seen over all of training, and 1/2 until every threat was drawn."""
    errors = Errors(2)
    np.testing.assert_array_equal(errors.shares(), [0.5, 0.5])
    errors.count(tf.constant(0), tf.constant([True, True, True, False]))
    np.testing.assert_array_equal(errors.shares(), [0.5, 0.5])
    errors.count(tf.constant(1), tf.constant([0.0, 1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(errors.shares(), [0.25, 0.75])
    attacked = tf.constant([1.0, 0.0, 0.0, 0.0])
    errors.count(tf.constant(1), (tf.ones(4), attacked))
    np.testing.assert_allclose(errors.shares(), [0.25, 1 - 2 / 5])
    drawn = [int(errors.draw(tf.constant([7, seed]))) for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.6 / 0.85, abs=0.06)


@pytest.mark.parametrize("name", ["adv", "natural"])
def test_errors_are_counted_by_the_weights_of_the_images(name: str) -> None:
    network = model(name)
    network.compile(keras.optimizers.SGD(0.1))
    network.train_step((tf.constant(X), tf.constant(Y), tf.repeat([3.0, 0.0], 12)))
    assert float(tf.reduce_sum(network.errors.seen.value)) == 36


def test_a_sampled_batch_is_under_the_threat_that_was_drawn() -> None:
    """FGSM moves all images of a batch by eps in the norm that was drawn."""
    network, places = model(attack=FGSM(start="none", step_scale=1.0)), set()
    for step in range(12):
        network.step.assign(step)
        entries = network._perturbed(BATCH)
        place = int(entries["norm"])
        distance = THREATS[place].distance(entries["adv"], X)
        np.testing.assert_allclose(distance, THREATS[place].eps, rtol=1e-3)
        places.add(place)
    assert places == {0, 1} and network.threat == THREATS[0]


def test_max_takes_the_greater_loss_of_each_example() -> None:
    network = model(norms="max", attack=FGSM(start="none", step_scale=1.0))
    entries = [network.perturb_under(threat, BATCH)["adv"] for threat in THREATS]
    values = np.stack([losses.cross_entropy(network.network(adv), Y) for adv in entries])
    chosen = network._perturbed(BATCH)["adv"]
    loss = losses.cross_entropy(network.network(chosen), Y)
    np.testing.assert_allclose(loss, values.max(axis=0), rtol=1e-6)
    for row, place in enumerate(values.argmax(axis=0)):
        np.testing.assert_array_equal(chosen[row], entries[place][row])


def test_the_comparison_of_losses_leaves_the_averages_of_batchnorm(normed: keras.Model) -> None:
    network = METHODS["adv"](normed, threat=THREATS, norms="max", attack=FGSM())
    before = normed.get_weights()
    network._perturbed({"image": tf.constant(X[:, :2, :2]), "label": tf.constant(Y)})
    for weight, expected in zip(normed.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_validation_takes_the_worst_threat_for_each_example() -> None:
    """An example is right if it is under both threats, and its loss is the greater one."""
    threats = (Threat("linf", 0.01), Threat("l2", 0.1))

    def validated(threat: Any) -> dict[str, np.ndarray]:
        network = model(threat=threat)
        kernel, bias = network.network.trainable_variables
        bias.assign(-0.5 * tf.reduce_sum(kernel, axis=0))  # grey has equal logits
        y = tf.argmax(network.network(X), axis=1)
        values = network._validated({"image": tf.constant(X), "label": y})
        return {name: value.numpy() for name, value in values.items()}

    both, first, second = validated(threats), validated(threats[0]), validated(threats[1])
    np.testing.assert_array_equal(both["loss"], np.maximum(first["loss"], second["loss"]))
    for name in ("robust_accuracy", "fgsm_accuracy"):
        assert (first[name] != second[name]).any()
        np.testing.assert_array_equal(both[name], first[name] & second[name])
    np.testing.assert_array_equal(both["jacobian"], first["jacobian"])


KINDS = ("adv", "trades", "awp", "natural")


@pytest.mark.parametrize("norms", ["sample", "max"])
@pytest.mark.parametrize("name", slow_but(KINDS, ["adv", "awp", "natural"]))
def test_methods_of_several_norms_fit_and_are_saved(name: str, norms: str, tmp_path: Path) -> None:
    network = model(name, norms=norms, **FACTS)
    network.compile(keras.optimizers.SGD(0.1))
    data = tf.data.Dataset.from_tensor_slices(BATCH).batch(8)
    history = network.fit(data, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    if name != "natural":
        assert history["eps_linf"][-1] == pytest.approx(0.05) and "eps" not in history
    if norms == "sample" and name != "natural":
        assert int(tf.reduce_sum(network.errors.seen.value)) == 48
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.threats == THREATS and loaded.norms == norms
    for weight, expected in zip(loaded.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("name", ["free", "iaat", "mma", "fgsm_pgi"])
def test_methods_that_keep_state_of_one_norm_refuse_several_threats(name: str) -> None:
    with pytest.raises(UserError, match="threat: expected one threat"):
        model(name, **FACTS)


def test_a_step_size_in_image_units_is_refused_with_several_threats() -> None:
    with pytest.raises(UserError, match="attack.step_size: expected none, a fraction of each eps"):
        model(attack=PGD(steps=3, step_size=0.01))
