"""Random numbers for each image by itself, and constants that depend on the size of the images."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALL, LARGE = 32, 224  # the sides of the images for which the authors publish constants


class Draws:
    """Random numbers for the images of a batch.

    Each image has a stream of its own, which depends on nothing but the arguments. An image is
    therefore corrupted in the same way in every batch.

    Args:
        seed: The seed of the evaluation.
        name: The name of the corruption.
        severity: The severity, 1 to 5.
        places: The place of each image in the test set.
    """

    def __init__(self, seed: int, name: str, severity: int, places: Iterable[int]):
        key = [seed % 2**64, zlib.crc32(name.encode()), severity]
        self.generators = [np.random.default_rng([*key, place]) for place in places]

    def each(self, draw: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
        """Return draw(generator, *rows) of every image, stacked; arrays [N, ...] give the rows."""
        return np.stack([draw(*values) for values in zip(self.generators, *arrays, strict=True)])

    def normal(self, *shape: int) -> np.ndarray:
        """Draw from N(0, 1), float32 [N, *shape]."""
        return self.each(lambda generator: generator.standard_normal(shape, np.float32))

    def uniform(self, *shape: int) -> np.ndarray:
        """Draw from U[0, 1), float32 [N, *shape]."""
        return self.each(lambda generator: generator.random(shape, np.float32))


@dataclass(frozen=True)
class Constant:
    """A constant at each of the five severities, for images of any size.

    Its value is that of the authors for images of 32 and of 224 pixels, and linear in the side of
    the image between them. Smaller images have the value of 32 pixels. Larger ones have that of 224
    pixels, but for a length, which grows with the side.

    Attributes:
        small: The values for images of 32 pixels.
        large: The values for images of 224 pixels.
    """

    small: tuple[float, ...]
    large: tuple[float, ...]

    def amount(self, images: np.ndarray, severity: int) -> float:
        """Return the value for images [N, H, W, C]; their shorter side counts."""
        between = min(max((side(images) - SMALL) / (LARGE - SMALL), 0), 1)
        small, large = self.small[severity - 1], self.large[severity - 1]
        return small + between * (large - small)

    def length(self, images: np.ndarray, severity: int) -> float:
        """Return the value, in pixels, for images [N, H, W, C]."""
        return self.amount(images, severity) * max(1, side(images) / LARGE)


def side(images: np.ndarray) -> int:
    """Return the shorter side of images [N, H, W, C], in pixels."""
    return min(images.shape[1:3])
