"""The valley of the loss around images (Li et al., 2023, ICLR): how far it rises and falls in the
ball. Robust networks have a shallow one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks import PGD
from tfrobust.evaluation.crafting import (
    BATCH_SIZE,
    LogitsFn,
    batches,
    check_adversarial,
    compiled,
)
from tfrobust.gate import inference
from tfrobust.methods.squeeze import squeezed
from tfrobust.threat import Threat

ATTACK = PGD(steps=20, start="normal")


class Valley(NamedTuple):
    """Cross entropy [n] at each image, and the highest and the lowest found in its ball, at the
    adversarial and the collaborative example."""

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
    """The search of squeeze training, on any network; a pass has two images of each of a batch."""

    network = inference(logits_fn)

    def run(images: tf.Tensor, labels: tf.Tensor) -> Any:
        logits = lambda points: tf.cast(network(points), tf.float32)  # noqa: E731
        options: Any = {"threat": threat, "seed": noise.seed_for(seed, 0, "valley")}
        high, low = squeezed(logits, images, labels, attack=ATTACK, **options)
        return [(p, losses.cross_entropy(logits(p), labels)) for p in (images, high, low)]

    function = compiled(run, x.shape[1:], tf.TensorSpec([None], tf.int32))
    losses_at: list[list[np.ndarray]] = []
    for rows in batches(len(x), max(1, batch_size // 2)):
        made = function(tf.constant(x[rows]), tf.constant(y[rows], tf.int32))
        for points, _ in made:
            check_adversarial(ATTACK.title, threat, points.numpy(), x[rows])
        losses_at.append([loss.numpy() for _, loss in made])
    return Valley(*(np.concatenate(parts) for parts in zip(*losses_at, strict=True)))
