"""The check that the first images of a test set can stand for all of them."""

from __future__ import annotations

import math

import numpy as np

from tfrobust.errors import UserError

RARE = 1e-9  # random images are refused more rarely than this


def check_first(labels: np.ndarray, count: int, where: str) -> None:
    """Raise a UserError if the first images have other classes than a random sample would have.

    A test set that is sorted by class begins with images of one class, and an accuracy on these
    says nothing about the others. The images are refused if the total variation distance between
    the shares of the classes among them and among all is larger than that of random images, by
    McDiarmid's inequality: one image moves the distance by at most 1 / count.

    Args:
        labels: The classes of all images, int [N].
        count: The number of images that are used, the first ones.
        where: The name of the limit in the error.
    """
    n, (classes, places) = len(labels), np.unique(labels, return_inverse=True)
    share_of_all = np.bincount(places) / n
    share = np.bincount(places[:count], minlength=len(classes)) / count
    expected = np.sqrt(share_of_all * (1 - share_of_all) / count).sum() / 2
    distance = np.abs(share - share_of_all).sum() / 2
    if distance > expected + math.sqrt(math.log(1 / RARE) / (2 * count)):
        most = np.argmax(share - share_of_all)
        raise UserError(
            f"{where}: expected the first {count:,} of {n:,} images to have classes as all of them "
            f"have, received images of which {share[most]:.0%} are of class {classes[most]}, where "
            f"it is {share_of_all[most]:.0%} of all; shuffle the images and labels together"
        )
