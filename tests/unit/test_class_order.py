"""The check that a network knows the classes, on predictions made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.errors import error_line
from tfrobust.gate import check_class_order

NAMES = ("cat", "dog", "frog", "ship")
LABELS = np.arange(100) % 4


def line(predicted: np.ndarray) -> str:
    return error_line(lambda: check_class_order(predicted, LABELS, NAMES, "network"))


def test_another_order_of_the_classes_is_named() -> None:
    """The logits stand for dog, frog, ship, cat: an image of dog, class 1, has the prediction 0."""
    assert line((LABELS + 3) % 4) == (
        "network: expected a network with its logits in the order of the classes, received one "
        "that is right on 0% of 100 training images, and on 100% if its logits stand for dog, "
        "frog, ship, cat"
    )


@pytest.mark.parametrize("right", [25, 34])
def test_a_network_at_chance_is_refused(right: int) -> None:
    """Of 100 guesses among 4, 35 or more are right with a chance of 1.6 %, 36 of 0.9 %."""
    predicted = np.where(np.arange(100) < right, LABELS, -1)
    assert "in [0, 1], and the classes cat, dog, frog, ship, received one that" in line(predicted)


def test_an_order_that_fits_few_images_of_many_classes_by_chance_is_none() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 30_000, 500)
    predicted = np.where(random.random(500) < 0.3, labels, random.integers(0, 30_000, 500))
    check_class_order(predicted, labels, [str(name) for name in range(30_000)], "network")
    shifted = (LABELS + 1) % 4
    assert "on 100% if its logits stand for ship, cat, dog, frog" in line(shifted)


def test_a_network_that_knows_the_classes_passes() -> None:
    for right, otherwise in ((37, -1), (60, (LABELS + 1) % 4), (100, -1)):
        predicted = np.where(np.arange(100) < right, LABELS, otherwise)
        check_class_order(predicted, LABELS, NAMES, "network")
