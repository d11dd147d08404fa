"""The attack of docs/add_an_attack.md keeps the promises of all attacks, in another package too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.contract import test_attacks as contract
from tests.contract.pages import added
from tfrobust import Threat, evaluate
from tfrobust.attacks import ATTACKS, Attack
from tfrobust.registry import build

# The tests of all attacks and their fixtures, with the fixture `attack` of this module.
globals().update(
    {
        key: value
        for key, value in vars(contract).items()
        if key.startswith("test_") or key in ("network", "threat")
    }
)


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    with added("add_an_attack.md", tmp_path_factory.mktemp("attacks"), Attack, ATTACKS) as name:
        yield build(ATTACKS, name, "attack")


def test_its_optimum_on_a_linear_network(attack: Any) -> None:
    """From inside the box by more than eps, the best Linf step is eps * sign of the weights."""
    weights = tf.random.stateless_normal([16, 2], seed=[0, 0])
    network = lambda images: tf.reshape(images, [-1, 16]) @ weights  # noqa: E731
    x, y = tf.fill([3, 4, 4, 1], 0.5), tf.constant([0, 1, 1])
    images = attack(network, x, y, threat=Threat("linf", 0.1), seed=tf.constant([0, 1]))
    up = np.sign(weights[:, 1] - weights[:, 0]).reshape(4, 4, 1)
    best = 0.5 + 0.1 * np.stack([up, -up, -up])
    np.testing.assert_allclose(images, best, atol=1e-6)


def test_an_evaluation_runs_it_by_name(attack: Any) -> None:
    weights = tf.random.stateless_normal([16, 3], seed=[0, 0])
    network = lambda images: tf.reshape(images, [-1, 16]) @ weights  # noqa: E731
    x = np.random.default_rng(0).random((20, 4, 4, 1), np.float32)
    y = np.argmax(network(x), axis=1)
    attacks = [{"name": "momentum", "steps": 5}]
    evaluation = evaluate(network, x, y, Threat("linf", 0.1), attacks, check=False)
    (row,) = evaluation.results[1:]
    assert row.name == "Momentum-5" and row.robust.mean() < 1
