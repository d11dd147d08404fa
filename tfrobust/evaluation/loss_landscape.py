"""The loss around images, along the steepest direction and a random one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks.gradient import input_gradient
from tfrobust.evaluation.batching import map_batches
from tfrobust.evaluation.crafting import (
    BATCH_SIZE,
    LogitsFn,
    checked,
    compiled,
    float32_logits,
)
from tfrobust.threat import Threat

AXIS = np.linspace(-1.5, 1.5, 25, dtype=np.float32)  # in units of eps


class Landscape(NamedTuple):
    """The loss on a grid around each image.

    Attributes:
        axis: The positions on both axes in units of eps, [S].
        loss: The cross entropy, [n, S, S], at clip(x + eps (axis[j] g + axis[i] r)).
        margin: `losses.margin` there, [n, S, S]; positive margins are mistakes.
    """

    axis: np.ndarray
    loss: np.ndarray
    margin: np.ndarray


def landscape(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Landscape:
    """Return the loss around images x [n, H, W, C] in the box, with labels y [n].

    The direction g is the threat's steepest for the gradient of the cross entropy, and r is its
    steepest for noise drawn from N(0, 1), so both have norm 1.

    Raises a UserError unless the images are in the box and each has a label.
    """
    x, labels = checked(x, y, threat)
    logits = float32_logits(logits_fn)

    def directions(images: tf.Tensor, labels: tf.Tensor) -> Any:
        gradient = input_gradient(lambda p: losses.cross_entropy(logits(p), labels), images)
        normal = noise.normal(tf.shape(images), noise.seed_for(seed, 0, "landscape"))
        return threat.steepest(gradient), threat.steepest(tf.ensure_shape(normal, images.shape))

    def heights(points: tf.Tensor, label: tf.Tensor) -> Any:
        labels, values = tf.fill(tf.shape(points)[:1], label), logits(points)
        return losses.cross_entropy(values, labels), losses.margin(values, labels)

    shape = x.shape[1:]
    vectors = compiled(directions, shape, tf.TensorSpec([None], tf.int32))(x, labels)
    steepest, random = (vector.numpy() for vector in vectors)
    traced = compiled(heights, shape, tf.TensorSpec([], tf.int32))
    grid = (-1, *[1] * len(shape))
    up, along = (axis.reshape(grid) for axis in np.meshgrid(AXIS, AXIS, indexing="ij"))
    surfaces = np.zeros((2, len(x), AXIS.size**2))
    for place, image in enumerate(x):

        def measure(
            along: np.ndarray, up: np.ndarray, place: int = place, image: Any = image
        ) -> Any:
            points = image + threat.eps * (along * steepest[place] + up * random[place])
            return traced(np.clip(points, *threat.box).astype(np.float32), labels[place])

        surfaces[:, place] = map_batches(measure, along, up, batch_size=batch_size)
    loss, margin = surfaces.reshape(2, len(x), AXIS.size, AXIS.size)
    return Landscape(AXIS, loss, margin)
