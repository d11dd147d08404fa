"""adversarial.npz: for each image the adversary that broke it first, or else the last one tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfrobust.errors import choose, require
from tfrobust.evaluation.crafting import Predict
from tfrobust.evaluation.record import Flags
from tfrobust.evaluation.results import Result, merged, worst_case
from tfrobust.io import UNREADABLE, write_atomically

IMAGES = "adversarial.npz"
KINDS = ("float32", "uint8")
GRID = 1e-4  # of 1/255: float32 rounding


class ImageFile:
    """The file in a folder, as float32 or as uint8, rounded to 1/255.

    clean: the images [N, H, W, C] float32. Raises UserError for uint8 where these are no multiples
    of 1/255 themselves.
    """

    def __init__(self, folder: Path, kind: str, clean: np.ndarray):
        self.path = Path(folder) / IMAGES
        self.kind, self.clean = choose("evaluation.save", kind, KINDS), clean
        if kind == "uint8":
            expected = "float32, as the images are no multiples of 1/255"
            off = max(np.abs(np.rint(255 * image) - 255 * image).max() for image in clean)
            require(off < 1e-3, "evaluation.save", expected, kind)

    def whole(self) -> bool:
        """Return whether the file holds all images in this kind."""
        try:
            with np.load(self.path) as arrays:
                image = arrays["image"]
        except UNREADABLE:
            return False
        return bool(image.dtype == self.kind and image.shape == self.clean.shape)

    def write(self, results: Sequence[Result], flags: Flags, predict: Predict) -> float | None:
        """Write the images that the results hold over those of before.

        Returns, for uint8, the accuracy with the rounded images of those that the headline is
        taken over, since rounding may undo an attack.
        """
        before = self.clean
        if self.whole():
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
    """Multiples of 1/255 as uint8, towards the clean image: what is in the ball stays there."""
    scaled = np.float64(255) * images
    up = images < clean
    levels = np.where(up, np.ceil(scaled - GRID), np.floor(scaled + GRID))
    return levels.astype(np.uint8)


def _as_float(images: np.ndarray) -> np.ndarray:
    return images / np.float32(255) if images.dtype == np.uint8 else images
