"""tf.data of batches from splits and arrays, in an order that has no state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.data.augment import (
    Augment,
    Augmentation,
    in_sequence,
    require_equal_weights,
    require_images,
)
from tfrobust.data.reading import untuned
from tfrobust.data.rows import Rows, as_float, mixed_rows, rows_of
from tfrobust.data.split import Split
from tfrobust.errors import number, require, require_at_least, require_bool, require_seed
from tfrobust.noise import fold, seed_for


@dataclass(frozen=True)
class Extra:
    """Additional training examples, such as pseudo-labelled or generated ones.

    Carmon et al. (2019, arXiv:1905.13736) add pseudo-labelled images, Wang et al. (2023,
    arXiv:2302.04638) generated ones.

    Attributes:
        split: The examples. Their images are not copied, but read in memory or in their file.
        share: The share of these examples in every batch, between 0 and 1.
        weight: The weight of each example in the loss, relative to the other examples.
    """

    split: Split
    share: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        _require_split(self.split)
        require(len(self.split), "split", "examples", "none")
        object.__setattr__(self, "share", number("share", self.share, above=0, below=1))
        object.__setattr__(self, "weight", number("weight", self.weight, above=0))

    def rows(self, batch_size: int) -> int:
        """Return the number of extra examples in a batch. Raises UserError if there are fewer."""
        require(batch_size > 1, "batch_size", "at least 2, for both kinds", batch_size)
        count = min(max(round(self.share * batch_size), 1), batch_size - 1)
        expected = f"at least the {count} examples of a batch"
        require(count <= len(self.split), "extra", expected, len(self.split))
        return count


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int = 0,
    training: bool = False,
    augment: Augment = None,
    first_step: int = 0,
    steps_per_epoch: int | None = None,
    extra: Extra | None = None,
) -> tf.data.Dataset:
    """Return batches {"image": float32 [B, H, W, C], "label": int32 [B], "index": int64 [B]}.

    Pixels are in [0, 1]. With training=True the batches are endless. An epoch has `steps_per_epoch`
    full batches, in which each example occurs once before any occurs again. The order is a function
    of (seed, epoch) and the augmentation of (seed, epoch, batch), so batches that begin at
    `first_step` are the tail of those that begin at 0. With training=False there is one pass in
    order, and the last batch may be shorter.

    Args:
        split: The examples.
        batch_size: The number of examples B in a batch. Under tf.distribute it is a multiple of the
            number of replicas, each of which gets an equal part.
        seed: The seed of the order and of the augmentation.
        training: Whether the batches are for training.
        augment: Names in AUGMENTATIONS or augmentations, one or several; only with training=True.
        first_step: The step of training at which the batches begin.
        steps_per_epoch: The number of batches in an epoch; None for len(split) // batch_size. Give
            Keras the same number.
        extra: Examples that are mixed into every training batch, in an order of their own. Their
            index continues after the greatest of the split. The batches then have a "weight",
            float32 [B] of mean 1.

    Raises:
        UserError: A number is no int or too small, the augmentation is unknown or does not fit the
            images, the split cannot fill a batch, or the extra examples have another size, or a
            weight where examples are mixed.
    """
    _require_split(split)
    require_at_least(1, batch_size=batch_size)
    require_at_least(0, first_step=first_step)
    require_bool(training=training)
    seed = require_seed(seed)
    if steps_per_epoch is not None:
        require_at_least(1, steps_per_epoch=steps_per_epoch)
    if training:
        expected = f"1 to the {len(split)} examples of the split"
        require(batch_size <= len(split), "batch_size", expected, batch_size)
    else:
        require(augment is None, "augment", "None without training=True", augment)
        require(extra is None, "extra", "None without training=True", extra)
    fits = extra is None or isinstance(extra, Extra)
    require(fits, "extra", "a tfrobust.data.Extra(split)", extra)
    augmentations = in_sequence(augment)
    require_images(augmentations, split.images.shape[1:])
    require_equal_weights(augmentations, 1.0 if extra is None else extra.weight)
    rows = rows_of(split) if extra is None else mixed_rows(split, extra.split)
    collect = _collector(rows, seed, augmentations)
    if not training:
        positions = tf.data.Dataset.range(len(split)).batch(batch_size)
        return _mapped(tf.data.Dataset.zip(tf.data.Dataset.counter(), positions), collect)
    steps = steps_per_epoch or len(split) // batch_size
    extra_count = 0 if extra is None else extra.rows(batch_size)
    # Both kinds are spread evenly over a batch, so that every replica has its share of each.
    counts = [count for count in (batch_size - extra_count, extra_count) if count]
    fractions = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    spread = np.argsort(fractions, kind="stable")

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        order = tf.range(len(split), dtype=tf.int64)
        seed_of_order = seed_for(seed, number, "order")
        order = tf.random.experimental.stateless_shuffle(order, seed_of_order, alg="philox")
        order = tf.gather(order, tf.range(steps * (batch_size - extra_count)) % len(split))
        positions = tf.reshape(order, [steps, batch_size - extra_count])
        if extra is not None:
            seed_of_extra = seed_for(seed, number, "order of the extra")
            drawn = len(split) + _drawn(len(extra.split), steps * extra_count, seed_of_extra)
            positions = tf.concat([positions, tf.reshape(drawn, [steps, extra_count])], axis=1)
        counters = number * steps + tf.range(steps, dtype=tf.int64)
        positions = tf.gather(positions, spread, axis=1)
        # The positions are flattened and batched again, so that TensorFlow does not know the length
        # of a batch. Otherwise it does not fuse a ReLU on CPU with the BatchNorm or bias before it.
        rows = tf.data.Dataset.from_tensor_slices(tf.reshape(positions, [-1])).batch(batch_size)
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(counters), rows)

    order = tf.data.Dataset.counter(first_step // steps).flat_map(epoch).skip(first_step % steps)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    if extra is None:
        return _mapped(order.apply(endless), collect)
    # With this unit the mean weight is 1.
    unit = batch_size / (batch_size - extra_count + extra_count * extra.weight)

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
    augment: Augment = None,
    layout: str | None = None,
) -> tf.data.Dataset:
    """Return batches of a user's arrays like `batches`, with the index that some methods need.

    They are made for `model.fit(from_arrays(x, y), epochs=...)`: one pass is one epoch, has every
    example once, and may end with a shorter batch, so `steps_per_epoch` is not needed. To resume at
    a later epoch, use `batches(Split.of(x, y), ..., training=True, first_step=...)`.

    Args:
        x: Images [N, H, W, C] or [N, H, W], uint8 or float in [0, 1], or others of `Split.of`.
        y: Class numbers [N] or [N, 1].
        batch_size: The number of examples in a batch.
        seed: The seed of the order and of the augmentation. TensorFlow's global seed, if it is set,
            has an effect too.
        training: Whether the examples are shuffled, differently in every pass.
        augment: Names in AUGMENTATIONS or augmentations, one or several; only with training=True.
        layout: As for `Split.of`.

    Raises:
        UserError: As for `Split.of` and `batches`.
    """
    split = Split.of(x, y, layout=layout)
    require_at_least(1, batch_size=batch_size)
    require_bool(training=training)
    seed = require_seed(seed)
    if not training:
        return batches(split, batch_size, augment=augment)
    positions = tf.data.Dataset.range(len(split))
    positions = positions.shuffle(len(split), seed, reshuffle_each_iteration=True).batch(batch_size)
    # The number of a pass is unknown, so a random number replaces that of the batch.
    counters = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
    augmentations = in_sequence(augment)
    require_images(augmentations, split.images.shape[1:])
    collect = _collector(rows_of(split), seed, augmentations)
    return _mapped(tf.data.Dataset.zip(counters, positions), collect)


def _require_split(split: Any) -> None:
    """Raise a UserError unless examples are a split."""
    expected = "a tfrobust.data.Split, such as Split.of(x, y)"
    require(isinstance(split, Split), "split", expected, type(split).__name__)


def _drawn(count: int, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Return `size` numbers below `count`, int64; each occurs once before any occurs again.

    There may be millions, and the time does not depend on `count` as that of a shuffle does.
    """
    return tf.raw_ops.RandomIndexShuffle(
        index=tf.range(size, dtype=tf.int64) % count,
        seed=tf.concat([seed, [0]], axis=0),
        max_index=tf.constant(count - 1, tf.int64),
        rounds=16,  # 4, as in tf.random.experimental.index_shuffle, leave neighbours correlated
    )


def _collector(
    rows: Rows, seed: int, augmentations: tuple[Augmentation, ...]
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """Return the function from a batch's number and positions [B] to the batch."""

    def collect(counter: tf.Tensor, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        batch, first = rows(positions), seed_for(seed, counter, "augment")
        for place, augment in enumerate(augmentations):
            batch = augment(batch, fold(first, place) if place else first)
        # This comes last because the gathers of a crop move a quarter of the bytes in uint8.
        return batch | {"image": as_float(batch["image"])}

    return collect


def _mapped(
    numbered: tf.data.Dataset, collect: Callable[..., dict[str, tf.Tensor]]
) -> tf.data.Dataset:
    """Return the batches that `collect` makes of numbers and positions."""
    mapped = numbered.map(collect, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    mapped = untuned(mapped.prefetch(tf.data.AUTOTUNE))
    options = tf.data.Options()  # each of several machines takes its part of every batch
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return mapped.with_options(options)
