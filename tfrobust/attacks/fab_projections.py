"""The nearest point of a hyperplane inside a box, for Linf, L2 and L1."""

from __future__ import annotations

import tensorflow as tf


def to_zero(
    x: tf.Tensor, slope: tf.Tensor, value: tf.Tensor, box: tuple[float, float], p: str
) -> tf.Tensor:
    """The step d [B, D] of least Lp norm to where value + <slope, d> = 0, with x + d in the box.

    x [B, D] lies in the box, value [B] is the linear function there. Where the hyperplane misses
    the box, d leads to the corner nearest to it. Coordinates of slope 0 stay.
    """
    way = -tf.sign(slope) * tf.sign(value)[:, None]  # where |value| falls
    room = tf.where(way > 0, box[1] - x, x - box[0])
    # Scaled by the largest entry: the squares of small float32 gradients would underflow to zero.
    steepness = tf.abs(slope)
    largest = tf.reduce_max(steepness, axis=1, keepdims=True)
    steepness = tf.math.divide_no_nan(steepness, largest)
    need = tf.math.divide_no_nan(tf.abs(value), largest[:, 0])
    if p == "l1":
        return way * _steepest_first(steepness, room, need)
    return way * _together(steepness, room, need, tf.ones_like(room) if p == "linf" else steepness)


def _together(steepness: tf.Tensor, room: tf.Tensor, need: tf.Tensor, pace: tf.Tensor) -> tf.Tensor:
    """Lengths min(t * pace, room) with sum(steepness * lengths) = need, or all of the room.

    The sum is a concave, piecewise linear function of t: Newton's method from t = 0 never passes
    the root. It ends there, or beyond the last piece, in no more steps than there are pieces
    (commonly 3 to 6).
    """
    gain, all_of_it = steepness * pace, steepness * room
    full_at = tf.math.divide_no_nan(room, pace)

    def newton(_: tf.Tensor, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        free = full_at > t[:, None]
        left = need - tf.reduce_sum(tf.where(free, 0.0, all_of_it), axis=1)
        rate = tf.reduce_sum(tf.where(free, gain, 0.0), axis=1)
        return t, tf.maximum(t, tf.math.divide_no_nan(left, rate))

    start = tf.zeros_like(need)
    _, t = tf.while_loop(lambda before, t: tf.reduce_any(t > before), newton, (start - 1.0, start))
    return tf.where(full_at > t[:, None], t[:, None] * pace, room)


def _steepest_first(steepness: tf.Tensor, room: tf.Tensor, need: tf.Tensor) -> tf.Tensor:
    """Lengths of least sum: all of the room of the steepest coordinates, a part of the last one.

    Coordinates that are as steep as the last one share its part; any split is of the same length.
    """
    all_of_it = steepness * room
    ordered, order = tf.math.top_k(steepness, k=tf.shape(steepness)[1])
    before = tf.cumsum(tf.gather(all_of_it, order, batch_dims=1), axis=1, exclusive=True)
    used = tf.reduce_sum(tf.cast(before < need[:, None], tf.int32), axis=1)
    edge = tf.gather(ordered, tf.maximum(used - 1, 0), batch_dims=1)[:, None]
    above, level = steepness > edge, steepness == edge
    left = need - tf.reduce_sum(tf.where(above, all_of_it, 0.0), axis=1)
    part = tf.math.divide_no_nan(left, tf.reduce_sum(tf.where(level, all_of_it, 0.0), axis=1))
    part = tf.clip_by_value(part, 0.0, 1.0)[:, None]
    return tf.where(above, room, tf.where(level, part * room, 0.0))
