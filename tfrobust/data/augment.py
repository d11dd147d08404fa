"""Random augmentation of batches, a function of the batch and of a seed."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfrobust.data.rows import as_float
from tfrobust.errors import choose, require, require_at_least

Batch = dict[str, tf.Tensor]
MODES = {"zero": "CONSTANT", "reflect": "REFLECT"}


class Augmentation(abc.ABC):
    """A random change of the images of a batch, and of their labels where it `mixes` examples."""

    mixes: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, batch: Batch, seed: tf.Tensor) -> Batch:
        """Return the batch, augmented.

        Args:
            batch: The "image" [B, H, W, C], uint8 or float32 in [0, 1], and the "label" [B].
            seed: [2] integers, which determine the result.
        """


@dataclasses.dataclass(frozen=True)
class Crop(Augmentation):
    """Pads the images and crops them at random back to their size.

    Args:
        padding: The pixels on each side; None is an eighth of the size (4 of 32).
        mode: What is padded: zero, or reflect for the image mirrored at its edge.
    """

    padding: int | None = None
    mode: str = "zero"
    flips: ClassVar[bool] = False

    def __post_init__(self) -> None:
        choose("mode", self.mode, MODES)
        if self.padding is not None:
            require_at_least(1, padding=self.padding)

    def __call__(self, batch: Batch, seed: tf.Tensor) -> Batch:
        images = batch["image"]
        height, width = images.shape[1], images.shape[2]
        tall, wide = (self.padding or round(side / 8) for side in (height, width))
        if self.mode == "reflect":
            fits = max(tall, wide) < min(height, width)
            require(fits, "padding", f"less than an image of {height} x {width}", self.padding)
        # Philox by name, because the default generator, and so the noise, depends on the device.
        draw = tf.random.stateless_uniform([3, tf.shape(images)[0]], seed, alg="philox")
        # Uniform over 0 to 2 * padding, because draw < 1.
        top = tf.cast(draw[0] * (2 * tall + 1), tf.int32)
        left = tf.cast(draw[1] * (2 * wide + 1), tf.int32)
        rows = top[:, None] + tf.range(height)
        columns = left[:, None] + tf.range(width)
        if self.flips:
            columns = tf.where(draw[2][:, None] < 0.5, columns[:, ::-1], columns)
        margins = [[0, 0], [tall, tall], [wide, wide], [0, 0]]
        padded = tf.pad(images, margins, MODES[self.mode])
        # Two gathers for the batch are several times as fast as a map over the examples.
        cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
        return batch | {"image": tf.gather(cropped, columns, axis=2, batch_dims=1)}


@dataclasses.dataclass(frozen=True)
class CropFlip(Crop):
    """Crops as `crop`, then flips left to right with probability 0.5 (He et al., 2016).

    Args:
        padding: The pixels on each side; None is an eighth of the size (4 of 32).
        mode: What is padded: zero, or reflect for the image mirrored at its edge.
    """

    flips: ClassVar[bool] = True


class OfKeras(Augmentation):
    """An augmentation by a layer of Keras, which is given the seed in place of its own state."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "layer", self.made(data_format="channels_last", dtype="float32", seed=0)
        )

    @abc.abstractmethod
    def made(self, **common: Any) -> Any:
        """Return the layer, with the arguments that all layers have."""

    def __call__(self, batch: Batch, seed: tf.Tensor) -> Batch:
        images, layer = as_float(batch["image"]), self.layer  # type: ignore[attr-defined]
        state = tf.cast(tf.bitcast(tf.cast(seed, tf.int32), tf.uint32), layer.generator.state.dtype)
        with keras.StatelessScope([(layer.generator.state, state)]):
            change = layer.get_random_transformation(images, training=True)
            changed = layer.transform_images(images, change, training=True)
        changed = tf.ensure_shape(tf.clip_by_value(changed, 0.0, 1.0), images.shape)
        return self.labelled(batch, change) | {"image": changed}

    def labelled(self, batch: Batch, change: Any) -> Batch:
        """Return the batch with the labels of the changed images."""
        return batch


