"""First-order estimates of the distance to the nearest class boundary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfrobust import norms
from tfrobust.attacks.gradient import pullback
from tfrobust.threat import Threat


def first_order_distances(
    logits_fn: Callable[[Any], Any], x: tf.Tensor, y: tf.Tensor, threat: Threat
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a lower bound [B] of the first-order distance, and that distance [B].

    These are Proposition 2 and equation 10 of ATLAS. With q the dual of the threat's norm:

        min_c (z_y - z_c) / (sqrt(2) (sum_c ||grad z_c||_q^2)^(1/2)) <= first-order distance
            = min_c (z_y - z_c) / ||grad z_y - grad z_c||_q.

    Only the gradients of one class, which are as large as x, are in memory at a time.
    """
    logits, gradient = pullback(logits_fn, x)
    classes = logits.shape[-1]
    margins = tf.gather(logits, y, axis=-1, batch_dims=1)[:, None] - logits
    gradient_y = gradient(tf.one_hot(y, classes))

    def steepness(slope: tf.Tensor) -> tf.Tensor:
        return norms.norm(threat.from_ball(slope), norms.DUAL[threat.norm])

    def look(c: tf.Tensor, distance: tf.Tensor, least: tf.Tensor, squares: tf.Tensor) -> Any:
        slope = gradient(tf.ones_like(logits) * tf.one_hot(c, classes))
        margin = tf.where(tf.equal(c, y), math.inf, tf.gather(margins, c, axis=1))
        distance = tf.minimum(distance, margin / steepness(gradient_y - slope))
        return c + 1, distance, tf.minimum(least, margin), squares + steepness(slope) ** 2

    zeros = tf.zeros_like(logits[:, 0])
    _, distance, least, squares = tf.while_loop(
        lambda c, *_: c < classes,
        look,
        (tf.constant(0, y.dtype), zeros + math.inf, zeros + math.inf, zeros),
        parallel_iterations=1,
    )
    return least / (math.sqrt(2) * tf.sqrt(squares)), distance
