"""Losses per example: logits [B, C] and labels [B] (or reference logits [B, C]) -> [B]."""

from __future__ import annotations

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """-log softmax(logits)[label]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def kl(logits: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    """KL(softmax(reference) || softmax(logits)); the gradient flows through both."""
    log_p, log_q = tf.nn.log_softmax(reference), tf.nn.log_softmax(logits)
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """max_{i != y} z_i - z_y (Carlini and Wagner, 2017): positive where misclassified."""
    truth = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False)
    rival = tf.reduce_max(tf.where(truth, logits.dtype.min, logits), axis=-1)
    return rival - tf.gather(logits, labels, axis=-1, batch_dims=1)


def correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """bool [B]: the label is the argmax; NaN logits count as wrong, never as robust."""
    predicted = tf.argmax(logits, axis=-1, output_type=labels.dtype)
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return tf.logical_and(tf.equal(predicted, labels), finite)
