"""The noise of an evaluation is a function of its seed, and of an attack's name and place."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import FGSM, PGD, Attack, Threat
from tfrobust.attacks import UniformNoise
from tfrobust.evaluation import ListedAttack, landscape, run

X = np.random.default_rng(0).uniform(0.3, 0.7, (4, 2, 2, 1)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
Y = (X.reshape(4, 4) @ W).argmax(axis=1)
THREAT = Threat("linf", 1e-3)  # breaks no image


def network(x: Any) -> Any:
    """Return the logits x W, [B, 3]."""
    return tf.reshape(x, [-1, 4]) @ W


def images(*attacks: tuple[str, Attack], seed: int = 0) -> dict[str, np.ndarray]:
    """Return the adversarial images of labelled attacks, by their labels."""
    listed = [ListedAttack(attack, label) for label, attack in attacks]
    options: dict[str, Any] = {"seed": seed, "images": True, "progress": False}
    return {r.name: r.images for r in run(network, X, Y, THREAT, listed, **options)}


def test_attacks_of_one_name_draw_different_noise() -> None:
    short = FGSM(step_scale=0.1)
    result = images(("first", short), ("second", short))
    assert (result["first"] != result["second"]).any(axis=(1, 2, 3)).all()


def test_noise_depends_on_the_seed_but_on_no_label_and_no_other_attack() -> None:
    short = FGSM(step_scale=0.1)
    alone = images(("alone", short))["alone"]
    others = ("noise", UniformNoise()), ("pgd", PGD(steps=1))
    np.testing.assert_array_equal(images(*others, ("last", short))["last"], alone)
    assert (images(("alone", short), seed=1)["alone"] != alone).any(axis=(1, 2, 3)).all()


def test_the_random_direction_of_a_landscape_is_a_function_of_the_seed() -> None:
    first, again, second = (landscape(network, X, Y, THREAT, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(again.loss, first.loss)
    assert (second.loss != first.loss).any()
