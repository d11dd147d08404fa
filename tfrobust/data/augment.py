"""Random augmentation of a whole batch at once."""

from collections.abc import Callable

import tensorflow as tf


def crop(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Zero-pads by an eighth of the size, 4 pixels of 32, and crops at random back to it.

    images: [B, H, W, C] of any dtype; seed: [2] integers, of which the result is a function.
    """
    return _shift(images, _draw(images, seed))


def crop_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """`crop`, then a mirror image left to right of every second example (He et al. 2016)."""
    draw = _draw(images, seed)
    return _shift(images, draw, flip=draw[2] < 0.5)


AUGMENTATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "crop": crop,
    "crop_flip": crop_flip,
}


def _draw(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    # Philox by name: the default generator depends on the device, and so would the noise.
    return tf.random.stateless_uniform([3, tf.shape(images)[0]], seed, alg="philox")


def _shift(images: tf.Tensor, draw: tf.Tensor, flip: tf.Tensor | None = None) -> tf.Tensor:
    """Two gathers for the batch: several times the speed of a map over the examples."""
    height, width = images.shape[1], images.shape[2]
    tall, wide = round(height / 8), round(width / 8)
    # Uniform over 0 to 2 * pad: draw < 1.
    top, left = (tf.cast(draw[i] * (2 * pad + 1), tf.int32) for i, pad in ((0, tall), (1, wide)))
    rows = top[:, None] + tf.range(height)
    columns = left[:, None] + tf.range(width)
    if flip is not None:
        columns = tf.where(flip[:, None], columns[:, ::-1], columns)
    padded = tf.pad(images, [[0, 0], [tall, tall], [wide, wide], [0, 0]])
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
