"""The file adversarial.npz, with an adversarial image for each image.

It is the first that broke the image, or the last that was tried if none did.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfrobust.errors import choose, require
from tfrobust.evaluation.crafting import Predict
from tfrobust.evaluation.results import Result, merged, worst_case
from tfrobust.flags import Flags
from tfrobust.io import UNREADABLE, write_atomically

IMAGES = "adversarial.npz"
KINDS = ("float32", "uint8")
GRID = 1e-4  # the tolerance for the rounding of float32, in units of 1/255


class ImageFile:
    """The file of adversarial images in a folder.

    Args:
        folder: The folder to read from and write to.
        kind: "float32", or "uint8" for images rounded to multiples of 1/255.
        clean: The clean images, float32 [N, H, W, C].
        box: The range of valid pixels.

    Raises:
        UserError: For uint8 if the clean images are not multiples of 1/255 in [0, 1] themselves.
    """

    def __init__(
        self, folder: Path, kind: str, clean: np.ndarray, box: tuple[float, float] = (0.0, 1.0)
    ):
        self.path = Path(folder) / IMAGES
        self.kind, self.clean = choose("evaluation.save", kind, KINDS), clean
        if kind == "uint8":
            expected = "float32, since uint8 stands for [0, 1]"
            require(box == (0.0, 1.0), "evaluation.save", expected, kind)
            expected = "float32, since the images are not multiples of 1/255"
            off = max(np.abs(np.rint(255 * image) - 255 * image).max() for image in clean)
            require(off < 1e-3, "evaluation.save", expected, kind)

    def complete(self) -> bool:
        """Return whether the file holds all images as this kind."""
        try:
            with np.load(self.path) as arrays:
                image = arrays["image"]
        except UNREADABLE:
            return False
        return bool(image.dtype == self.kind and image.shape == self.clean.shape)

    def write(self, results: Sequence[Result], flags: Flags, predict: Predict) -> float | None:
        """Write the images of the results over the images in the file.

        Returns:
            For uint8 the worst-case accuracy on the rounded images, as rounding may undo an attack;
            None for float32.
        """
        before = self.clean
        if self.complete():
            with np.load(self.path) as arrays:
                before = _as_float(arrays["image"])
        images, accuracy = merged(before, results), None
        if self.kind == "uint8":
            images = _rounded(images, self.clean)
            n = len(worst_case(results))
            right = predict(_as_float(images[:n])) == flags.label[:n]
            accuracy = float((right & results[0].robust[:n]).mean())
        arrays = {"image": images, "label": flags.label, "index": flags.index}
        write_atomically(self.path, lambda path: np.savez(path, **arrays))
        return accuracy


def _rounded(images: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return images as uint8, rounded towards the clean images so that they stay in the ball."""
    scaled = np.float64(255) * images
    up = images < clean
    levels = np.where(up, np.ceil(scaled - GRID), np.floor(scaled + GRID))
    return levels.astype(np.uint8)


def _as_float(images: np.ndarray) -> np.ndarray:
    return images / np.float32(255) if images.dtype == np.uint8 else images
