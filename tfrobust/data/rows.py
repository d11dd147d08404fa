"""The rows of a batch from their positions in a split."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrobust.data.files import Files
from tfrobust.data.reading import call_python
from tfrobust.data.split import Split
from tfrobust.errors import require

# A function from positions [B] to the entries "image", "label" and "index" of a batch.
Rows = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def rows_of(split: Split) -> Rows:
    """Return the function that reads the rows of a split. TensorFlow gets a copy of the split."""
    with tf.device("CPU"):  # on a GPU every gather would copy all images back
        labels, index = tf.constant(split.labels), tf.constant(split.index)
        if isinstance(split.images, Files):
            read = split.images.gather()
        else:
            read = functools.partial(tf.gather, tf.constant(split.images))

    def rows(positions: tf.Tensor) -> dict[str, tf.Tensor]:
        label, indices = tf.gather(labels, positions), tf.gather(index, positions)
        return {"image": read(positions), "label": label, "index": indices}

    return rows


def mixed_rows(split: Split, others: Split) -> Rows:
    """Return the function that reads the rows of a split and of other examples.

    The positions and the index of the others continue after those of the split. Their images are
    not copied, because there may be more than fit into memory.

    Raises:
        UserError: The others have images of another size.
    """
    size, other_size = split.images.shape[1:], others.images.shape[1:]
    require(size == other_size, "extra", f"images of {size} as the others", other_size)
    read_main, read_images = rows_of(split), _in_place(others.images)
    with tf.device("CPU"):
        labels = tf.constant(others.labels)
    first_index = int(split.index.max(initial=-1)) + 1

    def read_others(positions: tf.Tensor) -> dict[str, tf.Tensor]:
        label = tf.gather(labels, positions)
        return {"image": read_images(positions), "label": label, "index": first_index + positions}

    def rows(positions: tf.Tensor) -> dict[str, tf.Tensor]:
        is_other = tf.cast(positions >= len(split), tf.int32)
        places = tf.dynamic_partition(tf.range(tf.size(positions)), is_other, 2)
        main, other = tf.dynamic_partition(positions, is_other, 2)
        parts = [read_main(main), read_others(other - len(split))]
        if split.images.dtype != others.images.dtype:
            parts = [part | {"image": as_float(part["image"])} for part in parts]
        return {key: tf.dynamic_stitch(places, [part[key] for part in parts]) for key in parts[0]}

    return rows


def as_float(images: tf.Tensor) -> tf.Tensor:
    """Return images in [0, 1], where n in uint8 images becomes n / 255."""
    return tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images


def _in_place(images: np.ndarray | Files) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the function from positions [B] to images, which makes no copy of all images."""
    if isinstance(images, Files):
        return images.gather()

    def read(positions: tf.Tensor) -> tf.Tensor:
        batch = call_python(images.__getitem__, positions, images.dtype)
        return tf.ensure_shape(batch, [None, *images.shape[1:]])

    return read
