"""tf.data of batches from splits and arrays, in an order that needs no state."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfrobust.data.augment import Augment, Augmentation, in_sequence
from tfrobust.data.rows import Rows, as_float, mixed_rows, rows_of
from tfrobust.data.split import Split
from tfrobust.errors import require, require_at_least
from tfrobust.noise import fold, seed_for


@dataclass(frozen=True)
class Extra:
    """Additional training examples, such as pseudo-labelled or generated ones.

    Pseudo-labels: Carmon et al., 2019, arXiv:1905.13736. Generated images: Wang et al., 2023,
    arXiv:2302.04638.

    Attributes:
        split: The examples. Their images are read where they lie, in memory or in a file.
        share: Their share of every batch, between 0 and 1.
        weight: The weight of each in the loss, relative to the other examples.
    """

    split: Split
    share: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(len(self.split), "split", "examples", "none")
        require(0 < self.share < 1, "share", "a number between 0 and 1", self.share)
        require(self.weight > 0, "weight", "a number > 0", self.weight)

    def rows(self, batch_size: int) -> int:
        """Return how many examples of a batch are extra. Raises UserError if there are fewer."""
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
    """Batches {"image": float32 [B, H, W, C] in [0, 1], "label": int32 [B], "index": int64 [B]}.

    With training=True the batches are endless. An epoch has `steps_per_epoch` full batches, in
    which each example occurs once before any occurs again. The order is a function of (seed, epoch)
    and the augmentation of (seed, epoch, batch), so batches that begin at `first_step` are the tail
    of those that begin at 0. With training=False there is one pass in order, and the last batch may
    be shorter.

    Args:
        split: The examples.
        batch_size: Number of examples B of a batch. Under tf.distribute a multiple of the number of
            replicas, each of which gets an equal part.
        seed: Seed of the order and of the augmentation.
        training: Whether the batches are for training.
        augment: Names in AUGMENTATIONS or augmentations, one or several; only with training=True.
        first_step: The step of training to begin at.
        steps_per_epoch: The number of batches in an epoch, len(split) // batch_size if it is None.
            Give Keras the same number.
        extra: Examples that are mixed into every training batch, in an order of their own. Their
            index goes on after the greatest of the split. The batches then have a "weight",
            float32 [B] of mean 1.

    Raises:
        UserError: The augmentation is unknown, the split cannot fill a batch, or the extra images
            have another size.
    """
    steps_of_change = _check(
        split, batch_size, training, augment, most=len(split) if training else None
    )
    require(extra is None or training, "extra", "None without training=True", extra)
    rows = rows_of(split) if extra is None else mixed_rows(split, extra.split)
    mixes = any(step.mixes for step in steps_of_change)
    unequal = extra is not None and extra.weight != 1
    require(not (mixes and unequal), "extra.weight", "1 (augment mixes examples)", extra)
    collect = _collector(rows, seed, steps_of_change)
    if not training:
        positions = tf.data.Dataset.range(len(split)).batch(batch_size)
        return _mapped(tf.data.Dataset.zip(tf.data.Dataset.counter(), positions), collect)
    steps = steps_per_epoch or len(split) // batch_size
    more = 0 if extra is None else extra.rows(batch_size)
    # Spread both kinds evenly over a batch, so that every replica has its share of each.
    counts = [count for count in (batch_size - more, more) if count]
    fractions = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    spread = np.argsort(fractions, kind="stable")

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        order = tf.range(len(split), dtype=tf.int64)
        seed_of_order = seed_for(seed, number, "order")
        order = tf.random.experimental.stateless_shuffle(order, seed_of_order, alg="philox")
        order = tf.gather(order, tf.range(steps * (batch_size - more)) % len(split))
        positions = tf.reshape(order, [steps, batch_size - more])
        if extra is not None:
            seed_of_extra = seed_for(seed, number, "order of the extra")
            drawn = len(split) + _drawn(len(extra.split), steps * more, seed_of_extra)
            positions = tf.concat([positions, tf.reshape(drawn, [steps, more])], axis=1)
        counters = number * steps + tf.range(steps, dtype=tf.int64)
        positions = tf.gather(positions, spread, axis=1)
        # Flattened and batched again, so that the length of a batch is not known to TensorFlow. If
        # it is, a ReLU on CPU is not joined with the BatchNorm or bias before it.
        rows = tf.data.Dataset.from_tensor_slices(tf.reshape(positions, [-1])).batch(batch_size)
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(counters), rows)

    order = tf.data.Dataset.counter(first_step // steps).flat_map(epoch).skip(first_step % steps)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    if extra is None:
        return _mapped(order.apply(endless), collect)
    unit = batch_size / (batch_size - more + more * extra.weight)  # makes the mean weight 1

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
    """Batches of a user's arrays, as `batches` makes them, with the index that some methods need.

    Made for `model.fit(from_arrays(x, y), epochs=...)`: one pass is one epoch, has every example
    once, and may end with a shorter batch, so `steps_per_epoch` is not needed. To resume at a later
    epoch, use `batches(Split.of(x, y), ..., training=True, first_step=...)`.

    Args:
        x: Images [N, H, W, C] or [N, H, W], uint8 or float in [0, 1].
        y: Class numbers [N] or [N, 1].
        batch_size: Number of examples of a batch.
        seed: Seed of the order and of the augmentation. TensorFlow's global seed counts too, if
            set.
        training: Whether the examples are shuffled, differently in every pass.
        augment: Names in AUGMENTATIONS or augmentations, one or several; only with training=True.
        layout: As for `Split.of`.

    Raises:
        UserError: As for `Split.of` and `batches`.
    """
    split = Split.of(x, y, layout=layout)
    if not training:
        return batches(split, batch_size, augment=augment)
    steps_of_change = _check(split, batch_size, training, augment)
    positions = tf.data.Dataset.range(len(split))
    positions = positions.shuffle(len(split), seed, reshuffle_each_iteration=True).batch(batch_size)
    # A pass does not know its number, so a new random number stands for that of the batch.
    counters = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
    collect = _collector(rows_of(split), seed, steps_of_change)
    return _mapped(tf.data.Dataset.zip(counters, positions), collect)


def _drawn(count: int, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Return `size` numbers below `count`, int64; each occurs once before any occurs again.

    The time does not depend on `count`, unlike that of a shuffle: there may be millions.
    """
    return tf.raw_ops.RandomIndexShuffle(
        index=tf.range(size, dtype=tf.int64) % count,
        seed=tf.concat([seed, [0]], axis=0),
        max_index=tf.constant(count - 1, tf.int64),
        rounds=16,  # with the 4 of tf.random.experimental.index_shuffle neighbours are correlated
    )


