"""Random augmentation of batches, as a function of the batch and a seed."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfrobust.data.rows import as_float
from tfrobust.errors import choose, number, require, require_at_least
from tfrobust.registry import located

Batch = dict[str, tf.Tensor]
MODES = {"zero": "CONSTANT", "reflect": "REFLECT"}


class Augmentation(abc.ABC):
    """A random change of the images of a batch, and of their labels if it `mixes` examples."""

    mixes: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, batch: Batch, seed: tf.Tensor) -> Batch:
        """Return the augmented batch.

        Args:
            batch: The "image" [B, H, W, C], uint8 or float32 in [0, 1], and the "label" [B].
            seed: The seed of all random numbers, [2] integers.
        """

    def check(self, image_shape: Sequence[int]) -> None:  # noqa: B027, as most take any image
        """Raise a UserError unless images of the shape (height, width, channels) fit."""


@dataclasses.dataclass(frozen=True)
class Crop(Augmentation):
    """Pads the images and crops them at random to their former size.

    Args:
        padding: The number of pixels on each side; None for an eighth of the size (4 of 32).
        mode: The padding: zero, or reflect for the image mirrored at its edge.
    """

    padding: int | None = None
    mode: str = "zero"
    flips: ClassVar[bool] = False

    def __post_init__(self) -> None:
        choose("mode", self.mode, MODES)
        if self.padding is not None:
            require_at_least(1, padding=self.padding)

    def check(self, image_shape: Sequence[int]) -> None:
        height, width, _ = image_shape
        most = max(self._margins(height, width))
        fits = self.mode != "reflect" or most < min(height, width)
        require(fits, "padding", f"less than an image of {height} x {width}", most)

    def _margins(self, height: int, width: int) -> tuple[int, int]:
        """Return the number of rows above and below, and that of columns left and right."""
        return self.padding or round(height / 8), self.padding or round(width / 8)

    def __call__(self, batch: Batch, seed: tf.Tensor) -> Batch:
        images = batch["image"]
        height, width = images.shape[1], images.shape[2]
        tall, wide = self._margins(height, width)
        # Philox, because TensorFlow's default generator depends on the device.
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
        # Two gathers for the batch are several times faster than a map over the examples.
        cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
        return batch | {"image": tf.gather(cropped, columns, axis=2, batch_dims=1)}


@dataclasses.dataclass(frozen=True)
class CropFlip(Crop):
    """Crops like `crop`, then flips left to right with probability 0.5 (He et al., 2016).

    Args:
        padding: The number of pixels on each side; None for an eighth of the size (4 of 32).
        mode: The padding: zero, or reflect for the image mirrored at its edge.
    """

    flips: ClassVar[bool] = True


class KerasAugmentation(Augmentation):
    """An augmentation by a layer of Keras, which takes the seed in place of its own state."""

    def __post_init__(self) -> None:
        layer = self.make_layer(data_format="channels_last", dtype="float32", seed=0)
        object.__setattr__(self, "layer", layer)

    @abc.abstractmethod
    def make_layer(self, **common: Any) -> Any:
        """Return the layer. `common` are the arguments that all layers have."""

    def __call__(self, batch: Batch, seed: tf.Tensor) -> Batch:
        images, layer = as_float(batch["image"]), self.layer  # type: ignore[attr-defined]
        state = tf.cast(tf.bitcast(tf.cast(seed, tf.int32), tf.uint32), layer.generator.state.dtype)
        with keras.StatelessScope([(layer.generator.state, state)]):
            change = layer.get_random_transformation(images, training=True)
            changed = layer.transform_images(images, change, training=True)
        changed = tf.ensure_shape(tf.clip_by_value(changed, 0.0, 1.0), images.shape)
        return self.with_labels(batch, change) | {"image": changed}

    def with_labels(self, batch: Batch, change: Any) -> Batch:
        """Return the batch with the labels of the changed images."""
        return batch


@dataclasses.dataclass(frozen=True)
class RandAugment(KerasAugmentation):
    """Applies random operations on geometry and colour (Cubuk et al., 2020, arXiv:1909.13719).

    Keras's layer draws the operations for a batch and their strengths for each image. The paper
    draws both for each image.

    Args:
        operations: The number of operations in sequence.
        magnitude: The greatest strength, from 0 to 1.
    """

    operations: int = 2
    magnitude: float = 0.5

    def check(self, image_shape: Sequence[int]) -> None:
        channels = image_shape[-1]
        require(channels in (1, 3), "rand_augment", "images of 1 or 3 channels", channels)

    def make_layer(self, **common: Any) -> Any:
        require_at_least(1, operations=self.operations)
        magnitude = number("magnitude", self.magnitude, at_least=0, at_most=1)
        return keras.layers.RandAugment((0, 1), self.operations, magnitude, **common)


@dataclasses.dataclass(frozen=True)
class RandomErasing(KerasAugmentation):
    """Fills a rectangle of an image with noise (Zhong et al., 2020, arXiv:1708.04896).

    Args:
        probability: The probability that an image is changed.
        least: The least share of the image that a rectangle takes.
        most: The greatest share.
    """

    probability: float = 0.5
    least: float = 0.02
    most: float = 0.33

    def make_layer(self, **common: Any) -> Any:
        p = number("probability", self.probability, at_least=0, at_most=1)
        most = number("most", self.most, above=0, at_most=1)
        least = number("least", self.least, above=0, at_most=most)
        return keras.layers.RandomErasing((p, p), (least, most), value_range=(0, 1), **common)


class Mixing(KerasAugmentation):
    """An augmentation that mixes each image with another of the batch.

    "label" [B] becomes that of the larger part. "other_label" [B] is that of the other part, whose
    share is "other_share" [B], at most 0.5. Attacks take the label, the loss takes both.
    """

    mixes = True

    def with_labels(self, batch: Batch, change: Any) -> Batch:
        label, share = batch["label"], tf.reshape(change["mix_weight"], [-1])
        other = tf.gather(label, change["permutation_order"])
        return batch | {
            "label": tf.where(share >= 0.5, label, other),
            "other_label": tf.where(share >= 0.5, other, label),
            "other_share": tf.minimum(share, 1.0 - share),
        }


@dataclasses.dataclass(frozen=True)
class MixUp(Mixing):
    """Averages two images and their labels (Zhang et al., 2018, arXiv:1710.09412).

    Args:
        alpha: The parameter of Beta(alpha, alpha), from which the shares are drawn.
    """

    alpha: float = 0.2

    def make_layer(self, **common: Any) -> Any:
        return keras.layers.MixUp(number("alpha", self.alpha, above=0), **common)


@dataclasses.dataclass(frozen=True)
class CutMix(Mixing):
    """Pastes a rectangle of another image (Yun et al., 2019, arXiv:1905.04899).

    Args:
        alpha: The parameter of Beta(alpha, alpha), from which the shares are drawn; at most 1.
    """

    alpha: float = 1.0

    def make_layer(self, **common: Any) -> Any:
        alpha = number("alpha", self.alpha, above=0, at_most=1)
        return keras.layers.CutMix((alpha, alpha), **common)


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
    """Return the augmentations of an argument, in their order.

    Args:
        augment: An augmentation or its name, a sequence of these, or None.

    Raises:
        UserError: A name is unknown, an item is no augmentation, or two of them mix examples.
    """
    items = [augment] if isinstance(augment, str | Augmentation) else augment
    items = [] if items is None else items
    expected = "a name, an augmentation such as tfrobust.data.augment.Crop(), or a list of these"
    require(isinstance(items, Sequence), "augment", expected, augment)
    for item in items:
        require(isinstance(item, str | Augmentation), "augment", expected, item)
    names = list(AUGMENTATIONS)
    steps = tuple(
        AUGMENTATIONS[choose("augment", item, names)]() if isinstance(item, str) else item
        for item in items
    )
    mixing = [type(step).__name__ for step in steps if step.mixes]
    require(len(mixing) <= 1, "augment", "one that mixes examples", " and ".join(mixing))
    return steps


def require_images(steps: Sequence[Augmentation], shape: Sequence[int]) -> None:
    """Raise a UserError unless the inputs of this shape are images that all augmentations take."""
    names = " and ".join(type(step).__name__ for step in steps)
    fits = len(shape) == 3 or not steps
    require(fits, "augment", f"none for inputs {tuple(shape)}, which are no images", names)
    for place, step in enumerate(steps):
        located("augment" if len(steps) == 1 else f"augment[{place}]", step.check, shape)


def require_equal_weights(steps: Sequence[Augmentation], weight: float) -> None:
    """Raise a UserError if augmentations mix examples while extra ones have another weight."""
    fits = weight == 1 or not any(step.mixes for step in steps)
    require(fits, "extra.weight", "1 (augment mixes examples)", weight)
