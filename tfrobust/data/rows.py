"""From positions in a split to the rows of a batch there."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrobust.data.files import Files
from tfrobust.data.reading import by_python
from tfrobust.data.split import Split
from tfrobust.errors import require

# From positions [B] to the entries "image", "label" and "index" of a batch.
Rows = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def rows_of(split: Split) -> Rows:
    """Return the function that reads the rows of a split, of which TensorFlow gets a copy."""
    with tf.device("CPU"):  # on a GPU every gather would copy all images back
        labels, index = tf.constant(split.labels), tf.constant(split.index)
        if isinstance(split.images, Files):
            read = split.images.gather()
        else:
            read = functools.partial(tf.gather, tf.constant(split.images))
    return lambda positions: {
        "image": read(positions),
        "label": tf.gather(labels, positions),
        "index": tf.gather(index, positions),
    }


def mixed_rows(split: Split, others: Split) -> Rows:
    """Return the function that reads the rows of a split, and of others where they lie.

    The positions and the index of the others go on after those of the split. Their images are not
    copied: there may be more than fit into memory.

    Raises:
        UserError: The others have images of another size.
    """
    size, other_size = split.images.shape[1:], others.images.shape[1:]
    require(size == other_size, "extra", f"images of {size} as the others", other_size)
    main, read = rows_of(split), _in_place(others.images)
    with tf.device("CPU"):
        labels = tf.constant(others.labels)
    first = int(split.index.max(initial=-1)) + 1
    alike = split.images.dtype == others.images.dtype

    def rows(positions: tf.Tensor) -> dict[str, tf.Tensor]:
        is_other = tf.cast(positions >= len(split), tf.int32)
        places = tf.dynamic_partition(tf.range(tf.size(positions)), is_other, 2)
        here, there = tf.dynamic_partition(positions, is_other, 2)
        there -= len(split)
        label = tf.gather(labels, there)
        parts = [main(here), {"image": read(there), "label": label, "index": there + first}]
        if not alike:
            parts = [part | {"image": as_float(part["image"])} for part in parts]
        return {key: tf.dynamic_stitch(places, [part[key] for part in parts]) for key in parts[0]}

    return rows


def as_float(images: tf.Tensor) -> tf.Tensor:
    """Return images in [0, 1], of which uint8 ones stand for n / 255."""
    return tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images


def _in_place(images: np.ndarray | Files) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the function from positions [B] to images, which are not copied before."""
    if isinstance(images, Files):
        return images.gather()

    def read(positions: tf.Tensor) -> tf.Tensor:
        batch = by_python(lambda at: images[at], positions, images.dtype)
        return tf.ensure_shape(batch, [None, *images.shape[1:]])

    return read
