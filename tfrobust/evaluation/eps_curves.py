"""Robust accuracy against eps: how far from each image the network still holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import losses, noise, tf32
from tfrobust.attacks import PGD
from tfrobust.evaluation.crafting import (
    BATCH_SIZE,
    LogitsFn,
    batches,
    check_adversarial,
    compiled,
)
from tfrobust.gate import inference
from tfrobust.threat import Threat

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the threat's eps, rising
STEPS = 20


@tf32.switched_off()
def least_eps(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    *,
    clean: np.ndarray,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Of each image [n] the least of MULTIPLES times the threat's eps at which PGD broke it, 0
    where it is wrong when clean, infinity where none did.

    clean: bool [n], the images that are right when clean. An image is attacked at rising eps until
    it is broken, so it counts as broken at every larger one. PGD has 20 steps of eps / 4, a
    uniform start and no restarts: alone, an upper bound.
    """

    network = inference(logits_fn)

    def attacked(images: tf.Tensor, labels: tf.Tensor, eps: tf.Tensor, number: tf.Tensor) -> Any:
        logits = lambda points: tf.cast(network(points), tf.float32)  # noqa: E731
        attack, drawn = PGD(steps=STEPS, step_size=eps / 4), noise.seed_for(seed, number, "eps")
        x_adv = attack(logits, images, labels, threat=threat.at(eps), seed=drawn)
        return x_adv, losses.correct(logits(x_adv), labels)

    least = np.where(clean, np.inf, 0.0)
    if not threat.eps:
        return least
    scalars = [tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32)]
    function = compiled(attacked, x.shape[1:], tf.TensorSpec([None], tf.int32), *scalars)
    for eps in threat.eps * np.array(MULTIPLES):
        rows = np.flatnonzero(np.isinf(least))
        for number, part in enumerate(batches(len(rows), batch_size)):
            some = rows[part]
            images, labels = tf.constant(x[some]), tf.constant(y[some], tf.int32)
            made = function(images, labels, tf.constant(eps, tf.float32), tf.constant(number))
            x_adv, right = (part.numpy() for part in made)
            check_adversarial(PGD(steps=STEPS).title, threat.at(eps), x_adv, x[some])
            least[some[~right]] = eps
    return least


def eps_curve(least: np.ndarray, threat: Threat) -> list[dict[str, Any]]:
    """The rows of eval.json: the accuracy of the n images at 0 and at each of MULTIPLES times the
    threat's eps; none at eps 0."""
    radii = threat.eps * np.array([0.0, *MULTIPLES]) if threat.eps else ()
    return [
        {
            "eps": float(eps),
            "robust_accuracy": float(np.mean(least > eps)),
            "examples": len(least),
        }
        for eps in radii
    ]
