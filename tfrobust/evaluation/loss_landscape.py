"""The loss around images, along the steepest direction and a random one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks.gradient import input_gradient
from tfrobust.evaluation.crafting import BATCH_SIZE, LogitsFn, batches, compiled
from tfrobust.gate import inference
from tfrobust.threat import Threat

AXIS = np.linspace(-1.5, 1.5, 25, dtype=np.float32)  # in units of eps


class Landscape(NamedTuple):
    """Cross entropy and `losses.margin` [n, S, S] at clip(x + eps (axis[j] g + axis[i] r)), with
    axis [S]: positive margins are mistakes."""

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
    """Around images x [n, H, W, C] in the box: g is the threat's steepest direction for the
    gradient of the cross entropy, r that for noise N(0, 1), so both have norm 1."""

    network = inference(logits_fn)

    def logits(points: tf.Tensor) -> tf.Tensor:
        return tf.cast(network(points), tf.float32)

    def directions(images: tf.Tensor, labels: tf.Tensor) -> Any:
        gradient = input_gradient(lambda p: losses.cross_entropy(logits(p), labels), images)
        draw = noise.normal(tf.shape(images), noise.seed_for(seed, 0, "landscape"))
        return threat.steepest(gradient), threat.steepest(tf.ensure_shape(draw, images.shape))

    def heights(points: tf.Tensor, label: tf.Tensor) -> Any:
        labels, found = tf.fill(tf.shape(points)[:1], label), logits(points)
        return losses.cross_entropy(found, labels), losses.margin(found, labels)

    labels, shape = tf.constant(y, tf.int32), x.shape[1:]
    found = compiled(directions, shape, tf.TensorSpec([None], tf.int32))(tf.constant(x), labels)
    steepest, random = (part.numpy() for part in found)
    function = compiled(heights, shape, tf.TensorSpec([], tf.int32))
    up, along = (part.reshape(-1, 1, 1, 1) for part in np.meshgrid(AXIS, AXIS, indexing="ij"))
    parts: list[Any] = [[], []]
    for image, label, g, r in zip(x, labels, steepest, random, strict=True):
        for rows in batches(AXIS.size**2, batch_size):
            points = image + threat.eps * (along[rows] * g + up[rows] * r)
            at = function(tf.constant(np.clip(points, *threat.box), tf.float32), label)
            for part, values in zip(parts, at, strict=True):
                part.append(values.numpy())
    grid = (len(x), AXIS.size, AXIS.size)
    return Landscape(AXIS, *(np.concatenate([*p, np.zeros(0)]).reshape(grid) for p in parts))
