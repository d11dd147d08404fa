"""The valley of the loss around images: how far it rises and falls within eps of an image.

Robust networks have a shallow valley (Li et al., 2023, ICLR).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrobust import losses, noise
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
from tfrobust.methods.squeeze import squeezed
from tfrobust.threat import Threat

ATTACK = PGD(steps=20, start="normal")


class Valley(NamedTuple):
    """Cross entropies [n] around images.

    Attributes:
        clean: The loss at each image.
        highest: The highest loss at the image, its adversarial and its collaborative example.
        lowest: The lowest of these three losses.
    """

    clean: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray


def valley(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Valley:
    """Return the loss valley of images x [n, H, W, C] with labels y [n].

    The search is that of squeeze training. A pass has two points for each image, so a batch has
    batch_size / 2 images.

    Raises a UserError unless the images are in the box and each has a label.
    """
    x, y = checked(x, y, threat)
    logits = float32_logits(logits_fn)

    def search(images: tf.Tensor, labels: tf.Tensor) -> Any:
        options: Any = {"threat": threat, "seed": noise.seed_for(seed, 0, "valley")}
        high, low = squeezed(logits, images, labels, attack=ATTACK, **options)
        return [(p, losses.cross_entropy(logits(p), labels)) for p in (images, high, low)]

    traced = compiled(search, x.shape[1:], tf.TensorSpec([None], tf.int32))

    def measure(images: np.ndarray, labels: np.ndarray) -> list[tf.Tensor]:
        results = traced(images, labels)
        for points, _ in results:
            check_adversarial(ATTACK.title, threat, points.numpy(), images)
        values = [loss for _, loss in results]
        return [values[0], tf.reduce_max(values, axis=0), tf.reduce_min(values, axis=0)]

    size = max(1, batch_size // 2)
    return Valley(*map_batches(measure, x, y, batch_size=size))
