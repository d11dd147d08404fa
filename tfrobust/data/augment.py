"""Random augmentation of a batch of images at once."""

from collections.abc import Callable

import tensorflow as tf


def crop(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Pad with zeros by an eighth of the size (4 pixels of 32) and crop at random back to it.

    images: [B, H, W, C] of any dtype. seed: [2] integers, which determine the result.
    """
    return _shift(images, _draw(images, seed))


def crop_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Apply `crop`, then flip left to right with probability 0.5 (He et al., 2016)."""
    draw = _draw(images, seed)
    return _shift(images, draw, flip=draw[2] < 0.5)


AUGMENTATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "crop": crop,
    "crop_flip": crop_flip,
}


def _draw(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    # Philox by name, because the default generator, and so the noise, depends on the device.
    return tf.random.stateless_uniform([3, tf.shape(images)[0]], seed, alg="philox")


def _shift(images: tf.Tensor, draw: tf.Tensor, flip: tf.Tensor | None = None) -> tf.Tensor:
    """Shift the images [B, H, W, C] by random numbers [3, B] in [0, 1), and flip some of them.

    flip: booleans [B], or None. Two gathers for the batch are several times as fast as a map over
    the examples.
    """
    height, width = images.shape[1], images.shape[2]
    tall, wide = round(height / 8), round(width / 8)
    # Uniform over 0 to 2 * padding, because draw < 1.
    top = tf.cast(draw[0] * (2 * tall + 1), tf.int32)
    left = tf.cast(draw[1] * (2 * wide + 1), tf.int32)
    rows = top[:, None] + tf.range(height)
    columns = left[:, None] + tf.range(width)
    if flip is not None:
        columns = tf.where(flip[:, None], columns[:, ::-1], columns)
    padded = tf.pad(images, [[0, 0], [tall, tall], [wide, wide], [0, 0]])
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
