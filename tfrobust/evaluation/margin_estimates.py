"""By how much the network is right, clean and under attack."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import losses, tf32
from tfrobust.attacks import PGD
from tfrobust.evaluation.crafting import BATCH_SIZE, LogitsFn, adversaries, batches, compiled
from tfrobust.gate import inference
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
    """z_y - max_{i != y} z_i [n] of the images x, "clean", and under PGD-20, "adversarial":
    negative where the network is wrong."""

    network = inference(logits_fn)

    def margin(images: tf.Tensor, labels: tf.Tensor) -> Any:
        return -losses.margin(tf.cast(network(images), tf.float32), labels)

    function = compiled(margin, x.shape[1:], tf.TensorSpec([None], tf.int32))
    options: Any = {"seed": seed, "batch_size": batch_size}
    attacked = adversaries(logits_fn, x, y, ATTACK, threat, **options)
    return {
        name: np.concatenate(
            [
                function(tf.constant(images[rows]), tf.constant(y[rows], tf.int32)).numpy()
                for rows in batches(len(x), batch_size)
            ]
        )
        for name, images in (("clean", x), ("adversarial", attacked))
    }
