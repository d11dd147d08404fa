"""Losses per example: logits [B, C] and labels [B] (or reference logits [B, C]) -> [B]."""

from __future__ import annotations

import tensorflow as tf

TINY = 1e-12  # keeps the ratios finite where the largest logits are equal


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the cross entropy, -log softmax(logits)[label].

    For targets [B, C], the probabilities of the classes, it is -sum_c target_c log softmax_c.
    """
    if len(labels.shape) == 2:
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def smoothed(targets: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Return (1 - smoothing) * targets + smoothing / C (Szegedy et al., 2016, arXiv:1512.00567).

    The targets are probabilities of the C classes, [B, C].
    """
    return (1.0 - smoothing) * targets + smoothing / targets.shape[-1]


def kl(logits: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    """Return KL(softmax(reference) || softmax(logits)). The gradient flows through both."""
    log_p, log_q = tf.nn.log_softmax(reference), tf.nn.log_softmax(logits)
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the margin, max_{i != y} z_i - z_y (Carlini and Wagner, 2017).

    It is positive where the example is misclassified.
    """
    truth = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False)
    rival = tf.reduce_max(tf.where(truth, logits.dtype.min, logits), axis=-1)
    return rival - tf.gather(logits, labels, axis=-1, batch_dims=1)


def soft_margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return log sum_{i != y} exp z_i - z_y, a smooth upper bound of `margin`."""
    truth = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False)
    rivals = tf.reduce_logsumexp(tf.where(truth, logits.dtype.min, logits), axis=-1)
    return rivals - tf.gather(logits, labels, axis=-1, batch_dims=1)


def dlr(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the difference of logits ratio, (max_{i != y} z_i - z_y) / (z_(1) - z_(3)).

    z_(k) is the k-th largest logit, so there must be three classes or more. The ratio does not
    change when the logits are shifted or scaled (Croce and Hein, 2020, arXiv:2003.01690).
    """
    top = tf.math.top_k(logits, 3).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + TINY)


def targeted_dlr(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Return the targeted DLR loss, (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2).

    t is the target, int [B]. There must be four classes or more (Croce and Hein, 2020).
    """
    top = tf.math.top_k(logits, 4).values
    target_logit = tf.gather(logits, targets, axis=-1, batch_dims=1)
    label_logit = tf.gather(logits, labels, axis=-1, batch_dims=1)
    return (target_logit - label_logit) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + TINY)


def predicted(logits: tf.Tensor) -> tf.Tensor:
    """Return the predicted classes, int32 [B]: the argmax, or -1 if a logit is not finite."""
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return tf.where(finite, tf.argmax(logits, axis=-1, output_type=tf.int32), -1)


def correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return whether each label is predicted, bool [B].

    An example with a logit that is not finite counts as wrong, so never as robust.
    """
    return tf.equal(predicted(logits), tf.cast(labels, tf.int32))
