"""Losses by hand: softmax(0, ln 3) = (1/4, 3/4) and softmax(0, 0) = (1/2, 1/2)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import losses

LN3 = float(np.log(3.0))


def test_cross_entropy_by_hand() -> None:
    logits = tf.constant([[0.0, LN3], [0.0, LN3], [0.0, 0.0]])
    values = losses.cross_entropy(logits, tf.constant([1, 0, 0]))
    np.testing.assert_allclose(values, [np.log(4 / 3), np.log(4), np.log(2)], rtol=1e-6)


def test_cross_entropy_of_huge_logits_is_exact() -> None:
    """-log softmax(1000, 0)[1] is 1000 to the last digit of float32."""
    values = losses.cross_entropy(tf.constant([[1000.0, 0.0]]), tf.constant([1]))
    np.testing.assert_allclose(values, [1000.0])


def test_kl_of_both_directions_by_hand() -> None:
    quarter, half = tf.constant([[0.0, LN3]]), tf.constant([[0.0, 0.0]])
    # sum p ln(p / q) with p = (1/4, 3/4), q = (1/2, 1/2), and the other way round
    forward = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    backward = 0.5 * np.log(2.0) + 0.5 * np.log(2.0 / 3.0)
    np.testing.assert_allclose(losses.kl(half, reference=quarter), [forward], rtol=1e-5)
    np.testing.assert_allclose(losses.kl(quarter, reference=half), [backward], rtol=1e-5)
    np.testing.assert_allclose(losses.kl(quarter, reference=quarter), [0.0], atol=1e-7)


def test_gradients_of_kl_in_both_arguments_by_hand() -> None:
    """d/dlogits KL(p || q) = q - p; d/dreference_i = p_i (ln(p_i / q_i) - KL)."""
    reference, logits = tf.constant([[0.0, LN3]]), tf.constant([[0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch([reference, logits])
        value = losses.kl(logits, reference)
    to_reference, to_logits = tape.gradient(value, [reference, logits])
    np.testing.assert_allclose(to_logits, [[0.25, -0.25]], rtol=1e-5)
    p = np.array([0.25, 0.75])
    np.testing.assert_allclose(
        to_reference[0], p * (np.log(p / 0.5) - value.numpy()[0]), rtol=1e-4, atol=1e-6
    )


def test_kl_stays_finite_where_a_probability_is_zero() -> None:
    reference, logits = tf.constant([[500.0, 0.0]]), tf.constant([[0.0, 500.0]])
    np.testing.assert_allclose(losses.kl(logits, reference), [500.0])


def test_margin_is_the_best_rival_minus_the_label() -> None:
    logits = tf.constant([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 0.0]])
    # The label leads by 1, trails by 2, and ties.
    values = losses.margin(logits, tf.constant([1, 0, 0]))
    np.testing.assert_allclose(values, [-1.0, 2.0, 0.0])


def test_gradient_of_the_margin_by_hand() -> None:
    """It is +1 at the best rival and -1 at the label."""
    logits = tf.constant([[1.0, 3.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = losses.margin(logits, tf.constant([1]))
    np.testing.assert_array_equal(tape.gradient(value, logits), [[0.0, -1.0, 1.0]])


def test_dlr_by_hand() -> None:
    """The margins -1 and 3 are divided by z_(1) - z_(3) = 4 - 1."""
    logits = tf.constant([[1.0, 4.0, 3.0, 0.0], [1.0, 4.0, 3.0, 0.0]])
    values = losses.dlr(logits, tf.constant([1, 0]))
    np.testing.assert_allclose(values, [-1 / 3, 1.0], rtol=1e-6)


def test_targeted_dlr_by_hand() -> None:
    """z_t - z_y, -4 and 2, is divided by z_(1) - (z_(3) + z_(4)) / 2 = 4 - 0.5."""
    logits = tf.constant([[1.0, 4.0, 3.0, 0.0, -9.0], [1.0, 4.0, 3.0, 0.0, -9.0]])
    values = losses.targeted_dlr(logits, tf.constant([1, 0]), tf.constant([3, 2]))
    np.testing.assert_allclose(values, [-4 / 3.5, 2 / 3.5], rtol=1e-6)


def test_dlr_does_not_change_with_shift_or_scale_of_the_logits() -> None:
    logits = tf.random.stateless_normal([20, 6], seed=(0, 0))
    labels, targets = tf.zeros(20, tf.int32), tf.ones(20, tf.int32)
    for loss in (losses.dlr, partial(losses.targeted_dlr, targets=targets)):
        moved = loss(1000.0 * logits + 5.0, labels)
        np.testing.assert_allclose(moved, loss(logits, labels), rtol=1e-3, atol=1e-4)


def test_dlr_of_equal_logits_is_finite() -> None:
    logits, labels = tf.ones([1, 5]), tf.constant([2])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        values = losses.dlr(logits, labels), losses.targeted_dlr(logits, labels, labels)
    for value in values:
        assert value.numpy() == 0
        assert np.isfinite(tape.gradient(value, logits)).all()


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_correct_needs_the_largest_logit_at_the_label(dtype: tf.DType) -> None:
    logits = tf.constant([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    values = losses.correct(logits, tf.constant([1, 1, 0], dtype))
    np.testing.assert_array_equal(values, [True, False, True])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_logits_that_are_not_finite_are_wrong(bad: float, place: int) -> None:
    """The argmax of (NaN, 0) would be 0, the right answer for label 0."""
    logits = np.zeros((2, 2), np.float32)
    logits[:, place] = bad
    assert not losses.correct(tf.constant(logits), tf.constant([0, 1])).numpy().any()
