"""Synthetic images, series and tables in the shape of a real data set, for smoke runs and tests."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfrobust.data.breast_cancer import open_breast_cancer
from tfrobust.data.digits import open_digits
from tfrobust.data.split import Dataset, Split, numbered
from tfrobust.data.tfds import TFDS
from tfrobust.errors import UserError, choose, require, require_at_least

WAVES = 4  # frequencies in each direction, few enough to be smooth at 8 pixels


@dataclass(frozen=True)
class Synthetic(Dataset):
    """Smooth uint8 images, the sum of the pattern of the class and half a pattern of the image.

    Series are as smooth in time. They and tables are multiples of 1/255 in float32.
    """

    train: int
    test: int

    def load(self, split: str) -> Split:
        """Return a split, which is always the same, with the classes in turn."""
        *lengths, channels = self.image_shape
        waves = (*[WAVES for _ in lengths], channels)
        patterns = np.random.default_rng(0).normal(size=(self.num_classes, *waves))
        n, stream = (self.train, 1) if split == "train" else (self.test, 2)
        y = np.arange(n) % self.num_classes
        noise = np.random.default_rng(stream).normal(size=(n, *waves))
        sums = {2: "kh,lw,nklc->nhwc", 1: "kt,nkc->ntc", 0: "nc->nc"}[len(lengths)]
        smooth = np.einsum(sums, *map(_cosines, lengths), patterns[y] + 0.5 * noise, optimize=True)
        images = (127.5 * (1 + np.tanh(smooth / WAVES))).astype(np.uint8)
        if len(lengths) == 2:
            return Split.of(images, y)
        layout = "series" if lengths else None
        return Split.of(images.astype(np.float32) / np.float32(255), y, layout=layout)


def imitate(
    like: str | None = None,
    image_shape: list[int] | None = None,
    num_classes: int | None = None,
    train: int = 64,
    test: int = 32,
) -> Synthetic:
    """Make synthetic images in the shape of a data set, or in any shape.

    Args:
        like: The name of the data set from which shape and classes are taken.
        image_shape: The shape [H, W, C], [T, C] or [F], instead of `like` and together with
            `num_classes`.
        num_classes: The number of classes, at least 2.
        train: The number of training images.
        test: The number of test images.

    Raises:
        UserError: There is neither `like` nor `image_shape` with `num_classes`, or both.
    """
    require_at_least(1, train=train, test=test)
    if like is not None:
        is_only = image_shape is None and num_classes is None
        require(is_only, "like", "no image_shape or num_classes beside it", like)
        datasets: dict[str, Callable[[], Dataset]] = {
            "digits": open_digits,
            "breast_cancer": open_breast_cancer,
            **TFDS,
        }
        original = datasets[choose("like", like, datasets)]()
        return Synthetic(original.image_shape, original.class_names, train, test)
    if image_shape is None or num_classes is None:
        raise UserError("like: expected a data set, or image_shape and num_classes, received None")
    positive = 1 <= len(image_shape) <= 3 and min(image_shape) >= 1
    require(positive, "image_shape", "[H, W, C], [T, C] or [F] from 1 up", image_shape)
    require_at_least(2, num_classes=num_classes)
    return Synthetic(tuple(image_shape), numbered(num_classes), train, test)


def _cosines(size: int) -> np.ndarray:
    """Return [WAVES, size], the lowest frequencies of the discrete cosine transform."""
    positions = (np.arange(size) + 0.5) / size
    return np.cos(np.pi * np.arange(WAVES)[:, None] * positions)
