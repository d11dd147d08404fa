"""Images in memory, and what a data set is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfrobust.errors import require
from tfrobust.gate import check_images, check_labels

HOLD_OUT = 0x401D  # purpose tag: the hold-out draw shares no stream with other draws of the seed


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set, decoded once, or file by file (`tfrobust.data.files.Files`).

    images: [N, H, W, C], uint8 or float32 in [0, 1].
    labels: [N] int32.
    index:  [N] int64, the example's position in the original split; subsets keep it, so a table
            with a row per training example stays valid after a hold-out.
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
        """A checked split of a user's arrays, with index 0..N-1.

        x: [N, H, W, C] or [N, H, W], uint8 or float in [0, 1]; y: [N] or [N, 1] class numbers.
        layout: "channels_first" for x [N, C, H, W], which is transposed; None asks, by an error,
        where x looks like it, and "channels_last" is the answer that it is not.
        Raises UserError naming the array, by `names`, that is not so.
        """
        images = check_images(x, names[0], stored=True, layout=layout)
        labels = check_labels(y, len(images), where=names[1])
        return cls(images, labels, np.arange(len(images), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray | Sequence[int]) -> "Split":
        """The examples at these positions of this split, in this order."""
        at = np.asarray(indices, dtype=np.int64)
        return Split(self.images[at], self.labels[at], self.index[at])

    def first(self, n: int) -> "Split":
        """The first n examples. Raises ValueError if there are fewer."""
        require(0 <= n <= len(self), "n", f"0 to {len(self)} examples", n)
        return Split(self.images[:n], self.labels[:n], self.index[:n])

    def joined(self, others: "Split") -> "Split":
        """These examples, then the others; theirs get the index after the greatest of these.

        Raises ValueError unless their images are of one size.
        """
        sizes = self.images.shape[1:], others.images.shape[1:]
        require(sizes[0] == sizes[1], "images", f"{sizes[0]} as the others", sizes[1])
        images = [self.images, others.images]
        kinds = {type(part) for part in images}
        expected = "both in memory, or both in files"
        require(
            len(kinds) == 1, "images", expected, " and ".join(sorted(k.__name__ for k in kinds))
        )
        if len({part.dtype for part in images}) > 1:
            images = [self.as_float(), others.as_float()]
        own: Any = self.images
        whole = np.concatenate(images) if kinds == {np.ndarray} else own.joined(others.images)
        after = np.arange(len(others), dtype=np.int64) + self.index.max(initial=-1) + 1
        return Split(
            whole,
            np.concatenate([self.labels, others.labels]),
            np.concatenate([self.index, after]),
        )

    def as_float(self) -> np.ndarray:
        """The images as [N, H, W, C] float32 in [0, 1]."""
        images = np.asarray(self.images)  # decoded, where they lie in files
        if images.dtype == np.uint8:
            return images.astype(np.float32) / np.float32(255)
        return images


@dataclass(frozen=True)
class Dataset(ABC):
    """What is known of a data set before any image is read; `load` reads them."""

    image_shape: tuple[int, int, int]  # height, width, channels
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abstractmethod
    def load(self, split: str) -> Split:
        """The split "train" or "test". Raises ValueError if it cannot be had."""


def numbered(num_classes: int) -> tuple[str, ...]:
    """Class names where classes have none: ("0", "1", ...)."""
    return tuple(str(c) for c in range(num_classes))


def hold_out(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """(rest, validation): `size` random examples of `train` held out, a function of `seed`.

    Both keep the order and the index of `train`. Raises ValueError unless 0 <= size < len(train).
    """
    expected = f"0 to {len(train) - 1} examples to hold out of {len(train)}"
    require(0 <= size < len(train), "size", expected, size)
    held = np.zeros(len(train), bool)
    held[np.random.default_rng([HOLD_OUT, seed]).permutation(len(train))[:size]] = True
    return train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))
