"""Checks that a trained network knows the classes of the images, in their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from tfrobust.errors import UserError
from tfrobust.gate.scaling import FEWEST

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
    n = len(labels)
    right = int((predicted == labels).sum())
    received = f"received one that is right on {right / n:.0%} of {n} training images"
    best, class_of = _best_order(predicted, labels)
    if best >= CLEAR and best >= 2 * right / n:
        listed = _listed([names[class_of.get(i, i)] for i in range(len(names))])
        raise UserError(
            f"{where}: expected a network with its logits in the order of the classes, {received}, "
            f"and on {best:.0%} if its logits stand for {listed}"
        )
    if binomtest(right, n, 1 / len(names), alternative="greater").pvalue > CHANCE:
        raise UserError(
            f"{where}: expected a network that knows these images, in [0, 1], and the classes "
            f"{_listed(names)}, {received}"
        )


def check_label_order(logits: np.ndarray, labels: np.ndarray) -> None:
    """Raise a UserError if a network would be right on most images with its logits in another
    order, but is not in this one.

    Fewer than 100 images are not judged, and neither are two classes: if an attack has made the
    images, a network of two classes is wrong on most of them, and the other order would be right.

    Args:
        logits: The logits of the images, [N, C].
        labels: Their classes, int [N].
    """
    predicted = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    n, right = len(labels), (predicted == labels).mean()
    if right >= CLEAR or n < FEWEST or len(np.unique(labels)) < 3:
        return
    best, class_of = _best_order(predicted, labels)
    if best < CLEAR or best < 2 * right:
        return
    logit_of = {label: logit for logit, label in class_of.items()}
    present = sorted({*labels.tolist()} & logit_of.keys())
    places = _listed([f"{label} is logit {logit_of[label]}" for label in present])
    raise UserError(
        f"y: expected labels in the order of the logits, received labels of which {right:.0%} of "
        f"{n} are right, and {best:.0%} if class {places}; tf.gather(network(x), LOGITS, axis=1) "
        "puts the logits into the order of the labels"
    )


def _best_order(predicted: np.ndarray, labels: np.ndarray) -> tuple[float, dict[int, int]]:
    """Return the class of each logit that makes most predictions right, and the share of these.

    Only the logits and classes that occur are matched, because there may be very many others. With
    many classes some order always fits the images by which it was chosen, so half of the images
    choose the order, and the other half give the share.
    """
    half = np.random.default_rng(0).permutation(len(labels)) < len(labels) // 2
    valid = half & (predicted >= 0)
    pairs = np.stack([predicted[valid], labels[valid]])
    occurring, places = np.unique(pairs, return_inverse=True)
    counts = np.zeros((len(occurring), len(occurring)), int)
    np.add.at(counts, tuple(places.reshape(pairs.shape)), 1)
    matches = zip(*linear_sum_assignment(counts, maximize=True), strict=True)
    class_of = {int(occurring[logit]): int(occurring[label]) for logit, label in matches}
    chosen = np.array([class_of.get(logit, logit) for logit in predicted])
    return float((chosen == labels)[~half].mean()), class_of


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])
