"""Splits and arrays to tf.data of batches, in an order that holds no state."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfrobust.data.augment import AUGMENTATIONS
from tfrobust.data.files import Files
from tfrobust.data.split import Split
from tfrobust.errors import choose, require
from tfrobust.noise import seed_for


@dataclass(frozen=True)
class Extra:
    """More training examples, such as pseudo-labelled ones (Carmon et al., 2019,
    arXiv:1905.13736): `share` of every batch, each with `weight` times the say of the others."""

    split: Split
    share: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(len(self.split), "split", "examples", "none")
        require(0 < self.share < 1, "share", "a number between 0 and 1", self.share)
        require(self.weight > 0, "weight", "a number > 0", self.weight)

    def rows(self, batch_size: int) -> int:
        """How many of a batch are extra. Raises UserError where they cannot be that many."""
        require(batch_size > 1, "batch_size", "at least 2, for both kinds", batch_size)
        more = min(max(round(self.share * batch_size), 1), batch_size - 1)
        expected = f"at least the {more} examples of a batch"
        require(more <= len(self.split), "extra", expected, len(self.split))
        return more


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int = 0,
    training: bool = False,
    augment: str | None = None,
    first_step: int = 0,
    steps_per_epoch: int | None = None,
    extra: Extra | None = None,
) -> tf.data.Dataset:
    """Batches {"image": float32 [B, H, W, C] in [0, 1], "label": int32 [B], "index": int64 [B]}.

    training=True: endless, `len(split) // batch_size` full batches an epoch (the rest of that
    epoch's order is dropped). The order is a function of (seed, epoch), the augmentation noise of
    (seed, epoch, batch), so a stream begun at `first_step` is the tail of one begun at 0.
    `steps_per_epoch` cuts epochs short; Keras needs the same number, or len(split) // batch_size.
    Under tf.distribute batch_size must be a multiple of the replicas: each has an equal part.
    training=False: one pass in order, the last batch as short as it comes.

    augment: a name in AUGMENTATIONS, only with training=True. extra: examples that are mixed into
    every batch of training, in an order of their own; the batches then have "weight" float32 [B],
    of mean 1, and an epoch is still as many examples as the split has.
    Raises ValueError for an unknown augmentation, or a batch_size the split cannot fill.
    """
    _check(split, batch_size, training, augment, most=len(split) if training else None)
    require(extra is None or training, "extra", "None without training=True", extra)
    whole = split if extra is None else split.joined(extra.split)
    collect = _collector(whole, seed, augment)
    if not training:
        positions = tf.data.Dataset.range(len(split)).batch(batch_size)
        return _mapped(tf.data.Dataset.zip(tf.data.Dataset.counter(), positions), collect)
    steps = min(steps_per_epoch or len(split), len(split) // batch_size)
    more = 0 if extra is None else extra.rows(batch_size)
    # Spread evenly, so that every replica has its share of both.
    spread = np.argsort(np.concatenate([(np.arange(n) + 0.5) / n for n in (batch_size - more, more)
                                        if n]), kind="stable")  # fmt: skip

    def shuffled(first: int, count: int, size: int, seed: tf.Tensor) -> tf.Tensor:
        """[steps, size] of the places from `first` on, each once before any comes again."""
        places = tf.range(first, first + count, dtype=tf.int64)
        places = tf.random.experimental.stateless_shuffle(places, seed, alg="philox")
        return tf.reshape(tf.gather(places, tf.range(steps * size) % count), [steps, size])

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        own = shuffled(0, len(split), batch_size - more, seed_for(seed, number, "order"))
        other = seed_for(seed, number, "order of the extra")
        others = [shuffled(len(split), len(whole) - len(split), more, other)] if more else []
        counters = number * steps + tf.range(steps, dtype=tf.int64)
        positions = tf.gather(tf.concat([own, *others], axis=1), spread, axis=1)
        # Batched again: of a batch of known length TensorFlow on CPU leaves each ReLU a pass of its
        # own, instead of joining it with the BatchNorm or bias before it.
        rows = tf.data.Dataset.from_tensor_slices(tf.reshape(positions, [-1])).batch(batch_size)
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(counters), rows)

    order = tf.data.Dataset.counter(first_step // steps).flat_map(epoch).skip(first_step % steps)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    if extra is None:
        return _mapped(order.apply(endless), collect)
    unit = batch_size / (batch_size - more + more * extra.weight)  # then the mean is 1

    def weighted(counter: tf.Tensor, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        weight = tf.where(positions < len(split), unit, unit * extra.weight)
        return collect(counter, positions) | {"weight": weight}

    return _mapped(order.apply(endless), weighted)


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int = 128,
    *,
    seed: int = 0,
    training: bool = True,
    augment: str | None = None,
    layout: str | None = None,
) -> tf.data.Dataset:
    """A user's arrays as the batches of `batches`: with the index some methods require.

    x: [N, H, W, C] or [N, H, W], uint8 or float in [0, 1]; y: [N] or [N, 1] class numbers; layout:
    as of `Split.of`.

    Made for plain `model.fit(from_arrays(x, y), epochs=...)`: one pass over the data set is one
    epoch, every example once, the last batch as short as it comes, so `steps_per_epoch` is not
    needed. training=True shuffles anew at every pass; the passes are a function of the seed (and
    of TensorFlow's global seed, if set), counted from the first. To resume at a later epoch, use
    `batches(Split.of(x, y), ..., training=True, first_step=...)`.

    Raises ValueError if the arrays are not images and class numbers, as for `Split.of`, or as
    for `batches`.
    """
    split = Split.of(x, y, layout=layout)
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
        labels, index = tf.constant(split.labels), tf.constant(split.index)
        if isinstance(split.images, Files):
            images = split.images.gather()
        else:
            images = functools.partial(tf.gather, tf.constant(split.images))

    def collect(counter: tf.Tensor, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        x = images(positions)
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