@dataclasses.dataclass(frozen=True)
class RandAugment(OfKeras):
    """Applies random operations on geometry and colour (Cubuk et al., 2020, arXiv:1909.13719).

    This is Keras's layer: the operations are drawn for a batch and their strengths for an image,
    whereas the paper draws the operations for an image too.

    Args:
        operations: How many operations follow each other.
        magnitude: The greatest strength, from 0 to 1.
    """

    operations: int = 2
    magnitude: float = 0.5

    def made(self, **common: Any) -> Any:
        require_at_least(1, operations=self.operations)
        require(0 <= self.magnitude <= 1, "magnitude", "a number in [0, 1]", self.magnitude)
        return keras.layers.RandAugment((0, 1), self.operations, self.magnitude, **common)


@dataclasses.dataclass(frozen=True)
class RandomErasing(OfKeras):
    """Fills a rectangle of an image with noise (Zhong et al., 2020, arXiv:1708.04896).

    Args:
        probability: Of the change of an image.
        least, most: The range of the rectangle's share of the image.
    """

    probability: float = 0.5
    least: float = 0.02
    most: float = 0.33

    def made(self, **common: Any) -> Any:
        chance = self.probability
        require(0 <= chance <= 1, "probability", "a number in [0, 1]", chance)
        shares = (self.least, self.most)
        require(0 < self.least <= self.most <= 1, "least, most", "0 < least <= most <= 1", shares)
        return keras.layers.RandomErasing((chance, chance), shares, value_range=(0, 1), **common)


class Mixing(OfKeras):
    """Mixes each image with another of the batch.

    "label" becomes that of the larger part; "other_label" [B] is that of the other part, and
    "other_share" [B] its share, at most 0.5. Attacks take the label, the loss takes both.
    """

    mixes = True

    def labelled(self, batch: Batch, change: Any) -> Batch:
        share, label = tf.reshape(change["mix_weight"], [-1]), batch["label"]
        other, larger = tf.gather(label, change["permutation_order"]), share >= 0.5
        return batch | {
            "label": tf.where(larger, label, other),
            "other_label": tf.where(larger, other, label),
            "other_share": tf.minimum(share, 1.0 - share),
        }


@dataclasses.dataclass(frozen=True)
class MixUp(Mixing):
    """Takes means of two images and of their labels (Zhang et al., 2018, arXiv:1710.09412).

    Args:
        alpha: The shares are drawn from Beta(alpha, alpha).
    """

    alpha: float = 0.2

    def made(self, **common: Any) -> Any:
        require(self.alpha > 0, "alpha", "a number > 0", self.alpha)
        return keras.layers.MixUp(self.alpha, **common)


@dataclasses.dataclass(frozen=True)
class CutMix(Mixing):
    """Pastes a rectangle of another image (Yun et al., 2019, arXiv:1905.04899).

    Args:
        alpha: The shares are drawn from Beta(alpha, alpha); Keras takes numbers up to 1.
    """

    alpha: float = 1.0

    def made(self, **common: Any) -> Any:
        require(0 < self.alpha <= 1, "alpha", "a number above 0, at most 1", self.alpha)
        return keras.layers.CutMix((self.alpha, self.alpha), **common)


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "crop": Crop,
    "crop_flip": CropFlip,
    "cutmix": CutMix,
    "mixup": MixUp,
    "rand_augment": RandAugment,
    "random_erasing": RandomErasing,
}
Augment = None | str | Augmentation | Sequence[str | Augmentation]


def in_sequence(augment: Augment) -> tuple[Augmentation, ...]:
    """Return the augmentations that follow each other.

    Args:
        augment: An augmentation or its name, several of them, or None.

    Raises:
        UserError: A name is unknown, or two of them mix examples.
    """
    items = [augment] if isinstance(augment, str | Augmentation) else list(augment or ())
    names = list(AUGMENTATIONS)
    steps = tuple(
        AUGMENTATIONS[choose("augment", item, names)]() if isinstance(item, str) else item
        for item in items
    )
    mixing = [type(step).__name__ for step in steps if step.mixes]
    require(len(mixing) <= 1, "augment", "one that mixes examples", " and ".join(mixing))
    return steps
