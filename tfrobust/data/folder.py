"""A folder of images, one folder a class, read while training: nothing but the names is held."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
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
BROKEN = "broken image"


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Raises the UserError that names the image where one of `Files` cannot be read."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(rf"\[{BROKEN} (.*)\]", str(error))
        if found is None:
            raise
        line = f"{found[1]}: expected an image that can be read, received a broken one"
        raise UserError(line) from None


@dataclass(frozen=True, eq=False)
class Files:
    """Images [N, H, W, C] uint8 that lie in files; decoded where they are asked for.

    An image is resized so that its shorter side is 256/224 of H, and its centre is cut out.
    places: the files' names as bytes [N].
    """

    places: np.ndarray
    size: tuple[int, int, int]

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.size)

    def __getitem__(self, at: Any) -> Files:
        return type(self)(self.places[at], self.size)

    def joined(self, others: Files) -> Files:
        """These, then the others."""
        return type(self)(np.concatenate([self.places, others.places]), self.size)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """All of them, decoded. Raises UserError for one that cannot be read."""
        places = tf.data.Dataset.from_tensor_slices(self.places)
        decoded = places.map(self._image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        images = np.zeros(self.shape, np.uint8)
        with readable():
            for number, image in enumerate(decoded.as_numpy_iterator()):
                images[number] = image
        return images if dtype is None else images.astype(dtype)

    def gather(self) -> Any:
        """A function for tf.data: positions [B] -> images [B, H, W, C] uint8. What it raises for
        one that cannot be read, `readable` makes a UserError."""
        places = tf.constant(self.places)

        def read(positions: tf.Tensor) -> tf.Tensor:
            image = tf.TensorSpec(self.size, tf.uint8)
            asked = tf.gather(places, positions)
            options: Any = {"parallel_iterations": DECODED_AT_ONCE}
            return tf.map_fn(self._image, asked, fn_output_signature=image, **options)

        return read

    def _encoded(self, place: tf.Tensor) -> tf.Tensor:
        """The bytes of an image file."""
        return tf.io.read_file(place)

    def _image(self, place: tf.Tensor) -> tf.Tensor:
        """The image [H, W, C] uint8, or an error with the name of its place, which TensorFlow's own
        have not."""
        none = tf.data.Dataset.from_tensors(tf.zeros((0, *self.size[1:]), tf.uint8))
        tried = tf.data.Dataset.from_tensors(place).map(self._decode).ignore_errors()
        image = tried.concatenate(none).take(1).get_single_element()
        named = tf.strings.join([BROKEN, " ", place])
        with tf.control_dependencies([tf.debugging.Assert(tf.size(image) > 0, [named])]):
            return tf.ensure_shape(tf.identity(image), self.size)

    def _decode(self, place: tf.Tensor) -> tf.Tensor:
        height, width, channels = self.size
        image = tf.io.decode_image(self._encoded(place), channels, expand_animations=False)
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = CROP * tf.reduce_max(tf.constant([height, width], tf.float32) / shape)
        size = tf.cast(tf.math.ceil(shape * scale), tf.int32)
        resized = tf.image.resize(image, size, antialias=True)
        whole = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return whole[top : top + height, left : left + width]


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
            (os.fsencode(file), label)
            for label, name in enumerate(self.class_names)
            for file in sorted((place / name).iterdir())
            if _is_image(file)
        ]
        paths, labels = np.array([f for f, _ in files]), np.array([y for _, y in files], np.int32)
        whole = Split(Files(paths, self.image_shape), labels, np.arange(len(files)))  # type: ignore
        return whole if split == "train" else drawn(whole, self.test_examples)


def drawn(split: Split, count: int | None) -> Split:
    """So many of the examples, the same ones every time; None is all."""
    order = np.random.default_rng(0).permutation(len(split))
    return split.take(np.sort(order[:count]))


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
