"""Adversarial images that another evaluation saved."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from tfrobust.attacks.base import Attack, LogitsFn
from tfrobust.errors import UserError, path_text, require
from tfrobust.io import UNREADABLE, in_home
from tfrobust.serialization import serializable
from tfrobust.threat import Threat


@serializable
@dataclasses.dataclass(frozen=True)
class SavedImages(Attack):
    """Adversarial images that another evaluation saved, perhaps of another network.

    Each image belongs to a position in the split. The evaluation therefore does not run this
    attack: it gets its images from `lookup`, and checks and judges them like those of any attack.

    Args:
        path: An .npz file with `image` [N, H, W, C], float32 in the box or uint8 (divided by 255),
            and `index` [N], the position of each image in the split.
    """

    needs_gradients = False

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", path_text("path", self.path))

    @property
    def title(self) -> str:
        return f"Saved images {Path(self.path).stem}"

    @property
    def files(self) -> list[Path]:
        """The file at `path`."""
        file = in_home(self.path)
        require(file.is_file(), "path", "an .npz file", self.path)
        return [file]

    def lookup(self, rows: np.ndarray) -> np.ndarray:
        """Return the images at positions int [B] of the split, float32 [B, H, W, C].

        Raises UserError if the file lacks one of them.
        """
        images, places = self._content
        numbers = np.array([places.get(int(row), -1) for row in rows], np.int64)
        absent = np.asarray(rows)[numbers < 0]
        if absent.size:
            raise UserError(
                f"path: expected an image for each of {len(rows)} rows, {self.path} has none for "
                f"{absent.size} of them, such as row {absent[0]}"
            )
        chosen = images[numbers]
        if chosen.dtype == np.uint8:
            return chosen.astype(np.float32) / np.float32(255)
        return chosen

    @cached_property
    def _content(self) -> tuple[np.ndarray, dict[int, int]]:
        """The images, and a mapping from positions in the split to numbers of images."""
        try:
            with np.load(in_home(self.path), allow_pickle=False) as arrays:
                images, index = arrays["image"], arrays["index"]
        except UNREADABLE as error:
            line = " ".join(str(error).split())
            raise UserError(
                f"path: expected an .npz file with image and index, received {self.path}: {line}"
            ) from None
        where = f"path: image of {self.path}"
        is_known_type = images.dtype in (np.uint8, np.float32)
        require(is_known_type, where, "float32 or uint8", images.dtype.name)
        sized = 2 <= images.ndim <= 4
        require(sized, where, "images [N, H, W, C] or others [N, ...]", f"shape {images.shape}")
        where = f"path: index of {self.path}"
        fits = index.shape == images.shape[:1] and index.dtype.kind in "iu"
        received = f"{index.dtype.name} of shape {index.shape}"
        require(fits, where, f"{len(images)} integers", received)
        places = {int(place): number for number, place in enumerate(index)}
        require(len(places) == len(index), where, "each place once", "some twice")
        return images, places

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> NoReturn:
        """Raise a UserError, because an attack does not know the rows of its images."""
        raise UserError(
            "saved_images: expected an evaluation, which looks its images up by row, received a "
            "call of the attack"
        )
