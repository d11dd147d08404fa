"""A folder of images, one folder a class, read while training: nothing but the names is held."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.data.split import Dataset, Split
from tfrobust.registry import UserError, require

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
CROP = 256 / 224  # the shorter side is resized to so many times the crop's
DECODED_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Files:
    """Images [N, H, W, C] uint8 that lie in files; decoded where they are asked for.

    An image is resized so that its shorter side is 256/224 of H, and its centre is cut out.
    """

    paths: np.ndarray
    size: tuple[int, int, int]

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.size)

    def __getitem__(self, at: Any) -> Files:
        return Files(self.paths[at], self.size)

    def joined(self, others: Files) -> Files:
        """These, then the others."""
        return Files(np.concatenate([self.paths, others.paths]), self.size)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """All of them, decoded."""
        names = tf.data.Dataset.from_tensor_slices(self.paths)
        decoded = names.map(self._decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        images = np.zeros(self.shape, np.uint8)
        for place, image in enumerate(decoded.as_numpy_iterator()):
            images[place] = image
        return images if dtype is None else images.astype(dtype)

    def gather(self) -> Any:
        """A function for tf.data: positions [B] -> images [B, H, W, C] uint8."""
        paths = tf.constant(self.paths)

        def read(positions: tf.Tensor) -> tf.Tensor:
            image = tf.TensorSpec(self.size, tf.uint8)
            names = tf.gather(paths, positions)
            options: Any = {"parallel_iterations": DECODED_AT_ONCE}
            return tf.map_fn(self._decode, names, fn_output_signature=image, **options)

        return read

    def _decode(self, path: tf.Tensor) -> tf.Tensor:
        height, width, channels = self.size
        image = tf.io.decode_image(tf.io.read_file(path), channels, expand_animations=False)
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = CROP * tf.reduce_max(tf.constant([height, width], tf.float32) / shape)
        size = tf.cast(tf.math.ceil(shape * scale), tf.int32)
        resized = tf.image.resize(image, size, antialias=True)
        whole = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return tf.ensure_shape(whole[top : top + height, left : left + width], self.size)


@dataclass(frozen=True)
class Folder(Dataset):
    """Images below path/train and path/test (or path/val); see `open_folder`."""

    path: Path
    test_examples: int | None

    def load(self, split: str) -> Split:
        """A split whose images are read when they are used; the index is the place of a file in
        the sorted list of all."""
        place = self.path / split
        if split == "test" and not place.is_dir():
            place = self.path / "val"
        files = [
            (str(file), label)
            for label, name in enumerate(self.class_names)
            for file in sorted((place / name).iterdir())
            if _is_image(file)
        ]
        paths, labels = np.array([f for f, _ in files]), np.array([y for _, y in files], np.int32)
        whole = Split(Files(paths, self.image_shape), labels, np.arange(len(files)))  # type: ignore
        if split == "test" and self.test_examples is not None:
            order = np.random.default_rng(0).permutation(len(whole))
            return whole.take(np.sort(order[: self.test_examples]))
        return whole


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".")


def open_folder(path: str, image_size: int = 224, test_examples: int | None = None) -> Folder:
    """Looks at the folders, at no image.

    path: holds train/CLASS/IMAGE and test/CLASS/IMAGE (or val/), as ImageNet is commonly kept;
    JPEG, PNG, BMP or GIF. image_size: of the square that is cut out.
    test_examples: attack so many of the test images, at random, which are then held in memory; None
    is all. Raises UserError for folders that are not there, differ in their classes, or are empty.
    """
    root = Path(path).expanduser()
    require(image_size >= 1, "image_size", "int >= 1", image_size)
    count = test_examples
    require(count is None or count >= 1, "test_examples", "int >= 1", count)
    held = root / "test" if (root / "test").is_dir() else root / "val"
    names = []
    for place in (root / "train", held):
        if not place.is_dir():
            expected = "a folder with train/CLASS and test/CLASS (or val/CLASS)"
            raise UserError(f"path: expected {expected}, received {path}: no {place.name}")
        names.append(sorted(folder.name for folder in place.iterdir() if folder.is_dir()))
        for name in names[-1]:
            some = any(_is_image(file) for file in (place / name).iterdir())
            require(some, "path", f"images in {place / name}", "none")
    require(len(names[0]) >= 2, "path", f"at least 2 classes in {root / 'train'}", len(names[0]))
    apart = sorted(set(names[0]) ^ set(names[1]))
    require(not apart, "path", f"the same classes in train and {held.name}", ", ".join(apart))
    return Folder((image_size, image_size, 3), tuple(names[0]), root, count)
