"""Made-up images in the shape of a real data set: for smoke runs and tests."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfrobust.data.digits import open_digits
from tfrobust.data.split import Dataset, Split, numbered
from tfrobust.data.tfds import TFDS
from tfrobust.errors import UserError, choose, require

WAVES = 4  # frequencies a direction: smooth even at 8 pixels


@dataclass(frozen=True)
class Synthetic(Dataset):
    """Smooth uint8 images: a pattern for every class plus half as much of an image's own."""

    train: int
    test: int

    def load(self, split: str) -> Split:
        """The same split every time; the classes take turns."""
        height, width, channels = self.image_shape
        waves = (WAVES, WAVES, channels)
        patterns = np.random.default_rng(0).normal(size=(self.num_classes, *waves))
        n, stream = (self.train, 1) if split == "train" else (self.test, 2)
        y = np.arange(n) % self.num_classes
        own = np.random.default_rng(stream).normal(size=(n, *waves))
        smooth = np.einsum(
            "kh,lw,nklc->nhwc",
            _cosines(height),
            _cosines(width),
            patterns[y] + 0.5 * own,
            optimize=True,
        )
        return Split.of((127.5 * (1 + np.tanh(smooth / WAVES))).astype(np.uint8), y)


def imitate(
    like: str | None = None,
    image_shape: list[int] | None = None,
    num_classes: int | None = None,
    train: int = 64,
    test: int = 32,
) -> Synthetic:
    """Synthetic images like those of a named data set, or of image_shape [H, W, C] with
    num_classes classes; `train` and `test` of them. Raises ValueError unless exactly one of the
    two ways is taken.
    """
    for name, size in (("train", train), ("test", test)):
        require(size >= 1, name, "at least 1 example", size)
    explicit = image_shape is not None, num_classes is not None
    if like is not None:
        require(not any(explicit), "like", "no image_shape or num_classes beside it", like)
        known: dict[str, Callable[[], Dataset]] = {"digits": open_digits, **TFDS}
        model = known[choose("like", like, known)]()
        return Synthetic(model.image_shape, model.class_names, train, test)
    if image_shape is None or num_classes is None:
        raise UserError("like: expected a data set, or image_shape and num_classes, received None")
    sized = len(image_shape) == 3 and min(image_shape) >= 1
    require(sized, "image_shape", "[H, W, C] from 1 up", image_shape)
    require(num_classes >= 2, "num_classes", "at least 2", num_classes)
    height, width, channels = image_shape
    return Synthetic((height, width, channels), numbered(num_classes), train, test)


def _cosines(size: int) -> np.ndarray:
    """[WAVES, size]: the lowest frequencies of the discrete cosine transform."""
    at = (np.arange(size) + 0.5) / size
    return np.cos(np.pi * np.arange(WAVES)[:, None] * at)
