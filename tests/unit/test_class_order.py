"""The check that a network knows the classes, on predictions made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.errors import error_line
from tfrobust.gate import check_class_order
from tfrobust.gate.class_order import check_label_order

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


def one_hot(predicted: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[predicted]


def test_labels_in_another_order_are_refused() -> None:
    """The labels begin at 1 where the logits begin at 0."""
    expected = (
        "y: expected labels in the order of the logits, received labels of which 0% of 100 are "
        "right, and 100% if class 1 is logit 0, class 2 is logit 1"
    )
    logits = one_hot(LABELS[LABELS < 3][:100], 4)
    labels = np.tile(LABELS[LABELS < 3] + 1, 2)[:100]
    text = error_line(lambda: check_label_order(np.tile(logits, (2, 1))[:100], labels))
    assert text.startswith(expected.replace(", class 2 is", ", 2 is"))


def test_logits_of_a_larger_network_are_named() -> None:
    """Ten classes of ImageNet have other numbers among its thousand."""
    labels = np.arange(200) % 10
    predicted = np.array([0, 217, 482, 491, 497, 566, 569, 571, 574, 701])[labels]
    predicted[:40] = 5
    text = error_line(lambda: check_label_order(one_hot(predicted, 1000), labels))
    assert "received labels of which 10% of 200 are right, and" in text
    assert "if class 0 is logit 0, 1 is logit 217, 2 is logit 482" in text
    assert text.endswith(
        "tf.gather(network(x), LOGITS, axis=1) puts the logits into the order of the labels"
    )


@pytest.mark.parametrize(
    ("predicted", "labels"),
    [
        ((LABELS + 1) % 2, LABELS % 2),  # of two classes
        ((LABELS[:99] + 1) % 4, LABELS[:99]),  # too few images
        (np.zeros(100, int), LABELS),  # one answer
        (np.where(np.arange(100) < 50, LABELS, (LABELS + 1) % 4), LABELS),
    ],
)
def test_labels_that_may_be_in_order_are_accepted(
    predicted: np.ndarray, labels: np.ndarray
) -> None:
    check_label_order(one_hot(predicted, 4), labels)


def test_logits_that_are_not_finite_are_wrong_in_any_order() -> None:
    logits = np.full((100, 4), np.nan)
    logits[0] = [0, 1, 0, 0]
    check_label_order(logits, LABELS)
