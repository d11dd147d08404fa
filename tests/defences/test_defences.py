"""`evaluate` flags or breaks each of thirteen broken defences, and flags no honest network.

docs/evaluation.md has the numbers, which `python -m tests.defences.judge` prints.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.defences.defences import DEFENCES, natural, refusal_is_right
from tests.defences.honest import HONEST, honest
from tests.defences.judge import THREAT, Verdict, judge, judge_defence

NEAR = 0.15  # an accuracy that is at most this much above the undefended network's is "broken"


@pytest.fixture(scope="module")
def undefended() -> Verdict:
    """Return the verdict on the network without a defence."""
    return judge(natural())


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFENCES)
def test_each_defence_is_flagged_or_broken(name: str, undefended: Verdict) -> None:
    """The attack that was made for a defence breaks it where AutoAttack does not."""
    verdict = judge_defence(name)
    assert verdict.clean > 0.8
    assert verdict.warnings or verdict.autoattack <= undefended.autoattack + NEAR
    assert verdict.adaptive is not None
    assert min(verdict.autoattack, verdict.adaptive) <= undefended.autoattack + NEAR


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST, ids=lambda name: "-".join(map(str, name)))
def test_no_honest_network_is_flagged(name: tuple[str, str, int]) -> None:
    assert judge(honest(*name, THREAT)).warnings == []


def test_there_are_thirteen_defences_and_twenty_honest_networks() -> None:
    assert len(DEFENCES) == 13 and len(set(HONEST)) == 20


def test_a_refusal_counts_for_the_label_of_the_nearest_image() -> None:
    """The network refuses bright images; the labels of x are 3 and 7."""
    image = keras.Input((1, 1, 1))
    flat = keras.layers.Flatten()(image)
    outputs = keras.layers.Dense(11, use_bias=False)
    network = keras.Model(image, outputs(flat))
    weights = np.zeros((1, 11), np.float32)
    weights[0, [5, 10]] = 1.0, 2.0  # class 5, and "refused"
    outputs.set_weights([weights])
    x = np.array([0.2, 0.8], np.float32).reshape(2, 1, 1, 1)
    logits = refusal_is_right(network, x, np.array([3, 7]))
    seen = tf.constant([0.3, 0.7], shape=[2, 1, 1, 1])
    np.testing.assert_array_equal(tf.argmax(logits(seen), axis=1), [3, 7])
    np.testing.assert_allclose(logits(seen)[0, 5], 0.3)
