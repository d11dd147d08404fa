"""The squared Frobenius norm of the input Jacobian, estimated by one random projection."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def squared_jacobian(
    logits_fn: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, projection: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Logits [B, C] at x, and C * ||grad_x <v, f(x)>||^2 [B]; projection [B, C] holds unit v.

    Its mean over v uniform on the sphere is ||J(x)||_F^2 (Hoffman et al., 2019, arXiv:1908.02729;
    their package returns half of it). Differentiable once more inside an outer tape. With
    BatchNorm in training mode the gradient also holds the terms across the batch.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = logits_fn(x)
        # A sum, not a mean: small float16 gradients would underflow.
        along = tf.reduce_sum(projection * tf.cast(logits, tf.float32))
    gradient = tf.cast(tape.gradient(along, x), tf.float32)
    squared = tf.reduce_sum(gradient * gradient, axis=list(range(1, len(x.shape))))
    return logits, float(logits.shape[-1]) * squared
