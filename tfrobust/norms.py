"""Lp geometry per example: norms, projections, steepest directions, for Linf and L2.

Every function treats the first axis as the batch and all others as one vector.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

NORMS = ("linf", "l2")


def per_example(value: Any, x: tf.Tensor) -> tf.Tensor:
    """A scalar or a [B] vector, shaped so that it broadcasts against x [B, ...]."""
    return rows(tf.cast(tf.convert_to_tensor(value), x.dtype), x)


def rows(value: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The same, of any dtype: [B] -> [B, 1, ..., 1]; a scalar stays one."""
    return tf.reshape(value, [-1] + [1] * (len(x.shape) - 1)) if value.shape.rank else value


def norm(delta: tf.Tensor, p: str) -> tf.Tensor:
    """||delta||_p of each example: [B, ...] -> [B]."""
    flat = tf.reshape(delta, [tf.shape(delta)[0], -1])
    if p == "linf":
        return tf.reduce_max(tf.abs(flat), axis=1)
    # Scaled by the largest entry: the squares of small float32 gradients would underflow to zero.
    largest = tf.reduce_max(tf.abs(flat), axis=1, keepdims=True)
    scaled = tf.math.divide_no_nan(flat, largest)
    return largest[:, 0] * tf.sqrt(tf.reduce_sum(scaled * scaled, axis=1))


def project(delta: tf.Tensor, eps: Any, p: str) -> tf.Tensor:
    """The nearest (Euclidean) point to delta in the Lp ball of radius eps, a scalar or [B]."""
    radius = per_example(eps, delta)
    if p == "linf":
        return tf.clip_by_value(delta, -radius, radius)
    size = per_example(norm(delta, p), delta)
    return delta * tf.minimum(1.0, tf.math.divide_no_nan(radius, size))


def steepest(gradient: tf.Tensor, p: str) -> tf.Tensor:
    """argmax of <gradient, d> over ||d||_p <= 1; zero where the gradient is zero or NaN."""
    if p == "linf":
        direction = tf.sign(gradient)
    else:
        direction = tf.math.divide_no_nan(gradient, per_example(norm(gradient, p), gradient))
    return tf.where(tf.math.is_nan(direction), tf.zeros_like(direction), direction)
