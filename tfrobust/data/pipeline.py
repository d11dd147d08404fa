"""Splits and arrays to tf.data of batches, in an order that holds no state."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrobust.data.augment import AUGMENTATIONS
from tfrobust.data.split import Split
from tfrobust.noise import seed_for
from tfrobust.registry import choose, require


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int = 0,
    training: bool = False,
    augment: str | None = None,
    first_step: int = 0,
    steps_per_epoch: int | None = None,
) -> tf.data.Dataset:
    """Batches {"image": float32 [B, H, W, C] in [0, 1], "label": int32 [B], "index": int64 [B]}.

    training=True: endless, `len(split) // batch_size` full batches an epoch (the rest of that
    epoch's order is dropped). The order is a function of (seed, epoch), the augmentation noise of
    (seed, epoch, batch), so a stream begun at `first_step` is the tail of one begun at 0.
    `steps_per_epoch` cuts epochs short; Keras needs the same number, or len(split) // batch_size.
    training=False: one pass in order, the last batch as short as it comes.

    augment: a name in AUGMENTATIONS, only with training=True.
    Raises ValueError for an unknown augmentation, or a batch_size the split cannot fill.
    """
    _check(split, batch_size, training, augment, most=len(split) if training else None)
    collect = _collector(split, seed, augment)
    if not training:
        positions = tf.data.Dataset.range(len(split)).batch(batch_size)
        return _mapped(tf.data.Dataset.zip(tf.data.Dataset.counter(), positions), collect)
    steps = min(steps_per_epoch or len(split), len(split) // batch_size)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        shuffled = tf.random.experimental.stateless_shuffle(
            tf.range(len(split), dtype=tf.int64), seed_for(seed, number, "order"), alg="philox"
        )
        positions = tf.reshape(shuffled[: steps * batch_size], [steps, batch_size])
        counters = number * steps + tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((counters, positions))

    order = tf.data.Dataset.counter(first_step // steps).flat_map(epoch).skip(first_step % steps)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return _mapped(order.apply(endless), collect)


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int = 128,
    *,
    seed: int = 0,
    training: bool = True,
    augment: str | None = None,
) -> tf.data.Dataset:
    """A user's arrays as the batches of `batches`: with the index some methods require.

    x: [N, H, W, C] or [N, H, W], uint8 or float in [0, 1]; y: [N] or [N, 1] class numbers.

    Made for plain `model.fit(from_arrays(x, y), epochs=...)`: one pass over the data set is one
    epoch, every example once, the last batch as short as it comes, so `steps_per_epoch` is not
    needed. training=True shuffles anew at every pass; the passes are a function of the seed (and
    of TensorFlow's global seed, if set), counted from the first. To resume at a later epoch, use
    `batches(Split.of(x, y), ..., training=True, first_step=...)`.

    Raises ValueError if the arrays are not images and class numbers, as for `Split.of`, or as
    for `batches`.
    """
    split = Split.of(x, y)
    if not training:
        return batches(split, batch_size, augment=augment)
    _check(split, batch_size, training, augment)
    positions = tf.data.Dataset.range(len(split))
    positions = positions.shuffle(len(split), seed, reshuffle_each_iteration=True).batch(batch_size)
    # A pass does not know its number, so a fresh random counter takes the place of the batch's.
    counters = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
    return _mapped(tf.data.Dataset.zip(counters, positions), _collector(split, seed, augment))


def _collector(
    split: Split, seed: int, augment: str | None
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    with tf.device("CPU"):  # on a GPU every gather would copy the whole split back
        images, labels, index = (tf.constant(a) for a in (split.images, split.labels, split.index))

    def collect(counter: tf.Tensor, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.gather(images, positions)
        if augment is not None:
            x = AUGMENTATIONS[augment](x, seed_for(seed, counter, "augment"))
        if x.dtype == tf.uint8:  # last: the gathers above move a quarter of the bytes
            x = tf.cast(x, tf.float32) / 255.0
        return {
            "image": x,
            "label": tf.gather(labels, positions),
            "index": tf.gather(index, positions),
        }

    return collect


def _mapped(
    numbered: tf.data.Dataset, collect: Callable[..., dict[str, tf.Tensor]]
) -> tf.data.Dataset:
    mapped = numbered.map(collect, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()  # each of several machines takes its part of a batch
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return mapped.prefetch(tf.data.AUTOTUNE).with_options(options)


def _check(
    split: Split, batch_size: int, training: bool, augment: str | None, most: int | None = None
) -> None:
    if most is None:
        require(batch_size >= 1, "batch_size", "at least 1", batch_size)
    else:
        expected = f"1 to the {most} examples of the split"
        require(1 <= batch_size <= most, "batch_size", expected, batch_size)
    if augment is not None:
        require(training, "augment", "None without training=True", augment)
        choose("augment", augment, AUGMENTATIONS)
