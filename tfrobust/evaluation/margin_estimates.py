"""Margins of the logits, clean and under attack."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import losses, tf32
from tfrobust.attacks import PGD
from tfrobust.evaluation.batching import map_batches
from tfrobust.evaluation.crafting import (
    BATCH_SIZE,
    LogitsFn,
    adversaries,
    checked,
    compiled,
    float32_logits,
)
from tfrobust.threat import Threat

ATTACK = PGD(steps=20)


@tf32.switched_off()
def margins(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> dict[str, np.ndarray]:
    """Return the margins z_y - max_{i != y} z_i of images x [n, H, W, C] with labels y [n].

    A negative margin is a mistake. The margins float32 [n] are "clean", and "adversarial" under
    PGD-20. Raises a UserError unless the images are in the box and each has a label.
    """
    x, labels = checked(x, y, threat)
    logits = float32_logits(logits_fn)

    def margin(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        return [-losses.margin(logits(images), labels)]

    traced = compiled(margin, x.shape[1:], tf.TensorSpec([None], tf.int32))
    options: Any = {"seed": seed, "batch_size": batch_size}
    x_adv = adversaries(logits_fn, x, labels, ATTACK, threat, **options)
    (clean,) = map_batches(traced, x, labels, batch_size=batch_size)
    (adversarial,) = map_batches(traced, x_adv, labels, batch_size=batch_size)
    return {"clean": clean, "adversarial": adversarial}
