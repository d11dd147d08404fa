"""A split of examples, and the interface of a data set."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfrobust.errors import is_int, require, require_seed
from tfrobust.gate import check_images, check_labels

HOLD_OUT = 0x401D  # keeps the hold-out draw apart from other draws with the same seed


@dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split of a data set.

    Attributes:
        images: [N, H, W, C], uint8 or float32 in [0, 1]; an array, or
            `tfrobust.data.files.Files`, which are decoded when they are used. Or series [N, T, C]
            or a table [N, F], float32 in [0, 1].
        labels: [N] int32.
        index: [N] int64, the position of each example in the original split. Subsets keep it, so a
            table with a row for each training example stays valid after a hold-out.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    @classmethod
    def of(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        names: tuple[str, str] = ("x", "y"),
        layout: str | None = None,
    ) -> "Split":
        """Check a user's arrays and return them as a split with the index 0 to N - 1.

        Args:
            x: Images [N, H, W, C] or [N, H, W], uint8 or float in [0, 1], or a table [N, F] or
                series [N, T, C], float in [0, 1].
            y: Class numbers [N] or [N, 1].
            names: The names of x and y in errors.
            layout: "channels_first" for images [N, C, H, W], which are transposed; "channels_last"
                for images that only look channels first; None raises an error for both. "series"
                for [N, T, C], which would be grey images.

        Raises:
            UserError: An array is not as described.
        """
        images = check_images(x, names[0], stored=True, layout=layout)
        labels = check_labels(y, len(images), where=names[1])
        return cls(images, labels, np.arange(len(images), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray | Sequence[int]) -> "Split":
        """Return the examples at these positions of this split, in this order.

        Raises a UserError unless they are whole numbers, each of an example; for a mask, its
        np.flatnonzero are.
        """
        positions = np.asarray(indices)
        whole = positions.ndim == 1 and (positions.dtype.kind in "iu" or not positions.size)
        expected = "positions, int [n] (np.flatnonzero(mask) of a mask)"
        require(whole, "indices", expected, f"{positions.dtype.name} of shape {positions.shape}")
        positions, n = positions.astype(np.int64), len(self)
        outside = positions[(positions < -n) | (positions >= n)]
        require(not outside.size, "indices", f"positions of {n} examples", outside.tolist()[:1])
        return Split(self.images[positions], self.labels[positions], self.index[positions])

    def first(self, n: int) -> "Split":
        """Return the first n examples. Raises UserError if there are fewer."""
        require(_is_up_to(len(self), n), "n", f"0 to {len(self)} examples", n)
        return Split(self.images[:n], self.labels[:n], self.index[:n])

    def as_float(self) -> np.ndarray:
        """Return the images as [N, H, W, C] float32 in [0, 1]."""
        images = np.asarray(self.images)  # decodes images in files
        if images.dtype == np.uint8:
            return images.astype(np.float32) / np.float32(255)
        return images


@dataclass(frozen=True)
class Dataset(ABC):
    """A data set, whose attributes are known before `load` reads any image."""

    image_shape: tuple[int, ...]  # (height, width, channels), (times, channels) or (features,)
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def files(self) -> list[Path]:
        """The files, or the folder of images, from which `load` reads; none if it computes them."""
        return []

    @abstractmethod
    def load(self, split: str) -> Split:
        """Return the split "train" or "test". Raises UserError if it cannot be read."""


def numbered(num_classes: int) -> tuple[str, ...]:
    """Return ("0", "1", ...), the names of classes that have none."""
    return tuple(str(c) for c in range(num_classes))


def hold_out(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Hold out `size` random examples of `train`, which depend on `seed` alone.

    Returns:
        The rest and the held-out examples. Both keep the order and the index of `train`.

    Raises:
        UserError: `size` is no int in [0, len(train)), or `seed` none of 64 bits.
    """
    expected = f"0 to {len(train) - 1} examples to hold out of {len(train)}"
    require(_is_up_to(len(train) - 1, size), "size", expected, size)
    order = np.random.default_rng([HOLD_OUT, require_seed(seed) % 2**64]).permutation(len(train))
    is_held_out = np.zeros(len(train), bool)
    is_held_out[order[:size]] = True
    return train.take(np.flatnonzero(~is_held_out)), train.take(np.flatnonzero(is_held_out))


def _is_up_to(most: int, count: Any) -> bool:
    """Return whether a number of examples is an integer from 0 to `most`."""
    return is_int(count) and 0 <= int(count) <= most
