"""Lp geometry of each example: norms, projections and steepest directions for Linf, L2 and L1.

Every function treats the first axis as the batch and all other axes as one vector.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

NORMS = ("linf", "l2", "l1")
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}  # |<a, b>| <= ||a||_p ||b||_DUAL[p]


def per_example(value: Any, x: tf.Tensor) -> tf.Tensor:
    """Return a scalar or a vector [B] in x's dtype, shaped to broadcast with x [B, ...]."""
    return rows(tf.cast(tf.convert_to_tensor(value), x.dtype), x)


def rows(value: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return a vector [B] of any dtype as [B, 1, ..., 1] of x's rank, and a scalar unchanged."""
    return tf.reshape(value, [-1] + [1] * (len(x.shape) - 1)) if value.shape.rank else value


def norm(delta: tf.Tensor, p: str) -> tf.Tensor:
    """Return ||delta||_p of each example: [B, ...] -> [B]."""
    flat = tf.reshape(delta, [tf.shape(delta)[0], -1])
    if p == "linf":
        return tf.reduce_max(tf.abs(flat), axis=1)
    if p == "l1":
        return tf.reduce_sum(tf.abs(flat), axis=1)
    # The entries are divided by the largest: squares of small float32 gradients would underflow.
    largest = tf.reduce_max(tf.abs(flat), axis=1, keepdims=True)
    scaled = tf.math.divide_no_nan(flat, largest)
    return largest[:, 0] * tf.sqrt(tf.reduce_sum(scaled * scaled, axis=1))


def project(delta: tf.Tensor, eps: Any, p: str) -> tf.Tensor:
    """Return the Euclidean projection of delta onto the Lp ball of radius eps, a scalar or [B]."""
    radius = per_example(eps, delta)
    if p == "linf":
        return tf.clip_by_value(delta, -radius, radius)
    if p == "l1":
        return project_l1(delta, eps, tf.abs(delta))
    size = per_example(norm(delta, p), delta)
    return delta * tf.minimum(1.0, tf.math.divide_no_nan(radius, size))


def project_l1(delta: tf.Tensor, eps: Any, room: tf.Tensor) -> tf.Tensor:
    """Return the Euclidean projection of delta onto the L1 ball, with a bound on each coordinate.

    It is sign(delta) * clip(|delta| - t, 0, room) for the smallest t >= 0 with L1 norm <= eps.

    Args:
        delta: The perturbations, [B, ...].
        eps: The radius, a scalar or [B].
        room: The largest absolute value of each coordinate, [B, ...]: the distance to the wall of
            the box, or |delta| if there is no box.

    Returns:
        Perturbations of the same shape.
    """
    flat = [tf.shape(delta)[0], -1]
    size = tf.reshape(tf.abs(delta), flat)
    room = tf.reshape(room, flat)
    radius = tf.broadcast_to(per_example(eps, size), [tf.shape(size)[0], 1])

    def shrunk(t: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(size - t, 0.0, room)

    # The L1 norm of shrunk(t) is piecewise linear in t. Newton's steps find the right piece without
    # sorting. Where a step would leave the bracket (low, high), the bracket is halved instead.
    def body(i: tf.Tensor, t: tf.Tensor, low: tf.Tensor, high: tf.Tensor, _: tf.Tensor) -> Any:
        excess = tf.reduce_sum(shrunk(t), axis=1, keepdims=True) - radius
        moving = tf.cast((size > t) & (size - t <= room), size.dtype)
        slope = tf.reduce_sum(moving, axis=1, keepdims=True)
        low, high = tf.where(excess > 0, t, low), tf.where(excess > 0, high, t)
        newton = t + tf.math.divide_no_nan(excess, slope)
        inside = (newton > low) & (newton < high)
        within = excess <= 1e-6 * radius
        tight = (excess >= -1e-6 * radius) | (t == 0)
        solved = within & tight
        following = tf.where(inside, newton, 0.5 * (low + high))
        return i + 1, tf.where(solved, t, following), low, high, tf.reduce_all(solved)

    def goes_on(i: tf.Tensor, t: tf.Tensor, low: tf.Tensor, high: tf.Tensor, solved: Any) -> Any:
        return (i < 50) & ~solved

    zero = tf.zeros_like(radius)
    state = (0, zero, zero, tf.reduce_max(size, axis=1, keepdims=True), False)
    end = tf.while_loop(goes_on, body, state, parallel_iterations=1)
    length = shrunk(end[1])
    total = tf.reduce_sum(length, axis=1, keepdims=True)
    length *= tf.minimum(1.0, tf.math.divide_no_nan(radius, total))  # removes the last excess
    return tf.sign(delta) * tf.reshape(length, tf.shape(delta))


def steepest(gradient: tf.Tensor, p: str) -> tf.Tensor:
    """Return the d with ||d||_p <= 1 that maximises <gradient, d>.

    It is zero where the gradient is zero or NaN.
    """
    if p == "l1":
        return _largest(gradient)
    if p == "linf":
        direction = tf.sign(gradient)
    else:
        direction = tf.math.divide_no_nan(gradient, per_example(norm(gradient, p), gradient))
    return tf.where(tf.math.is_nan(direction), tf.zeros_like(direction), direction)


def _largest(gradient: tf.Tensor) -> tf.Tensor:
    """Return the sign of the entry of largest absolute value of each example, and 0 elsewhere."""
    flat = tf.reshape(gradient, [tf.shape(gradient)[0], -1])
    flat = tf.where(tf.math.is_nan(flat), tf.zeros_like(flat), flat)
    largest = tf.one_hot(tf.argmax(tf.abs(flat), axis=1), tf.shape(flat)[1], dtype=flat.dtype)
    return tf.reshape(largest * tf.sign(flat), tf.shape(gradient))