def _collector(
    rows: Rows, seed: int, augmentations: tuple[Augmentation, ...]
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """Return the function from a batch's number and positions [B] to the batch."""

    def collect(counter: tf.Tensor, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        batch, first = rows(positions), seed_for(seed, counter, "augment")
        for place, augment in enumerate(augmentations):
            batch = augment(batch, fold(first, place) if place else first)
        # Last, as the gathers of a crop move a quarter of the bytes in uint8.
        return batch | {"image": as_float(batch["image"])}

    return collect


def _mapped(
    numbered: tf.data.Dataset, collect: Callable[..., dict[str, tf.Tensor]]
) -> tf.data.Dataset:
    mapped = numbered.map(collect, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()  # each of several machines takes its part of every batch
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return mapped.prefetch(tf.data.AUTOTUNE).with_options(options)


def _check(
    split: Split, batch_size: int, training: bool, augment: Augment, most: int | None = None
) -> tuple[Augmentation, ...]:
    """Check the arguments, and return the augmentations."""
    if most is None:
        require_at_least(1, batch_size=batch_size)
    else:
        expected = f"1 to the {most} examples of the split"
        require(1 <= batch_size <= most, "batch_size", expected, batch_size)
    require(training or augment is None, "augment", "None without training=True", augment)
    return in_sequence(augment)
