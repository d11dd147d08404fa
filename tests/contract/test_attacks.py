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
    "fab": {"steps": 10},
    "multi_targeted": {"steps": 5},
    "rays": {"queries": 60},
    "square": {"queries": 20},
    "uniform_noise": {"draws": 3},
    "transfer": {"attack": {"name": "pgd", "steps": 5}},
}
DETERMINISTIC = (FAB, RayS)
SEED = noise.seed_for(0, 0, "test")
X = np.random.default_rng(0).random((6, 6, 6, 1)).astype("float32")
X[0] = 0.0  # images on the box's edges
X[1] = 1.0


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    return small_cnn((6, 6, 1), 3, filters=[4], kernel=3, units=8)


NAMES = [name for name in ATTACKS if name != "saved_images"]  # which is not run


@pytest.fixture(params=[*NAMES, "fab untargeted"])
def attack(request: pytest.FixtureRequest, network: keras.Model, tmp_path: Path) -> Any:
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
    if isinstance(attack, RayS) and request.param != "linf":
        pytest.skip("RayS searches in Linf alone")
    return Threat(request.param, SIZES[request.param])


def labels(network: keras.Model) -> Any:
    return tf.argmax(network(X), axis=1, output_type=tf.int32)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_stays_in_the_set_and_raises_the_loss(
    attack: Any, threat: Threat, network: keras.Model, precision: str
) -> None:
    net, x, y = with_precision(network, precision), tf.constant(X), labels(network)
    x_adv = attack(net, x, y, threat=threat, seed=SEED)
    assert x_adv.dtype == tf.float32 and x_adv.shape == x.shape
    assert (threat.distance(x_adv, x).numpy() <= threat.eps + 1e-6).all()
    assert x_adv.numpy().min() >= 0 and x_adv.numpy().max() <= 1
    before, after = (float(tf.reduce_mean(losses.cross_entropy(net(z), y))) for z in (x, x_adv))
    assert after > before


def test_eps_zero_is_the_image(attack: Any, threat: Threat, network: keras.Model) -> None:
    x_adv = attack(network, tf.constant(X), labels(network), threat=threat.at(0.0), seed=SEED)
    np.testing.assert_array_equal(x_adv, X)


@LINF
def test_the_seed_decides(attack: Any, threat: Threat, network: keras.Model) -> None:
    @tf.function(autograph=False)
    def craft(seed: Any) -> Any:
        return attack(network, tf.constant(X), y, threat=threat, seed=seed)

    y = labels(network)
    first = craft(SEED).numpy()
    np.testing.assert_array_equal(craft(SEED), first)
    changed = (craft(noise.fold(SEED, 1)).numpy() != first).any()
    assert changed == (not isinstance(attack, DETERMINISTIC))


@LINF
def test_no_gradient_flows_back(attack: Any, threat: Threat, network: keras.Model) -> None:
    x, y = tf.constant(X), labels(network)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(attack(network, x, y, threat=threat, seed=SEED))
    gradients = tape.gradient(total, [x, *network.trainable_variables])
    assert all(gradient is None for gradient in gradients)


def test_keras_saves_and_loads_it(attack: Any) -> None:
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(attack)))
    assert keras.saving.deserialize_keras_object(config) == attack


def test_a_number_can_state_its_settings(attack: Any, threat: Threat) -> None:
    settings = json.loads(json.dumps(attack.settings(threat)))
    assert settings["name"] in ATTACKS
    # An attack without a loss or a step size states none; a default stands for one that it states.
    assert attack.title and None not in [settings.get(n, "") for n in ("loss", "step_size")]
