"""The contract of every attack in the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tfrobust import Threat, losses, noise
from tfrobust.attacks import ATTACKS, FAB, RayS
from tfrobust.models import small_cnn, with_precision
from tfrobust.registry import build

SMALL: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 10},
    "bpda": {"attack": {"name": "pgd", "steps": 5}, "layers": ["last"]},
    "eot": {"attack": {"name": "pgd", "steps": 5}, "samples": 2},
    "fab": {"steps": 5},
    "multi_targeted": {"steps": 5},
    "rays": {"queries": 60},
    "square": {"queries": 20},
    "uniform_noise": {"draws": 3},
    "transfer": {"attack": {"name": "pgd", "steps": 5}},
}
DETERMINISTIC = (FAB, RayS)
SEED = noise.seed_for(0, 0, "test")
X = np.random.default_rng(0).random((6, 6, 6, 1)).astype("float32")
X[0], X[1] = 0.0, 1.0  # corners of the box


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Return a network for images [6, 6, 1] of three classes, which ends in the layer "last"."""
    keras.utils.set_random_seed(1)
    cnn = small_cnn((6, 6, 1), 3, filters=[4], kernel=3, units=8)
    last = keras.layers.Activation("linear", name="last")
    return keras.Model(cnn.input, last(cnn.output))


NAMES = [name for name in ATTACKS if name != "saved_images"]  # saved images cannot be crafted


@pytest.fixture(params=[*NAMES, "fab untargeted"])
def attack(request: pytest.FixtureRequest, network: keras.Model, tmp_path: Path) -> Any:
    """Return each attack of the registry in turn, with few steps."""
    name, *untargeted = request.param.split()
    spec: dict[str, Any] = {"name": name, **SMALL.get(name, {})}
    spec |= {"targets": None} if untargeted else {}
    if request.param == "transfer":
        network.save(tmp_path / "model.keras")
        spec["source"] = str(tmp_path)
    return build(ATTACKS, spec, "attack")


SIZES = {"linf": 0.3, "l2": 2.0, "l1": 6.0}
LINF = pytest.mark.parametrize("threat", slow_but(SIZES, ["linf"]), indirect=True)


@pytest.fixture(params=SIZES)
def threat(request: pytest.FixtureRequest, attack: Any) -> Threat:
    """Return each norm in turn at an eps that breaks some images."""
    if isinstance(attack, RayS) and request.param != "linf":
        pytest.skip("RayS searches in Linf alone")
    return Threat(request.param, SIZES[request.param])


def labels(network: keras.Model) -> Any:
    """Return the predictions of the network for X, [6]."""
    return tf.argmax(network(X), axis=1, output_type=tf.int32)


CASES = [
    *((norm, "float32") for norm in SIZES),
    ("linf", "mixed_bfloat16"),
    pytest.param("l2", "mixed_bfloat16", marks=pytest.mark.slow),
    pytest.param("l1", "mixed_bfloat16", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("threat", "precision"), CASES, indirect=["threat"])
def test_images_stay_in_the_ball_and_the_box_and_raise_the_loss(
    attack: Any, threat: Threat, network: keras.Model, precision: str
) -> None:
    net, x, y = with_precision(network, precision), tf.constant(X), labels(network)
    x_adv = attack(net, x, y, threat=threat, seed=SEED)
    assert x_adv.dtype == tf.float32 and x_adv.shape == x.shape
    assert (threat.distance(x_adv, x).numpy() <= threat.eps + 1e-6).all()
    assert x_adv.numpy().min() >= 0 and x_adv.numpy().max() <= 1
    before, after = (np.mean(losses.cross_entropy(net(images), y)) for images in (x, x_adv))
    assert after > before


def test_eps_0_returns_the_image_itself(attack: Any, threat: Threat, network: keras.Model) -> None:
    x, y = tf.constant(X), labels(network)
    outcome = attack.run(network, x, y, threat=threat.at(0.0), seed=SEED)
    np.testing.assert_array_equal(outcome.images, X)
    assert not outcome.success.numpy().any()


@LINF
def test_only_the_seed_changes_the_images(
    attack: Any, threat: Threat, network: keras.Model
) -> None:
    y = labels(network)

    @tf.function(autograph=False)
    def craft(seed: Any) -> Any:
        return attack(network, tf.constant(X), y, threat=threat, seed=seed)

    first = craft(SEED).numpy()
    np.testing.assert_array_equal(craft(SEED), first)
    changed = (craft(noise.fold(SEED, 1)).numpy() != first).any()
    assert changed == (not isinstance(attack, DETERMINISTIC))


@LINF
def test_no_gradient_flows_through_an_attack(
    attack: Any, threat: Threat, network: keras.Model
) -> None:
    x, y = tf.constant(X), labels(network)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(attack(network, x, y, threat=threat, seed=SEED))
    gradients = tape.gradient(total, [x, *network.trainable_variables])
    assert all(gradient is None for gradient in gradients)


def test_keras_saves_and_loads_an_attack(attack: Any) -> None:
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(attack)))
    assert keras.saving.deserialize_keras_object(config) == attack


def test_settings_are_complete_and_fit_into_json(attack: Any, threat: Threat) -> None:
    settings = json.loads(json.dumps(attack.settings(threat)))
    assert settings["name"] in ATTACKS
    # An attack without a loss or a step size leaves the key out.
    assert attack.title and None not in [settings.get(key, "") for key in ("loss", "step_size")]
