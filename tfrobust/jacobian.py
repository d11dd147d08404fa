"""An estimate of the input Jacobian's squared Frobenius norm by one random projection."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfrobust.threat import Threat


def squared_jacobian(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    projection: tf.Tensor,
    threat: Threat | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the logits at x and the Jacobian estimate C * ||grad_x <v, f(x)>||^2.

    The mean of the estimate over v uniform on the unit sphere is ||J(x)||_F^2 (Hoffman et al.,
    2019, arXiv:1908.02729; their package returns half of it). It can be differentiated in an outer
    tape. With BatchNorm in training mode, the gradient includes the terms across the batch.

    Args:
        logits_fn: Images -> logits [B, C].
        x: Images [B, H, W, C].
        projection: The unit vectors v, [B, C].
        threat: A threat by whose factors on eps the columns of the Jacobian are multiplied, so
            that features that cannot change do not count.

    Returns:
        Logits [B, C], and the estimates float32 [B].
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = logits_fn(x)
        # A sum, not a mean: small float16 gradients would underflow.
        projected = tf.reduce_sum(projection * tf.cast(logits, tf.float32))
    gradient = tf.cast(tape.gradient(projected, x), tf.float32)
    gradient = gradient if threat is None else threat.from_ball(gradient)
    squared = tf.reduce_sum(gradient * gradient, axis=list(range(1, len(x.shape))))
    return logits, float(logits.shape[-1]) * squared
