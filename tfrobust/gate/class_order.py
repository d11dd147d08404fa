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
    received = f"received one that is right on {right / n:.0%} of {n} training images"
    # An order fits the images that chose it by chance if there are many classes: others judge it.
    half = np.random.default_rng(0).permutation(n) < n // 2
    order = _best_order(predicted[half], labels[half], classes)
    otherwise = np.where(predicted >= 0, order[predicted], -1)
    best = (otherwise == labels)[~half].mean()
    if best >= CLEAR and best >= 2 * (predicted == labels)[~half].mean():
        raise UserError(
            f"{where}: expected a network with its logits in the order of the classes, {received}, "
            f"and on {best:.0%} if its logits stand for {_listed([names[i] for i in order])}"
        )
    if binomtest(right, n, 1 / classes, alternative="greater").pvalue > CHANCE:
        raise UserError(
            f"{where}: expected a network that knows these images, in [0, 1], and the classes "
            f"{_listed(names)}, {received}"
        )


def _best_order(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the class of each logit, int [classes], that makes most predictions right.

    Only the classes that occur are matched, because there may be very many others.
    """
    valid = predicted >= 0
    pairs = np.stack([predicted[valid], labels[valid]])
    occurring, places = np.unique(pairs, return_inverse=True)
    counts = np.zeros((len(occurring), len(occurring)), int)
    np.add.at(counts, tuple(places.reshape(pairs.shape)), 1)
    logits, matched = linear_sum_assignment(counts, maximize=True)
    order = np.arange(classes)
    order[occurring[logits]] = occurring[matched]
    return order


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])
