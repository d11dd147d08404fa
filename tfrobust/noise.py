"""Noise without state, which is a function of (run seed, step, purpose).

Under a distribution strategy, noise is drawn for the global batch and every replica takes the rows
of its examples, so that the number of replicas does not change the noise. In the context of
`of_one_replica`, a replica draws noise for its batch alone.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

TINY = 1e-12  # replaces 0 under a logarithm
LEAST = 1e-7  # replaces 0 under the logarithm of a `fraction`, which has 23 bits
MANTISSA = 23  # bits of a float32
_alone = contextvars.ContextVar("alone", default=False)
_rows: contextvars.ContextVar[Any] = contextvars.ContextVar("rows", default=None)
_standing: contextvars.ContextVar[Any] = contextvars.ContextVar("standing", default=None)


@contextlib.contextmanager
def of_one_replica() -> Iterator[None]:
    """Return a context in which a replica draws noise as one device does, for its batch alone."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextlib.contextmanager
def of_rows(size: tf.Tensor, rows: tf.Tensor) -> Iterator[None]:
    """Return a context in which noise is drawn for rows [n] of a batch of `size` examples."""
    token = _rows.set((size, rows))
    try:
        yield
    finally:
        _rows.reset(token)


@contextlib.contextmanager
def standing(row: tf.Tensor) -> Iterator[None]:
    """Return a context in which only these rows [n] of the batch are at work."""
    outer = _standing.get()
    token = _standing.set(row if outer is None else tf.gather(outer, row))
    try:
        yield
    finally:
        _standing.reset(token)


def of_standing(values: tf.Tensor) -> tf.Tensor:
    """Return the rows of a tensor [B, ...] that are at work, which outside `standing` are all."""
    row = _standing.get()
    return values if row is None else tf.gather(values, row)


def seed_for(seed: Any, step: Any, purpose: str) -> tf.Tensor:
    """Return the seed, int64 [2], of one random draw.

    Args:
        seed: The seed of the run.
        step: The training step.
        purpose: The purpose of the draw; different purposes get independent noise.
    """
    base = tf.stack([tf.cast(seed, tf.int64), tf.cast(step, tf.int64)])
    return fold(base, zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def fold(seed: Any, data: Any) -> tf.Tensor:
    """Derive a seed [2] from a seed [2] and an integer, such as the number of a restart."""
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")


def fraction(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draw from U[0, 1), with the same result on every device and under XLA.

    XLA and TensorFlow draw the same integers but different floats, so the floats are made from
    integers.
    """
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg="philox")
    return tf.cast(bits & (2**MANTISSA - 1), tf.float32) / 2**MANTISSA


def shuffled(values: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Return the rows of values [N, ...] in a random order."""
    return tf.gather(values, tf.argsort(fraction(tf.shape(values)[:1], seed), stable=True))


def uniform(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draw from U[-1, 1), of shape [B, ...]."""
    return sliced(lambda full_shape: 2.0 * fraction(full_shape, seed) - 1.0, shape)


def normal(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draw from N(0, 1), of shape [B, ...], by the Box-Muller transform."""

    def draw(full_shape: tf.Tensor) -> tf.Tensor:
        count = tf.reduce_prod(full_shape)
        pairs = fraction([(count + 1) // 2, 2], seed)
        radius = tf.sqrt(-2.0 * tf.math.log(tf.maximum(pairs[:, 0], LEAST)))
        angle = 2.0 * math.pi * pairs[:, 1]
        both = tf.stack([radius * tf.sin(angle), radius * tf.cos(angle)], axis=1)
        return tf.reshape(tf.reshape(both, [-1])[:count], full_shape)

    return sliced(draw, shape)


def uniform_in_ball(
    shape: Any, seed: tf.Tensor, p: str, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Draw a point of the unit Lp ball uniformly for each example; shape [B, ...].

    With a mask of 0 and 1, in the shape of one example, the point is uniform in the ball of the
    coordinates where it is 1, and 0 in the others.
    """
    if p == "linf":
        return uniform(shape, seed) if mask is None else mask * uniform(shape, seed)
    if p == "l1":
        return _uniform_in_l1_ball(shape, seed, mask)
    direction = unit_vectors(shape, seed, mask)
    flat = tf.reshape(direction, [tf.shape(direction)[0], -1])
    quantile = 0.5 * (uniform([tf.shape(direction)[0]], fold(seed, 1)) + 1.0)
    dimension = tf.cast(tf.shape(flat)[1], tf.float32) if mask is None else tf.reduce_sum(mask)
    radius = quantile ** (1.0 / dimension)
    return tf.reshape(radius[:, None] * flat, tf.shape(direction))


def _uniform_in_l1_ball(shape: Any, seed: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Draw lengths of an exponential distribution with random signs, and divide by their total.

    The total is the sum of these lengths and of one more.
    """
    signed = uniform(shape, seed)
    length = -tf.math.log(tf.maximum(tf.abs(signed), TINY))
    length = length if mask is None else mask * length
    extra = 0.5 * (uniform([tf.shape(signed)[0]], fold(seed, 1)) + 1.0)
    axes = list(range(1, len(signed.shape)))
    total = tf.reduce_sum(length, axis=axes, keepdims=True)
    total += tf.reshape(-tf.math.log(tf.maximum(extra, TINY)), tf.shape(total))
    return tf.sign(signed) * length / total


def unit_vectors(shape: Any, seed: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Draw a point of the unit L2 sphere uniformly for each example; shape [B, ...].

    The mask is as in `uniform_in_ball`.
    """
    draw = normal(shape, seed) if mask is None else mask * normal(shape, seed)
    return tf.math.l2_normalize(draw, axis=list(range(1, len(draw.shape))))


def sliced(draw: Callable[[tf.Tensor], tf.Tensor], shape: Any) -> tf.Tensor:
    """Draw noise for the global batch and return the rows of this replica, or those of `of_rows`.

    Args:
        draw: Shape -> noise of that shape.
        shape: The shape of the replica's noise, [B, ...].
    """
    if _rows.get() is None:
        return _of_replica(draw, shape)
    size, rows = _rows.get()
    full_shape = tf.concat([[size], tf.convert_to_tensor(shape)[1:]], axis=0)
    return tf.gather(_of_replica(draw, full_shape), rows)


def of_layer(draw: Callable[[tf.Tensor], tf.Tensor], shape: Any) -> tf.Tensor:
    """Return the noise of a layer for its batch, as `sliced` does for a whole batch.

    In the context of `of_rows`, each example that is at work has its own noise.
    """
    drawn = sliced(draw, shape)
    return drawn if _rows.get() is None else of_standing(drawn)


def _of_replica(draw: Callable[[tf.Tensor], tf.Tensor], shape: Any) -> tf.Tensor:
    """Draw noise for the global batch and return the rows of this replica."""
    context = tf.distribute.get_replica_context()
    replicas = 1 if context is None else context.strategy.num_replicas_in_sync
    if replicas == 1 or _alone.get():
        return draw(shape)
    shape = tf.convert_to_tensor(shape)
    values = draw(tf.concat([shape[:1] * replicas, shape[1:]], axis=0))
    first = context.replica_id_in_sync_group * shape[0]
    return values[first : first + shape[0]]
