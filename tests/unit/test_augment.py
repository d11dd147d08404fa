"""Augmentations equal their NumPy references and depend on the batch and the seed alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipelines.resolve import load_spec
from tests.errors import error_line
from tests.products import slow_but
from tfrobust.data import AUGMENTATIONS, Extra, Split, batches, from_arrays, in_sequence
from tfrobust.data.augment import Crop, CutMix, MixUp, RandAugment, RandomErasing
from tfrobust.errors import UserError


def pictures() -> np.ndarray:
    """Return images [64, 24, 9, 3] of noise."""
    return np.random.default_rng(0).integers(0, 256, (64, 24, 9, 3), np.uint8)


def reference(images: np.ndarray, seed: list[int], mirror: bool) -> np.ndarray:
    """Return images that are cropped, and mirrored if `mirror`, one at a time.

    The padding is 3 of 24 rows and 1 of 9 columns, an eighth.
    """
    draws = tf.random.stateless_uniform([3, len(images)], seed, alg="philox").numpy()
    results = []
    for image, (top, left, flip) in zip(images, draws.T, strict=True):
        height, width = image.shape[:2]
        padded = np.pad(image, ((3, 3), (1, 1), (0, 0)))
        row, column = int(top * 7), int(left * 3)
        cropped = padded[row : row + height, column : column + width]
        results.append(cropped[:, ::-1] if mirror and flip < 0.5 else cropped)
    return np.stack(results)


def augmented(augmentation: Any, images: np.ndarray, seed: list[int]) -> tf.Tensor:
    """Return the augmented images."""
    return augmentation({"image": tf.constant(images)}, tf.constant(seed))["image"]


@pytest.mark.parametrize("name", ["crop", "crop_flip"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_and_flip_equal_the_numpy_reference(name: str, dtype: type) -> None:
    images = pictures().astype(dtype)
    result = augmented(AUGMENTATIONS[name](), images, [5, 6])
    np.testing.assert_array_equal(result, reference(images, [5, 6], name == "crop_flip"))
    assert result.dtype == dtype


def test_crop_pads_as_numpy_does_by_its_options() -> None:
    """Two pixels are mirrored at the edge; the draws are those of the default."""
    images = pictures()
    result = augmented(Crop(padding=2, mode="reflect"), images, [5, 6])
    draws = tf.random.stateless_uniform([3, 64], [5, 6], alg="philox").numpy()
    for image, cropped, (top, left, _) in zip(images, result.numpy(), draws.T, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        row, column = int(top * 5), int(left * 5)
        np.testing.assert_array_equal(cropped, padded[row : row + 24, column : column + 9])


def test_padding_that_mirrors_more_than_the_image_is_refused_before_any_batch() -> None:
    images, labels, wide = pictures(), np.zeros(64, int), Crop(padding=9, mode="reflect")
    expected = "padding: expected less than an image of 24 x 9, received 9"
    of_arrays = partial(from_arrays, images, labels, training=True)
    of_split = partial(batches, Split.of(images, labels), training=True)
    for make in (of_arrays, of_split):
        assert error_line(partial(make, batch_size=8, augment=wide)) == f"augment.{expected}"
        line = error_line(partial(make, batch_size=8, augment=["crop", wide]))
        assert line == f"augment[1].{expected}"
    override = "data.augment={name: crop, mode: reflect, padding: 8}"
    line = error_line(lambda: load_spec("digits_adv", [override], smoke=False))
    expected = "data.augment.padding: expected less than an image of 8 x 8, received 8"
    assert line == f"--set {override}: {expected}"
    from_arrays(images, labels, augment=Crop(padding=9))  # zeros may be more


@pytest.mark.parametrize("channels", [2, 4])
def test_images_whose_colours_rand_augment_does_not_know_are_refused(channels: int) -> None:
    split = Split.of(np.zeros((4, 8, 8, channels), np.uint8), np.zeros(4, int))
    line = error_line(lambda: batches(split, 4, training=True, augment="rand_augment"))
    expected = f"expected images of 1 or 3 channels, received {channels}"
    assert line == f"augment.rand_augment: {expected}"


@pytest.mark.parametrize("augment", [5, False, {}, Crop, [None], ["crop", Crop]])
def test_what_is_no_augmentation_is_refused(augment: Any) -> None:
    line = error_line(lambda: from_arrays(pictures(), np.zeros(64, int), augment=augment))
    assert line.startswith("augment: expected a name, an augmentation such as")


def test_what_are_no_extra_examples_is_refused() -> None:
    extra: Any = 5
    split = Split.of(pictures(), np.zeros(64, int))
    line = error_line(lambda: batches(split, 4, training=True, extra=extra))
    assert line == "extra: expected a tfrobust.data.Extra(split), received 5"


def test_extra_examples_of_another_weight_are_not_mixed() -> None:
    split = Split.of(pictures(), np.zeros(64, int))
    expected = "extra.weight: expected 1 (augment mixes examples), received 0.5"
    extra = Extra(split, weight=0.5)
    call = partial(batches, split, 8, training=True, augment="mixup", extra=extra)
    assert error_line(call) == expected
    overrides = ["data.augment=[crop, mixup]", "data.extra={name: digits, weight: 0.5}"]
    line = error_line(lambda: load_spec("digits_adv", overrides, smoke=False))
    assert line == f"--set {overrides[1]}: data.{expected}"


ON_GREY = [f"{name} on grey" for name in AUGMENTATIONS]


@pytest.mark.parametrize(
    "case", slow_but([*AUGMENTATIONS, *ON_GREY], AUGMENTATIONS.keys() - {"rand_augment"})
)
def test_augmentation_is_a_function_of_the_batch_and_the_seed(case: str) -> None:
    """A stream that begins at step 3 equals the tail of the full stream, to the bit.

    Images stay in the box, and another seed gives other images.
    """
    name, _, grey = case.partition(" on ")
    shape = (32, 8, 8, 1 if grey else 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    split = Split.of(images, np.arange(32) % 3)

    def stream(seed: int, first_step: int = 0) -> list[dict[str, np.ndarray]]:
        options: Any = {"training": True, "augment": ["crop", name], "seed": seed}
        return list(batches(split, 8, first_step=first_step, **options).take(6 - first_step))

    straight = stream(1)
    for later, batch in zip(stream(1, 3), straight[3:], strict=True):
        assert later.keys() == batch.keys()
        for key, values in batch.items():
            np.testing.assert_array_equal(later[key], values)
    for batch, of_seed_2 in zip(straight, stream(2), strict=True):
        assert batch["image"].dtype == tf.float32
        assert 0 <= np.min(batch["image"]) <= np.max(batch["image"]) <= 1
        assert not np.array_equal(batch["image"], of_seed_2["image"])


@pytest.mark.parametrize("augmentation", [MixUp(1.0), CutMix(1.0)], ids=["mixup", "cutmix"])
def test_mixed_labels_have_the_shares_of_the_mixed_images(augmentation: Any) -> None:
    """Each image has one grey level, that of its label.

    The mean of a mixed image is therefore the mean of its labels' levels by their shares, for
    CutMix up to the rounding of the rectangle's sides.
    """
    labels = np.arange(16, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None, None] / 15, (16, 32, 32, 1)).astype("float32")
    batch = {"image": tf.constant(images), "label": tf.constant(labels)}
    mixed = augmentation(batch, tf.constant([1, 2]))
    share = mixed["other_share"].numpy()
    assert np.all((share >= 0) & (share <= 0.5)) and share.max() > 0.2
    level = (1 - share) * mixed["label"].numpy() + share * mixed["other_label"].numpy()
    mean = 15 * np.mean(mixed["image"], axis=(1, 2, 3))
    atol = 1e-4 if isinstance(augmentation, MixUp) else 0.8
    np.testing.assert_allclose(mean, level, atol=atol)


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        (RandAugment(3, 0.7), {"num_ops": 3, "factor": (0, 0.7), "value_range": (0, 1)}),
        (
            RandomErasing(0.3, 0.1, 0.2),
            {"factor": (0.3, 0.3), "scale": (0.1, 0.2), "value_range": (0, 1)},
        ),
        (MixUp(0.3), {"alpha": 0.3}),
        (CutMix(0.4), {"factor": (0.4, 0.4)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_layer_of_keras_has_the_settings(augmentation: Any, expected: dict[str, Any]) -> None:
    config = augmentation.layer.get_config()
    assert {name: config[name] for name in expected} == expected


def test_several_augmentations_draw_different_noise() -> None:
    """The same crop twice would move the bright pixel in the middle by twice as much."""
    images = np.zeros((64, 9, 9, 1), np.uint8)
    images[:, 4, 4] = 255
    split, crop = Split.of(images, np.zeros(64, int)), Crop(padding=2)
    (once,), (twice,) = (
        batches(split, 64, training=True, augment=augment).take(1)
        for augment in (crop, [crop, crop])
    )
    places = [np.argwhere(batch["image"])[:, 1:3] - 4 for batch in (once, twice)]
    assert (places[1] != 2 * places[0]).any(axis=1).mean() > 0.5


def test_two_augmentations_that_mix_are_refused() -> None:
    expected = "augment: expected one that mixes examples, received 'CutMix and MixUp'"
    with pytest.raises(UserError, match=expected):
        in_sequence(["cutmix", "crop", "mixup"])


def test_crop_and_flip_draw_all_offsets_and_both_sides() -> None:
    # With different pixels, each of the 9 * 9 offsets gives another image.
    image = np.arange(1, 28 * 28 + 1, dtype=np.float32).reshape(1, 28, 28, 1)
    images = tf.constant(np.repeat(image, 4096, axis=0))
    result = augmented(AUGMENTATIONS["crop_flip"](), images, [0, 0]).numpy()
    assert len(np.unique(result.reshape(4096, -1), axis=0)) == 2 * 81
    plain = augmented(AUGMENTATIONS["crop"](), images, [0, 0]).numpy()
    mirrored = (result != plain).any(axis=(1, 2, 3)).mean()
    assert mirrored == pytest.approx(0.5, abs=0.04)  # 5 standard deviations
