"""The attack of docs/add_an_attack.md keeps the promises of all attacks, in another package too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.contract import test_attacks as contract
from tests.contract.pages import added
from tfrobust import Threat, evaluate
from tfrobust.attacks import ATTACKS, Attack
from tfrobust.registry import build

# Runs the tests of all attacks with the fixture `attack` of this module.
globals().update(
    {
        key: value
        for key, value in vars(contract).items()
        if key.startswith("test_") or key in ("network", "threat")
    }
)


def linear_logits(classes: int) -> tuple[tf.Tensor, Callable[[Any], tf.Tensor]]:
    """Return weights [16, classes], and the function from images [B, 4, 4, 1] to logits."""
    weights = tf.random.stateless_normal([16, classes], seed=[0, 0])
    return weights, lambda images: tf.reshape(images, [-1, 16]) @ weights


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """Return the attack of the page, registered under the name of its file."""
    with added("add_an_attack.md", tmp_path_factory.mktemp("attacks"), Attack, ATTACKS) as name:
        yield build(ATTACKS, name, "attack")


def test_attack_of_the_page_reaches_the_optimum_of_a_linear_network(attack: Any) -> None:
    """From inside the box by more than eps, the best Linf step is eps * sign of the weights."""
    weights, network = linear_logits(2)
    x, y = tf.fill([3, 4, 4, 1], 0.5), tf.constant([0, 1, 1])
    images = attack(network, x, y, threat=Threat("linf", 0.1), seed=tf.constant([0, 1]))
    sign = np.sign(weights[:, 1] - weights[:, 0]).reshape(4, 4, 1)
    best = 0.5 + 0.1 * np.stack([sign, -sign, -sign])
    np.testing.assert_allclose(images, best, atol=1e-6)


def test_evaluation_runs_the_attack_of_the_page_by_name(attack: Any) -> None:
    _, network = linear_logits(3)
    x = np.random.default_rng(0).random((20, 4, 4, 1), np.float32)
    y = np.argmax(network(x), axis=1)
    attacks = [{"name": "momentum", "steps": 5}]
    evaluation = evaluate(network, x, y, Threat("linf", 0.1), attacks, check=False)
    (row,) = evaluation.results[1:]
    assert row.name == "Momentum-5" and row.robust.mean() < 1
