"""Splits and batches of examples, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust.data import Extra, Split, batches, from_arrays, hold_out
from tfrobust.errors import UserError

CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100, "svhn_cropped": 10, "stl10": 10}


def split_of(n: int, height: int = 6, width: int = 5) -> Split:
    """Return n random examples of uint8 images [height, width, 3] and four classes."""
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return Split.of(images, rng.integers(0, 4, n))


def index_of(data: tf.data.Dataset, steps: int) -> list[list[int]]:
    """Return the indices of the examples in the first batches."""
    return [batch["index"].numpy().tolist() for batch in data.take(steps)]


def assert_batches_equal_those_of_arrays(split: Split) -> None:
    """Assert that images in files give the same stream as arrays, and a resumed one its tail."""
    arrays = Split(np.asarray(split.images), split.labels, split.index)
    options: Any = {"seed": 1, "training": True, "augment": "crop_flip"}
    stream, expected = (batches(each, 4, **options).take(7) for each in (split, arrays))
    for batch, of_arrays in zip(stream, expected, strict=True):
        for key in of_arrays:
            np.testing.assert_array_equal(batch[key], of_arrays[key])
    tail = next(iter(batches(split, 4, first_step=6, **options)))
    np.testing.assert_array_equal(tail["image"], batch["image"])


# Splits


def test_a_subset_keeps_the_index_and_the_label_of_every_image() -> None:
    split = split_of(10)
    part = split.take([7, 2, 5]).take([2, 0])
    assert part.index.tolist() == [5, 7]
    np.testing.assert_array_equal(part.images, split.images[[5, 7]])
    np.testing.assert_array_equal(part.labels, split.labels[[5, 7]])
    assert split.first(3).index.tolist() == [0, 1, 2]
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    assert split.index.dtype == np.int64


def test_first_n_examples_need_a_split_of_n() -> None:
    assert error_line(lambda: split_of(3).first(4)) == "n: expected 0 to 3 examples, received 4"


@pytest.mark.parametrize("n", [0.5, True])
def test_a_number_of_examples_is_an_int(n: Any) -> None:
    first, held = lambda: split_of(3).first(n), lambda: hold_out(split_of(3), n, seed=0)
    assert error_line(first) == f"n: expected 0 to 3 examples, received {n}"
    assert error_line(held) == f"size: expected 0 to 2 examples to hold out of 3, received {n}"


@pytest.mark.parametrize(
    ("indices", "received"),
    [
        (np.array([True, False, True]), "bool of shape (3,)"),  # rows 1, 0 and 1 before
        ([0.0, 1.7], "float64 of shape (2,)"),
        ([[0, 1]], "int64 of shape (1, 2)"),
    ],
)
def test_only_whole_positions_are_taken(indices: Any, received: str) -> None:
    expected = "indices: expected positions, int [n] (np.flatnonzero(mask) of a mask), received"
    assert error_line(lambda: split_of(3).take(indices)) == f"{expected} '{received}'"


def test_positions_beyond_the_split_are_refused_and_negative_ones_count_from_its_end() -> None:
    beyond = error_line(lambda: split_of(3).take([0, 3]))
    assert beyond == "indices: expected positions of 3 examples, received [3]"
    assert split_of(3).take([-1, 0]).index.tolist() == [2, 0]
    assert len(split_of(3).take([])) == 0


def test_as_float_divides_uint8_by_255_and_keeps_floats() -> None:
    split = Split.of(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1), np.arange(3))
    assert split.images.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal(split.as_float().ravel(), np.float32([0, 0.2, 1]))
    already = Split.of(np.full((2, 1, 1, 1), 0.3), np.arange(2))
    np.testing.assert_array_equal(already.as_float().ravel(), np.float32([0.3, 0.3]))


def test_hold_out_is_disjoint_complete_and_set_by_the_seed() -> None:
    train = split_of(50).take(np.arange(49, -1, -1))
    rest, validation = hold_out(train, 8, seed=3)
    assert (len(rest), len(validation)) == (42, 8)
    assert sorted([*rest.index, *validation.index]) == list(range(50))
    assert validation.index.tolist() == sorted(validation.index, reverse=True)  # as in train
    np.testing.assert_array_equal(validation.images, split_of(50).images[validation.index])
    np.testing.assert_array_equal(validation.index, hold_out(train, 8, seed=3)[1].index)
    assert validation.index.tolist() != hold_out(train, 8, seed=4)[1].index.tolist()
    assert len(hold_out(train, 0, seed=3)[1]) == 0


@pytest.mark.parametrize("size", [-1, 5, 6])
def test_hold_out_refuses_a_size_that_leaves_no_example(size: int) -> None:
    expected = f"size: expected 0 to 4 examples to hold out of 5, received {size}"
    assert error_line(lambda: hold_out(split_of(5), size, seed=0)) == expected


# Batches


def test_training_order_is_set_by_seed_and_epoch_alone() -> None:
    def order(seed: int) -> list[list[int]]:
        return index_of(batches(split_of(10), 3, seed=seed, training=True), 6)

    first = order(0)
    tf.random.set_seed(1)  # the global seed does not matter
    assert order(0) == first
    assert order(1) != first
    assert first[:3] != first[3:]
    for epoch in (first[:3], first[3:]):  # 10 // 3 full batches, one example dropped
        assert len(set(np.ravel(epoch))) == 9


def test_resumed_stream_is_the_tail_of_an_uninterrupted_one() -> None:
    options: Any = {"seed": 7, "training": True, "augment": "crop_flip"}
    straight, resumed = (batches(split_of(10), 4, first_step=k, **options) for k in (0, 5))
    # An epoch has two steps, so the stream resumes in the middle of the third epoch.
    for expected, batch in zip(straight.skip(5).take(4), resumed.take(4), strict=True):
        for key in ("image", "label", "index"):
            np.testing.assert_array_equal(expected[key], batch[key])


def test_stream_of_short_epochs_resumes_where_it_was() -> None:
    split = split_of(10)
    straight = index_of(batches(split, 2, training=True, steps_per_epoch=3), 9)
    resumed = index_of(batches(split, 2, training=True, steps_per_epoch=3, first_step=4), 5)
    assert resumed == straight[4:]
    assert straight[:3] == index_of(batches(split, 2, training=True), 3)


def test_epoch_may_have_more_steps_than_the_split_has_batches() -> None:
    """Ten steps of 4 show each of 10 examples four times an epoch, and the stream resumes."""
    stream = batches(split_of(10), 4, training=True, steps_per_epoch=10)
    indices = np.array(index_of(stream, 20))
    for epoch in (indices[:10], indices[10:]):
        assert np.bincount(epoch.ravel()).tolist() == [4] * 10
    assert (indices[:10] != indices[10:]).any()
    tail = batches(split_of(10), 4, training=True, steps_per_epoch=10, first_step=7)
    np.testing.assert_array_equal(index_of(tail, 13), indices[7:])


def test_augmentation_draws_new_noise_in_every_batch_and_epoch() -> None:
    same = Split.of(np.repeat(split_of(1, 32, 32).images, 3, axis=0), np.zeros(3, int))
    data = batches(same, 1, training=True, augment="crop").take(4 * 3)
    images = {batch["image"].numpy().tobytes() for batch in data}
    # There are 81 crops. Noise that depends on the epoch alone gives 4, on the batch alone 3.
    assert len(images) > 4


def test_the_end_of_training_does_not_wait_for_a_thread_of_tf_data() -> None:
    """The thread that tunes a pipeline may sleep for a minute before its iterator can go."""
    split = split_of(10)
    arrays = from_arrays(split.images, split.labels, 4)
    for data in (batches(split, 4, training=True), batches(split, 4), arrays):
        assert data.options().autotune.enabled is False


def test_evaluation_is_one_pass_in_order() -> None:
    split = split_of(10).take(np.arange(3, 10))
    data = batches(split, 3)
    assert int(data.cardinality()) == 3
    assert index_of(data, 9) == [[3, 4, 5], [6, 7, 8], [9]]
    images = np.concatenate([batch["image"] for batch in data])
    np.testing.assert_array_equal(images, split.as_float())
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in data]), split.labels)


def test_uint8_batches_equal_as_float_to_the_bit() -> None:
    levels = Split.of(np.arange(256, dtype=np.uint8).reshape(256, 1, 1), np.zeros(256, int))
    (batch,) = batches(levels, 256)
    np.testing.assert_array_equal(batch["image"], levels.as_float())


@pytest.mark.parametrize("augment", [None, "crop", "crop_flip"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_training_batches_have_the_image_and_label_of_their_index(
    augment: str | None, dtype: type
) -> None:
    """The specification leaves the number of examples open."""
    split = split_of(9)
    if dtype is np.float32:
        split = Split(split.as_float(), split.labels, split.index)
    data = batches(split, 4, training=True, augment=augment)
    assert data.element_spec == {
        "image": tf.TensorSpec([None, 6, 5, 3], tf.float32),
        "label": tf.TensorSpec([None], tf.int32),
        "index": tf.TensorSpec([None], tf.int64),
    }
    assert data.cardinality() == tf.data.INFINITE_CARDINALITY
    for batch in data.take(3):
        assert len(batch["index"]) == 4
        np.testing.assert_array_equal(batch["label"], split.labels[batch["index"]])
        same = np.array_equal(batch["image"], split.as_float()[batch["index"]])
        assert same == (augment is None)
        assert 0 <= batch["image"].numpy().min() <= batch["image"].numpy().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected int >= 1, received 0"),
        ({"batch_size": 2.5}, "batch_size: expected int >= 1, received 2.5"),
        (
            {"batch_size": 2, "steps_per_epoch": 0},
            "steps_per_epoch: expected int >= 1, received 0",
        ),
        ({"batch_size": 2, "first_step": -1}, "first_step: expected int >= 0, received -1"),
        ({"batch_size": 2, "training": "no"}, "training: expected True or False, received 'no'"),
        ({"batch_size": 2, "seed": None}, "seed: expected int of at most 64 bits, received None"),
        (
            {"batch_size": 11, "training": True},
            "batch_size: expected 1 to the 10 examples of the split, received 11",
        ),
        (
            {"batch_size": 2, "augment": "crop"},
            "augment: expected None without training=True, received 'crop'",
        ),
        (
            {"batch_size": 2, "augment": "crip", "training": True},
            "augment: expected one of crop, crop_flip, cutmix, mixup, rand_augment, "
            "random_erasing, received 'crip' (did you mean 'crop'?)",
        ),
    ],
)
def test_wrong_arguments_of_batches_are_one_line(arguments: dict[str, Any], message: str) -> None:
    assert error_line(lambda: batches(split_of(10), **arguments)) == message


def test_arrays_are_no_split() -> None:
    expected = "split: expected a tfrobust.data.Split, such as Split.of(x, y), received 'ndarray'"
    for call in (lambda: batches(split_of(3).images, 2), lambda: Extra(split_of(3).images)):
        assert error_line(call) == expected


def test_training_on_an_empty_split_is_an_error() -> None:
    assert "0 examples" in error_line(lambda: batches(split_of(4).first(0), 1, training=True))


# A user's arrays


def test_from_arrays_shows_each_example_once_a_pass_in_a_new_order() -> None:
    split = split_of(10)

    def fresh(seed: int) -> tf.data.Dataset:
        return from_arrays(split.images, split.labels, 4, seed=seed, augment="crop_flip")

    data, same_seed = fresh(1), fresh(1)
    assert int(data.cardinality()) == 3
    orders = []
    for _ in range(2):
        order: list[int] = []
        for batch, same in zip(data, same_seed, strict=True):
            order.extend(batch["index"].numpy())
            np.testing.assert_array_equal(batch["label"], split.labels[batch["index"]])
            np.testing.assert_array_equal(batch["image"], same["image"])
            np.testing.assert_array_equal(batch["index"], same["index"])
        assert sorted(order) == list(range(10))
        orders.append(order)
    assert orders[0] != orders[1]
    assert orders[0] != [index for batch in index_of(fresh(2), 3) for index in batch]


def test_from_arrays_draws_new_noise_in_every_pass() -> None:
    x, y = split_of(1, 20, 20).images, np.zeros(1, int)
    data = from_arrays(x, y, 1, augment="crop")
    images = {next(iter(data))["image"].numpy().tobytes() for _ in range(6)}
    assert len(images) >= 3  # there are 81 crops


def test_from_arrays_without_training_is_in_order_and_takes_keras_labels() -> None:
    split = split_of(5)
    data = from_arrays(split.images, split.labels[:, None], 2, training=False)
    assert index_of(data, 9) == [[0, 1], [2, 3], [4]]
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in data]), split.labels)


X, Y = np.zeros((4, 3, 3, 1), np.uint8), np.arange(4)
ONE_NAN = np.where(np.arange(36).reshape(X.shape) == 20, np.nan, 0.5)
MISTAKES = {  # images, labels, the argument that is wrong, a part of the message
    "one-hot": (X, np.eye(4, dtype=int), "y", "argmax(-1)"),
    "negative": (X, Y - 1, "y", "class numbers 0 to 65535, received -1"),
    "identifier": (X, Y + 70_000, "y", "class numbers 0 to 65535, received 70000"),
    "broken labels": (X, Y + 0.9, "y", "whole class numbers, received 0.9"),
    "NaN labels": (X, np.where(Y == 2, np.nan, Y), "y", "whole class numbers, received nan"),
    "words": (X, np.array(list("abcd")), "y", "integer class numbers, received 'str32'"),
    "fewer labels": (X, Y[:3], "y", "one label for each of 4 images, received (3,)"),
    "object labels": (X, Y.astype(object), "y", "received 'object'"),
    "flat images": (X.ravel(), Y, "x", "or a table [N, F], none of it 0, received (36,)"),
    "integer table": (X.reshape(4, 9).astype(int), Y, "x", "'int64'; scale each feature by its"),
    "no images": (X[:0], Y[:0], "x", "received (0, 3, 3, 1)"),
    "int images": (X.astype(np.int64), Y, "x", "received 'int64'"),
    "object images": (X.astype(object), Y, "x", "received 'object'"),
    "0 and 1": (X + np.uint8(1), Y, "x", "received only 0 and 1; give float32 if"),
    "channels first": (np.zeros((4, 3, 8, 8)), Y, "x", "looks like channels first: np.moveaxis"),
    "NaN": (ONE_NAN, Y, "x", "finite images, received NaN or infinite values in 1 of 4"),
    "0 to 255": (X + np.float32(255), Y, "x", "images in [0, 1], received 255 to 255; divide"),
    "below 0": (X - 0.1, Y, "x", "received -0.1 to -0.1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_arrays_are_one_line_that_names_the_argument(mistake: str) -> None:
    x, y, argument, message = MISTAKES[mistake]
    line = error_line(lambda: from_arrays(x, y))
    assert line.startswith(f"{argument}: expected ")
    assert message in line


@pytest.mark.parametrize("labels", [Y > 1, Y.astype("float32"), Y.astype("uint64")[:, None]])
def test_labels_may_be_integers_of_any_dtype(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(Split.of(X, labels).labels, labels.reshape(-1).astype(int))


def test_channels_first_images_are_transposed_if_the_layout_says_so() -> None:
    x = np.arange(4 * 3 * 8 * 8, dtype=np.float32).reshape(4, 3, 8, 8) / 768
    first = Split.of(x, Y, layout="channels_first")
    np.testing.assert_array_equal(first.images, x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(Split.of(x, Y, layout="channels_last").images, x)
    batch = next(iter(from_arrays(x, Y, 4, training=False, layout="channels_first")))
    np.testing.assert_array_equal(batch["image"], first.images)
    with pytest.raises(UserError, match="layout: expected one of channels_first, channels_last"):
        Split.of(x, Y, layout="NCHW")


def test_extra_examples_fill_their_share_of_every_batch() -> None:
    """Two of every 8 examples are extra ones, and each of these has its turn.

    Their indices follow those of the split, the weights have mean 1, and the stream resumes.
    """
    split = Split.of(np.zeros((20, 2, 2), np.uint8), np.zeros(20, int))
    more = Split.of(np.full((5, 2, 2), 255, np.uint8), np.ones(5, int))
    extra = Extra(more, share=0.25, weight=0.5)
    stream = list(batches(split, 8, training=True, extra=extra).take(6).as_numpy_iterator())
    for batch in stream:
        np.testing.assert_array_equal(batch["label"], [0, 0, 1, 0, 0, 0, 1, 0])
        np.testing.assert_array_equal(batch["image"].max(axis=(1, 2, 3)), batch["label"])
        weight = np.where(batch["label"] == 1, 0.5, 1.0) * 8 / 7
        np.testing.assert_allclose(batch["weight"], weight, rtol=1e-6)
    indices = np.stack([batch["index"] for batch in stream])
    extras = indices[:, [2, 6]]
    assert set(extras.ravel()) == set(range(20, 25)) and (np.diff(extras) != 0).all()
    for epoch in (indices[:2], indices[2:4]):  # 12 of 16 examples are the split's
        assert np.sum(np.unique(epoch) < 20) == 12
    tail = batches(split, 8, training=True, extra=extra, first_step=3)
    np.testing.assert_array_equal(next(tail.as_numpy_iterator())["index"], indices[3])


def test_one_extra_image_of_another_dtype_is_repeated() -> None:
    split, white = split_of(4), Split.of(np.ones((1, 6, 5, 3), np.float32), np.array([3]))
    stream = batches(split, 2, training=True, extra=Extra(white))
    for batch in stream.take(4).as_numpy_iterator():
        image = split.as_float()[batch["index"][0]]
        np.testing.assert_array_equal(batch["image"], [image, white.images[0]])
        assert batch["index"][1] == 4 and batch["label"][1] == 3


def test_extra_examples_are_drawn_without_repetition_or_pattern() -> None:
    """In 100 batches of 10, a share of 70 % is 700 different examples of 1,000.

    Neighbours are uncorrelated.
    """
    extra = Extra(Split.of(np.full((1000, 6, 5, 3), 9, np.uint8), np.zeros(1000, int)), 0.7)
    stream = batches(split_of(10), 10, training=True, extra=extra, steps_per_epoch=100)
    index = np.concatenate(index_of(stream, 200)).reshape(2, -1) - 10
    first, second = (epoch[epoch >= 0] for epoch in index)
    assert len(set(first)) == len(set(second)) == 700 and (first != second).any()
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.15  # 4 standard deviations


def test_wrong_extra_examples_are_refused() -> None:
    split = Split.of(np.zeros((4, 2, 2), np.uint8), np.zeros(4, int))
    larger = Split.of(np.zeros((4, 3, 3), np.uint8), np.zeros(4, int))
    with pytest.raises(UserError, match="extra: expected images of .2, 2, 1. as the others"):
        batches(split, 2, training=True, extra=Extra(larger))
    with pytest.raises(UserError, match="extra: expected at least the 2 examples of a batch, rec"):
        batches(split, 4, training=True, extra=Extra(split.first(1)))
    with pytest.raises(UserError, match="share: expected a number in .0, 1., received 1"):
        Extra(larger, share=1.0)
    with pytest.raises(UserError, match="split: expected examples, received 'none'"):
        Extra(larger.first(0))
    with pytest.raises(UserError, match="extra: expected None without training=True"):
        batches(split, 2, extra=Extra(split))
