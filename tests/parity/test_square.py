"""Square Attack against github.com/fra31/auto-attack: the same schedule and comparable results."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.parity.networks import EPS, EXAMPLES, digits_network, images, reference
from tests.products import slow_but
from tfrobust import Threat, noise
from tfrobust.attacks import Square
from tfrobust.attacks.square_moves import pattern

REFERENCE = reference("square")


def test_shares_of_pixels_are_those_of_the_reference() -> None:
    shares = [Square().share(i) for i in range(5000)]
    np.testing.assert_allclose(shares, REFERENCE["share"], rtol=1e-12)


@pytest.mark.parametrize("norm", EPS)
def test_sides_of_squares_are_those_of_the_reference(norm: str) -> None:
    sides = [Square().side(i, 28, 28, norm) for i in range(5000)]
    np.testing.assert_array_equal(sides, REFERENCE[f"{norm}_side"])


@pytest.mark.parametrize("side", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_pattern_is_that_of_the_reference_or_its_transpose(norm: str, side: int) -> None:
    """The pattern is one of the two orientations between which the reference draws."""
    ours, theirs = pattern(side, norm), REFERENCE[f"{norm}_pattern_{side}"]
    assert min(np.abs(ours - theirs).max(), np.abs(ours.T - theirs).max()) < 1e-6


@pytest.mark.parametrize("norm", slow_but(EPS, ["linf"]))
def test_robust_accuracy_is_in_the_range_of_the_reference(norm: str) -> None:
    """The mean of three draws of 1000 windows is in the range of the reference's three draws.

    The range is widened by two examples, since a fourth draw often leaves that of three.
    """
    network, (x, y) = digits_network(), images()
    x, y = np.tile(x, [3, 1, 1, 1]), np.tile(y, 3)  # every row of a batch has its own draws
    attack = tf.function(Square(queries=1000).run, autograph=False)
    threat, seed = Threat(norm, EPS[norm]), noise.seed_for(0, 0, "square")
    outcome = attack(network, tf.constant(x), tf.constant(y, tf.int32), threat=threat, seed=seed)
    robust = np.argmax(network(outcome.images), axis=1) == y
    # In a batch of another size rounding may mend an image that just broke.
    assert (robust == ~outcome.success.numpy()).sum() >= len(x) - 2
    theirs, slack = REFERENCE[f"{norm}_accuracy"], 2 / EXAMPLES
    assert theirs.min() - slack <= robust.mean() <= theirs.max() + slack
