"""A check that a trained network knows the classes of the images, in their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from tfrobust.errors import UserError

CHANCE = 0.01  # a network is better than chance if guessing would be as good more rarely
CLEAR = 0.5  # the least share that another order has to get right
SHOWN = 10  # names in a message


def check_class_order(
    predicted: np.ndarray, labels: np.ndarray, names: Sequence[str], where: str
) -> None:
    """Raise a UserError unless a network is better than chance at images that it should know.

    If its logits in another order would get most images right, the error names that order.

    Args:
        predicted: The predicted classes, int [N]; -1 for none.
        labels: The classes, int [N].
        names: The names of the classes.
        where: The name of the network in the error.
    """
    n, classes = len(labels), len(names)
    right = int((predicted == labels).sum())
    counts = np.zeros((classes, classes), int)
    valid = predicted >= 0
    np.add.at(counts, (predicted[valid], labels[valid]), 1)
    logits, order = linear_sum_assignment(counts, maximize=True)
    best = int(counts[logits, order].sum())
    received = f"received one that is right on {right / n:.0%} of {n} training images"
    if best >= CLEAR * n and best >= 2 * right:
        raise UserError(
            f"{where}: expected a network with its logits in the order of the classes, {received}, "
            f"and on {best / n:.0%} if its logits stand for {_listed([names[i] for i in order])}"
        )
    if binomtest(right, n, 1 / classes, alternative="greater").pvalue > CHANCE:
        raise UserError(
            f"{where}: expected a network that knows these images, in [0, 1], and the classes "
            f"{_listed(names)}, {received}"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])
