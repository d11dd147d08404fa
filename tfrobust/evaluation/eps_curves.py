"""Robust accuracy as a function of eps."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import losses, noise, tf32
from tfrobust.attacks import PGD
from tfrobust.evaluation.batching import map_batches
from tfrobust.evaluation.crafting import (
    BATCH_SIZE,
    LogitsFn,
    checked,
    compiled,
    float32_logits,
)
from tfrobust.evaluation.image_checks import check_adversarial
from tfrobust.record import EpsRow
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
    """Return the least eps at which PGD breaks each image, float64 [n].

    PGD runs at rising MULTIPLES of the threat's eps until it breaks an image, which then counts as
    broken at every larger eps. The value is 0 for an image that is misclassified when clean, and
    infinity for an image that is never broken. PGD takes 20 steps of eps / 4 from a uniform start,
    without restarts, so the values are upper bounds.

    Args:
        logits_fn: The network.
        x: Images float32 [n, H, W, C].
        y: Labels [n].
        threat: The threat.
        clean: Whether each clean image is classified correctly, bool [n].
        seed: The seed of the noise.
        batch_size: The number of images in a pass.

    Raises a UserError unless the images are in the box and each has a label.
    """
    x, y = checked(x, y, threat)
    logits = float32_logits(logits_fn)

    def attack(images: tf.Tensor, labels: tf.Tensor, eps: tf.Tensor, number: tf.Tensor) -> Any:
        pgd, noise_seed = PGD(steps=STEPS, step_size=eps / 4), noise.seed_for(seed, number, "eps")
        x_adv = pgd.images(logits, images, labels, threat=threat.at(eps), seed=noise_seed)
        return x_adv, losses.correct(logits(x_adv), labels)

    least = np.where(clean, np.inf, 0.0)
    if not threat.eps:
        return least
    scalars = [tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32)]
    traced = compiled(attack, x.shape[1:], tf.TensorSpec([None], tf.int32), *scalars)
    for eps in threat.eps * np.array(MULTIPLES):
        rows = np.flatnonzero(np.isinf(least))
        if not len(rows):
            break

        def right_under_attack(places: np.ndarray, number: int, eps: float = eps) -> Any:
            images, labels = x[places], y[places]
            x_adv, right = traced(images, labels, np.float32(eps), number)
            check_adversarial(PGD(steps=STEPS).title, threat.at(eps), x_adv.numpy(), images)
            return [right]

        (right,) = map_batches(right_under_attack, rows, batch_size=batch_size, numbered=True)
        least[rows[~right]] = eps
    return least


def eps_curve(least: np.ndarray, threat: Threat) -> list[EpsRow]:
    """Return the rows `eps_curve` of eval.json: the accuracy at 0 and at MULTIPLES of the eps.

    Args:
        least: The least eps that breaks each image, float [n], from `least_eps`.
        threat: The threat. If its eps is 0, there are no rows.
    """
    radii = threat.eps * np.array([0.0, *MULTIPLES]) if threat.eps else ()
    return [
        EpsRow(eps=float(eps), robust_accuracy=float(np.mean(least > eps)), examples=len(least))
        for eps in radii
    ]
