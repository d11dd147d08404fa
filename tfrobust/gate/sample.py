"""Images that stand for a whole test set, which may be sorted by class."""

from __future__ import annotations

import math

import numpy as np

from tfrobust.errors import UserError

RARE = 1e-9  # random images are refused more rarely than this


def check_first(labels: np.ndarray, count: int, where: str) -> None:
    """Raise a UserError if the first images have other classes than a random sample would have.

    A test set that is sorted by class begins with images of one class, and an accuracy on these
    says nothing about the others.

    Args:
        labels: The classes of all images, int [N].
        count: The number of images that are used, the first ones.
        where: The name of the limit in the error.
    """
    classes, share, share_of_all = _shares(labels, count)
    if _is_unlike(share, share_of_all, count):
        most = np.argmax(share - share_of_all)
        raise UserError(
            f"{where}: expected the first {count:,} of {len(labels):,} images to have classes as "
            f"all of them have, received images of which {share[most]:.0%} are of class "
            f"{classes[most]}, where it is {share_of_all[most]:.0%} of all; shuffle the images and "
            "labels together"
        )


def representative(labels: np.ndarray, count: int) -> slice | np.ndarray:
    """Return the index of up to `count` images that stand for all of them.

    It is a slice of the first images, which copies none. If `check_first` would refuse these, it is
    the places, int [count], of images at equal distances, from the first to the last.

    Args:
        labels: The classes of all images, int [N].
        count: The largest number of images.
    """
    if len(labels) > count:
        _, share, share_of_all = _shares(labels, count)
        if _is_unlike(share, share_of_all, count):
            return np.linspace(0, len(labels) - 1, count).astype(int)
    return slice(count)


def _shares(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the classes [C], and their shares [C] of the first `count` labels and of all."""
    classes, places = np.unique(labels, return_inverse=True)
    first = np.bincount(places[:count], minlength=len(classes))
    return classes, first / count, np.bincount(places) / len(labels)


def _is_unlike(share: np.ndarray, share_of_all: np.ndarray, count: int) -> bool:
    """Return whether the shares of the classes in a sample differ too much from those of all.

    The total variation distance between them is compared with that of random samples, by
    McDiarmid's inequality: one image moves the distance by at most 1 / count.
    """
    expected = np.sqrt(share_of_all * (1 - share_of_all) / count).sum() / 2
    distance = np.abs(share - share_of_all).sum() / 2
    return bool(distance > expected + math.sqrt(math.log(1 / RARE) / (2 * count)))
