"""tf.data of batches from splits and arrays, in an order that needs no state."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfrobust.data.augment import AUGMENTATIONS
from tfrobust.data.files import Files
from tfrobust.data.split import Split
from tfrobust.errors import choose, require, require_at_least
from tfrobust.noise import seed_for


@dataclass(frozen=True)
class Extra:
    """Additional training examples, such as pseudo-labelled ones.

    Pseudo-labels: Carmon et al., 2019, arXiv:1905.13736.

    Attributes:
        split: The examples.
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
    augment: str | None = None,
    first_step: int = 0,
    steps_per_epoch: int | None = None,
    extra: Extra | None = None,
) -> tf.data.Dataset:
    """Batches {"image": float32 [B, H, W, C] in [0, 1], "label": int32 [B], "index": int64 [B]}.

    With training=True the batches are endless. An epoch has `len(split) // batch_size` full
    batches; the rest of its order is dropped. The order is a function of (seed, epoch) and the
    augmentation of (seed, epoch, batch), so batches that begin at `first_step` are the tail of
    those that begin at 0. With training=False there is one pass in order, and the last batch may
    be shorter.

    Args:
        split: The examples.
        batch_size: Number of examples B of a batch. Under tf.distribute a multiple of the number of
            replicas, each of which gets an equal part.
        seed: Seed of the order and of the augmentation.
        training: Whether the batches are for training.
        augment: A name in AUGMENTATIONS, only with training=True.
        first_step: The step of training to begin at.
        steps_per_epoch: Makes an epoch shorter. Give Keras the same number, or
            len(split) // batch_size if it is None.
        extra: Examples that are mixed into every training batch, in an order of their own. The
            batches then have a "weight", float32 [B] of mean 1, and the length of an epoch is still
            that of the split.

    Raises:
        UserError: The augmentation is unknown, or the split cannot fill a batch.
    """
    _check(split, batch_size, training, augment, most=len(split) if training else None)
    require(extra is None or training, "extra", "None without training=True", extra)
    examples = split if extra is None else split.joined(extra.split)
    collect = _collector(examples, seed, augment)
    if not training:
        positions = tf.data.Dataset.range(len(split)).batch(batch_size)
        return _mapped(tf.data.Dataset.zip(tf.data.Dataset.counter(), positions), collect)
    steps = min(steps_per_epoch or len(split), len(split) // batch_size)
    more = 0 if extra is None else extra.rows(batch_size)
    # Spread both kinds evenly over a batch, so that every replica has its share of each.
    counts = [count for count in (batch_size - more, more) if count]
    fractions = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    spread = np.argsort(fractions, kind="stable")

    def shuffled(first: int, count: int, size: int, seed: tf.Tensor) -> tf.Tensor:
        """Return [steps, size] positions of the `count` from `first` on, in random order.

        Each occurs once before any occurs again.
        """
        positions = tf.range(first, first + count, dtype=tf.int64)
        positions = tf.random.experimental.stateless_shuffle(positions, seed, alg="philox")
        return tf.reshape(tf.gather(positions, tf.range(steps * size) % count), [steps, size])

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        seed_of_order = seed_for(seed, number, "order")
        parts = [shuffled(0, len(split), batch_size - more, seed_of_order)]
        if more:
            seed_of_extra = seed_for(seed, number, "order of the extra")
            parts.append(shuffled(len(split), len(examples) - len(split), more, seed_of_extra))
        counters = number * steps + tf.range(steps, dtype=tf.int64)
        positions = tf.gather(tf.concat(parts, axis=1), spread, axis=1)
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
    augment: str | None = None,
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
        augment: A name in AUGMENTATIONS, only with training=True.
        layout: As for `Split.of`.

    Raises:
        UserError: As for `Split.of` and `batches`.
    """
    split = Split.of(x, y, layout=layout)
    if not training:
        return batches(split, batch_size, augment=augment)
    _check(split, batch_size, training, augment)
    positions = tf.data.Dataset.range(len(split))
    positions = positions.shuffle(len(split), seed, reshuffle_each_iteration=True).batch(batch_size)
    # A pass does not know its number, so a new random number stands for that of the batch.
    counters = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
    return _mapped(tf.data.Dataset.zip(counters, positions), _collector(split, seed, augment))


def _collector(
    split: Split, seed: int, augment: str | None
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """Return the function from a batch's number and positions [B] to the batch."""
    with tf.device("CPU"):  # on a GPU every gather would copy all images back
        labels, index = tf.constant(split.labels), tf.constant(split.index)
        if isinstance(split.images, Files):
            images = split.images.gather()
        else:
            images = functools.partial(tf.gather, tf.constant(split.images))

    def collect(counter: tf.Tensor, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        x = images(positions)
        if augment is not None:
            x = AUGMENTATIONS[augment](x, seed_for(seed, counter, "augment"))
        if x.dtype == tf.uint8:  # last, so that the gathers above move a quarter of the bytes
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
    options = tf.data.Options()  # each of several machines takes its part of every batch
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return mapped.prefetch(tf.data.AUTOTUNE).with_options(options)


def _check(
    split: Split, batch_size: int, training: bool, augment: str | None, most: int | None = None
) -> None:
    if most is None:
        require_at_least(1, batch_size=batch_size)
    else:
        expected = f"1 to the {most} examples of the split"
        require(1 <= batch_size <= most, "batch_size", expected, batch_size)
    if augment is not None:
        require(training, "augment", "None without training=True", augment)
        choose("augment", augment, AUGMENTATIONS)
