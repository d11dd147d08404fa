"""Augmentation: NumPy's references, and a noise that is a function of the batch and the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tfrobust.data import AUGMENTATIONS, Split, batches, in_sequence
from tfrobust.data.augment import Crop, CutMix, MixUp
from tfrobust.errors import UserError


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 24, 9, 3), np.uint8)


def reference(images: np.ndarray, seed: list[int], mirror: bool) -> np.ndarray:
    """Augment one example at a time."""
    draws = tf.random.stateless_uniform([3, len(images)], seed, alg="philox").numpy()
    results = []
    for image, (top, left, flip) in zip(images, draws.T, strict=True):
        height, width = image.shape[:2]
        padded = np.pad(image, ((3, 3), (1, 1), (0, 0)))  # of 24 and of 9 pixels
        row, column = int(top * 7), int(left * 3)
        cropped = padded[row : row + height, column : column + width]
        results.append(cropped[:, ::-1] if mirror and flip < 0.5 else cropped)
    return np.stack(results)


def augmented(augmentation: Any, images: np.ndarray, seed: list[int]) -> tf.Tensor:
    return augmentation({"image": tf.constant(images)}, tf.constant(seed))["image"]


@pytest.mark.parametrize("name", ["crop", "crop_flip"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augmentation_is_the_reference_exactly(name: str, dtype: type) -> None:
    images = pictures().astype(dtype)
    result = augmented(AUGMENTATIONS[name](), images, [5, 6])
    np.testing.assert_array_equal(result, reference(images, [5, 6], name == "crop_flip"))
    assert result.dtype == dtype


def test_the_padding_of_a_crop_is_an_option() -> None:
    """Two pixels mirrored at the edge, as in np.pad; the draws are those of the default."""
    images = pictures()
    result = augmented(Crop(padding=2, mode="reflect"), images, [5, 6])
    draws = tf.random.stateless_uniform([3, 64], [5, 6], alg="philox").numpy()
    for image, cropped, (top, left, _) in zip(images, result.numpy(), draws.T, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        row, column = int(top * 5), int(left * 5)
        np.testing.assert_array_equal(cropped, padded[row : row + 24, column : column + 9])
    with pytest.raises(UserError, match="padding: expected less than an image of 24 x 9, rec"):
        augmented(Crop(padding=9, mode="reflect"), images, [5, 6])


ON_GREY = [f"{name} on grey" for name in AUGMENTATIONS]


@pytest.mark.parametrize("case", [*AUGMENTATIONS, *slow_but(ON_GREY, [])])
def test_every_augmentation_depends_on_the_batch_and_the_seed_alone(case: str) -> None:
    """A stream that begins later is the tail of the whole one, to the bit, and images stay in the
    box. Another seed gives other images."""
    name, _, grey = case.partition(" on ")
    shape = (32, 8, 8, 1 if grey else 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    split = Split.of(images, np.arange(32) % 3)

    def stream(seed: int, first_step: int = 0) -> list[dict[str, np.ndarray]]:
        augment = ["crop", name]
        options: Any = {"training": True, "augment": augment, "seed": seed}
        return list(batches(split, 8, first_step=first_step, **options).take(6 - first_step))

    straight = stream(1)
    for later, batch in zip(stream(1, 3), straight[3:], strict=True):
        assert later.keys() == batch.keys()
        for key, values in batch.items():
            np.testing.assert_array_equal(later[key], values)
    for batch, other in zip(straight, stream(2), strict=True):
        assert batch["image"].dtype == tf.float32
        assert 0 <= np.min(batch["image"]) <= np.max(batch["image"]) <= 1
        assert not np.array_equal(batch["image"], other["image"])


@pytest.mark.parametrize("augmentation", [MixUp(1.0), CutMix(1.0)], ids=["mixup", "cutmix"])
def test_mixed_labels_say_what_is_in_the_image(augmentation: Any) -> None:
    """Images of one grey level each, the level of their label: the mean of a mixed image is that of
    its labels' levels by their shares; of CutMix up to the rounding of a rectangle's sides."""
    labels = np.arange(16, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None, None] / 15, (16, 32, 32, 1)).astype("float32")
    batch = {"image": tf.constant(images), "label": tf.constant(labels)}
    mixed = augmentation(batch, tf.constant([1, 2]))
    share = mixed["other_share"].numpy()
    assert np.all((share >= 0) & (share <= 0.5)) and share.max() > 0.2
    level = (1 - share) * mixed["label"].numpy() + share * mixed["other_label"].numpy()
    np.testing.assert_allclose(
        15 * np.mean(mixed["image"], axis=(1, 2, 3)),
        level,
        atol=1e-4 if isinstance(augmentation, MixUp) else 0.8,
    )


def test_examples_are_mixed_once() -> None:
    expected = "augment: expected one that mixes examples, received 'CutMix and MixUp'"
    with pytest.raises(UserError, match=expected):
        in_sequence(["cutmix", "crop", "mixup"])


def test_all_offsets_and_both_sides_occur() -> None:
    # An image whose pixels are all different tells its own offset: 9 * 9 crops, each mirrored.
    image = np.arange(1, 28 * 28 + 1, dtype=np.float32).reshape(1, 28, 28, 1)
    images = tf.constant(np.repeat(image, 4096, axis=0))
    result = augmented(AUGMENTATIONS["crop_flip"](), images, [0, 0]).numpy()
    assert len(np.unique(result.reshape(4096, -1), axis=0)) == 2 * 81
    plain = augmented(AUGMENTATIONS["crop"](), images, [0, 0]).numpy()
    mirrored = (result != plain).any(axis=(1, 2, 3)).mean()
    assert mirrored == pytest.approx(0.5, abs=0.04)  # 5 standard deviations
