"""Lp geometry per example: norms, projections, steepest directions, for Linf, L2 and L1.

Every function treats the first axis as the batch and all others as one vector.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

NORMS = ("linf", "l2", "l1")
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}  # |<a, b>| <= ||a||_p ||b||_DUAL[p]


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
    if p == "l1":
        return tf.reduce_sum(tf.abs(flat), axis=1)
    # Scaled by the largest entry: the squares of small float32 gradients would underflow to zero.
    largest = tf.reduce_max(tf.abs(flat), axis=1, keepdims=True)
    scaled = tf.math.divide_no_nan(flat, largest)
    return largest[:, 0] * tf.sqrt(tf.reduce_sum(scaled * scaled, axis=1))


def project(delta: tf.Tensor, eps: Any, p: str) -> tf.Tensor:
    """The nearest (Euclidean) point to delta in the Lp ball of radius eps, a scalar or [B]."""
    radius = per_example(eps, delta)
    if p == "linf":
        return tf.clip_by_value(delta, -radius, radius)
    if p == "l1":
        return project_l1(delta, eps, tf.abs(delta))
    size = per_example(norm(delta, p), delta)
    return delta * tf.minimum(1.0, tf.math.divide_no_nan(radius, size))


def project_l1(delta: tf.Tensor, eps: Any, room: tf.Tensor) -> tf.Tensor:
    """The nearest point to delta in the L1 ball whose coordinates are at most `room` long.

    It is sign(delta) * clip(|delta| - t, 0, room) with the least t >= 0 of L1 norm <= eps. room:
    the way to the box's wall, [B, ...]; |delta| for no box.
    """
    flat = [tf.shape(delta)[0], -1]
    size, room = tf.reshape(tf.abs(delta), flat), tf.reshape(room, flat)
    radius = tf.broadcast_to(per_example(eps, size), [tf.shape(size)[0], 1])

    def left(t: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(size - t, 0.0, room)

    # The L1 norm of what is left falls piecewise linearly with t: Newton's steps find the piece
    # without sorting its ends, and halving the bracket (low, high) takes over where they leave it.
    def body(i: tf.Tensor, t: tf.Tensor, low: tf.Tensor, high: tf.Tensor, _: tf.Tensor) -> Any:
        excess = tf.reduce_sum(left(t), axis=1, keepdims=True) - radius
        moving = tf.cast((size > t) & (size - t <= room), size.dtype)
        slope = tf.reduce_sum(moving, axis=1, keepdims=True)
        low, high = tf.where(excess > 0, t, low), tf.where(excess > 0, high, t)
        newton = t + tf.math.divide_no_nan(excess, slope)
        inside = (newton > low) & (newton < high)
        found = (excess <= 1e-6 * radius) & ((excess >= -1e-6 * radius) | (t == 0))
        following = tf.where(inside, newton, 0.5 * (low + high))
        return i + 1, tf.where(found, t, following), low, high, tf.reduce_all(found)

    zero = tf.zeros_like(radius)
    state = (0, zero, zero, tf.reduce_max(size, axis=1, keepdims=True), False)
    end = tf.while_loop(lambda i, *rest: (i < 50) & ~rest[-1], body, state, parallel_iterations=1)
    kept = left(end[1])
    total = tf.reduce_sum(kept, axis=1, keepdims=True)
    kept *= tf.minimum(1.0, tf.math.divide_no_nan(radius, total))  # the rest of the excess
    return tf.sign(delta) * tf.reshape(kept, tf.shape(delta))


def steepest(gradient: tf.Tensor, p: str) -> tf.Tensor:
    """argmax of <gradient, d> over ||d||_p <= 1; zero where the gradient is zero or NaN."""
    if p == "linf":
        direction = tf.sign(gradient)
    elif p == "l1":
        return _largest(gradient)
    else:
        direction = tf.math.divide_no_nan(gradient, per_example(norm(gradient, p), gradient))
    return tf.where(tf.math.is_nan(direction), tf.zeros_like(direction), direction)


def _largest(gradient: tf.Tensor) -> tf.Tensor:
    """The sign of the entry of largest absolute value at its place, 0 elsewhere."""
    flat = tf.reshape(gradient, [tf.shape(gradient)[0], -1])
    flat = tf.where(tf.math.is_nan(flat), tf.zeros_like(flat), flat)
    place = tf.one_hot(tf.argmax(tf.abs(flat), axis=1), tf.shape(flat)[1], dtype=flat.dtype)
    return tf.reshape(place * tf.sign(flat), tf.shape(gradient))
