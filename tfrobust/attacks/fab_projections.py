"""The nearest point of a hyperplane inside a box, for Linf, L2 and L1."""

from __future__ import annotations

import tensorflow as tf

from tfrobust.threat import Threat


def to_zero(x: tf.Tensor, slope: tf.Tensor, value: tf.Tensor, threat: Threat) -> tf.Tensor:
    """Return the shortest step d [B, D] with value + <slope, d> = 0 and x + d in the box.

    If the hyperplane misses the box, d leads to the corner nearest to it. Coordinates with slope 0
    do not move.

    Args:
        x: Points in the box, [B, D].
        slope: The slope of a linear function, [B, D].
        value: The value of the function at x, [B].
        threat: The box, and the norm and factors that measure a step.
    """
    low, high = threat.box
    slope = threat.from_ball(slope)
    direction = -tf.sign(slope) * tf.sign(value)[:, None]  # the direction in which |value| falls
    room = threat.in_ball(tf.where(direction > 0, high - x, x - low))
    # Divided by the largest entry, as the squares of small float32 gradients would underflow to 0.
    steepness = tf.abs(slope)
    largest = tf.reduce_max(steepness, axis=1, keepdims=True)
    steepness = tf.math.divide_no_nan(steepness, largest)
    need = tf.math.divide_no_nan(tf.abs(value), largest[:, 0])
    if threat.norm == "l1":
        return threat.from_ball(direction * _steepest_first(steepness, room, need))
    pace = tf.ones_like(room) if threat.norm == "linf" else steepness
    return threat.from_ball(direction * _together(steepness, room, need, pace))


def _together(steepness: tf.Tensor, room: tf.Tensor, need: tf.Tensor, pace: tf.Tensor) -> tf.Tensor:
    """Return the lengths min(t * pace, room) [B, D] with sum(steepness * lengths) = need.

    They are all of the room if that does not suffice. The sum is a concave, piecewise linear
    function of t, so Newton's method from t = 0 never passes the root. It ends at the root, or
    beyond the last piece, in no more steps than there are pieces (commonly 3 to 6).
    """
    gain, capacity = steepness * pace, steepness * room
    full_at = tf.math.divide_no_nan(room, pace)

    def newton(_: tf.Tensor, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        free = full_at > t[:, None]
        remainder = need - tf.reduce_sum(tf.where(free, 0.0, capacity), axis=1)
        rate = tf.reduce_sum(tf.where(free, gain, 0.0), axis=1)
        return t, tf.maximum(t, tf.math.divide_no_nan(remainder, rate))

    start = tf.zeros_like(need)
    _, t = tf.while_loop(lambda before, t: tf.reduce_any(t > before), newton, (start - 1.0, start))
    return tf.where(full_at > t[:, None], t[:, None] * pace, room)


def _steepest_first(steepness: tf.Tensor, room: tf.Tensor, need: tf.Tensor) -> tf.Tensor:
    """Return the lengths [B, D] of least sum with sum(steepness * lengths) = need.

    The steepest coordinates use all of their room, and the least steep of those that move a part
    of it. Equally steep coordinates share this part, as every split has the same sum of lengths.
    """
    capacity = steepness * room
    ordered, order = tf.math.top_k(steepness, k=tf.shape(steepness)[1])
    before = tf.cumsum(tf.gather(capacity, order, batch_dims=1), axis=1, exclusive=True)
    used = tf.reduce_sum(tf.cast(before < need[:, None], tf.int32), axis=1)
    edge = tf.gather(ordered, tf.maximum(used - 1, 0), batch_dims=1)[:, None]
    above, level = steepness > edge, steepness == edge
    remainder = need - tf.reduce_sum(tf.where(above, capacity, 0.0), axis=1)
    level_capacity = tf.reduce_sum(tf.where(level, capacity, 0.0), axis=1)
    part = tf.clip_by_value(tf.math.divide_no_nan(remainder, level_capacity), 0.0, 1.0)[:, None]
    return tf.where(above, room, tf.where(level, part * room, 0.0))
