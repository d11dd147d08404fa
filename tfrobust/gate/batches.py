"""Checks of the data that `fit` and `evaluate` of a RobustModel receive.

Data in memory is checked completely, a stream of validation data by its first batch, and every
batch once more inside the compiled step.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from types import GeneratorType
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfrobust.errors import UserError, require
from tfrobust.gate.images import (
    RANKS,
    Box,
    ask_layout,
    check_images,
    check_size,
    convert,
    divide,
    in_box,
    rounding,
)
from tfrobust.gate.labels import check_labels, check_weights

MARK = "tfrobust refuses"  # marks the assertions that `refusals` turns into UserErrors
REFUSED = re.compile(rf"{MARK} (.*?)>>\] \[(\S+)\] \[(\S+)\] \[(\d+)\]")
ASKED = "index"  # an entry only in batches of a Split, which has already checked the layout
SHAPED = (  # advice for a data set with unknown shapes
    "data.map(lambda x, y: (tf.ensure_shape(x, [None, H, W, C]), tf.ensure_shape(y, [None]))) "
    "gives them"
)
Names = tuple[str, str]


class Taken(NamedTuple):
    """The inputs that a network takes.

    Attributes:
        box: The range of pixels.
        image_shape: (H, W, C), (T, C) or (F,), with None for any size; None if the network does not
            specify it.
        classes: The number of classes; None if the network does not specify it.
    """

    box: Box = (0.0, 1.0)
    image_shape: tuple[int | None, ...] | None = None
    classes: int | None = None


def check_data(x: Any, y: Any, taken: Taken, names: Names = ("x", "y")) -> tuple[Any, Any]:
    """Return (x, y) for Keras, with arrays and tensors checked and cast.

    Args:
        x: Images, a mapping with "image" and other entries, or a stream of batches. Streams are
            not read; only the element_spec of a tf.data.Dataset is checked. The "label" of a
            mapping becomes y.
        y: Labels, if x has none.
        taken: The inputs that the network takes.
        names: Names of images and labels in errors. By default, those of a mapping are "image" and
            "label".

    Raises:
        UserError: If `check_images` or `check_labels` refuses the images or labels, or there are
            labels both in x and in y.
    """
    require(x is not None, names[0], "images", None)
    if isinstance(x, tf.data.Dataset):
        _check_spec(x.element_spec, taken, names)
        return x, y
    if isinstance(x, Mapping):
        inner = ("image", "label") if names == ("x", "y") else names
        if "image" not in x:
            return x, y
        require_labels_once(x, y)
        images, labels = _check_arrays(
            x["image"], x.get("label", y), taken, inner, "channels_last" if ASKED in x else None
        )
        # Without y Keras would drop weights of the examples, or take them for labels.
        return {name: x[name] for name in x if name != "label"} | {"image": images}, labels
    if hasattr(x, "__array__") or isinstance(x, list | tuple):
        return _check_arrays(x, y, taken, names)
    return x, y  # a PyDataset or a generator: the step looks at its batches


def check_unlabelled(x: Any, taken: Taken) -> Any:
    """Return the x of `predict`, checked as by `check_data`. Labels in it are not looked at."""
    if isinstance(x, tf.data.Dataset):
        spec, _, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
        _check_spec(_without_labels(spec), taken, ("x", "y"))
        return x
    return check_data(_without_labels(x), None, taken)[0]


def _without_labels(x: Any) -> Any:
    """Return a mapping without its labels; other x unchanged."""
    return {k: v for k, v in x.items() if k != "label"} if isinstance(x, Mapping) else x


def require_labels_once(x: Any, y: Any) -> None:
    """Raise a UserError if there are labels both in a mapping and beside it."""
    both = isinstance(x, Mapping) and "label" in x and y is not None
    require(not both, "y", "labels in the dict or beside it", "both")


def check_validation(data: Any, taken: Taken) -> Any:
    """Return `validation_data`, checked as by `check_data`.

    Tuples (x, y) and (x, y, weight) are checked completely, and the first batch of a stream, so
    that a mistake is found before the first epoch is trained.
    """
    names = ("validation_data: image", "validation_data: label")
    if isinstance(data, list | tuple | Mapping) or hasattr(data, "__array__"):
        several = isinstance(data, list | tuple)
        fits = not several or 1 <= len(data) <= 3
        require(fits, "validation_data", "(x, y) or (x, y, sample_weight)", f"{len(data)} parts")
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x, y = check_data(x, y, taken, names)
        images = x.get("image") if isinstance(x, Mapping) else x
        labelled = y is not None or not isinstance(images, np.ndarray)
        require(labelled, "validation_data", "labels beside the images, as (x, y)", "none")
        if weight is not None and isinstance(images, np.ndarray):
            weight = check_weights(weight, len(images), "validation_data: sample_weight")
        return tuple(part for part in (x, y, weight) if part is not None)
    first = None
    if isinstance(data, tf.data.Dataset):
        _check_spec(data.element_spec, taken, names)
        first = next(iter(data), None)
        require(first is not None, "validation_data", "at least one batch", 0)
    elif isinstance(data, keras.utils.PyDataset):
        first = data[0]
    elif isinstance(data, GeneratorType):
        first = next(data, None)
        data = _rejoined(first, data) if first is not None else data
    if first is not None:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(first)
        check_data(x, y, taken, names)
    return data


def check_count(name: str, data: Any, steps_name: str, steps: int | None) -> None:
    """Raise a UserError for a tf.data that is empty, or has no end though `steps` is None."""
    if not isinstance(data, tf.data.Dataset):
        return
    count = data.cardinality()
    require(count != 0, name, "at least one batch", 0)
    expected = f"the number of batches of {name}, a data set that repeats without end"
    require(steps is not None or count != tf.data.INFINITE_CARDINALITY, steps_name, expected, steps)


def _rejoined(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    """Yield the first batch, then the rest: a generator, as Keras takes no other iterator."""
    yield first
    yield from rest


def check_batch(
    image: tf.Tensor, label: tf.Tensor, classes: int | None, box: Box
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the images, float32, and labels, int32, of a batch after checking their values.

    This runs inside a compiled step. A batch that does not pass fails an assertion, which
    `refusals` turns into a UserError, before any weight changes. XLA drops assertions, so this
    must not be compiled by XLA.

    Args:
        image: Float [B, H, W, C], [B, T, C] or [B, F]; values outside the box by rounding only are
            clipped.
        label: Whole numbers or bool [B], from 0 to `classes` - 1.
        classes: The number of classes, or None if it is not known.
        box: The range of valid pixels.
    """
    low, high = box
    slack = rounding(box)
    image = tf.cast(image, tf.float32)
    inside = tf.reduce_all((image >= low - slack) & (image <= high + slack))  # False for NaN
    number = tf.cast(label, tf.float32 if label.dtype.is_floating else tf.int64)
    valid = number >= 0
    if label.dtype.is_floating:
        valid &= tf.equal(number, tf.round(number))
    if classes is not None:
        valid &= number < classes
    valid = tf.reduce_all(valid)
    expected = "class numbers" if classes is None else f"class numbers 0 to {classes - 1}"
    with tf.control_dependencies(
        [
            *demand(inside, f"image: expected {in_box(box, image.shape.rank)}, received", image),
            *demand(valid, f"label: expected whole {expected}, received", number),
        ]
    ):
        image = tf.clip_by_value(image, low, high)
    return image, tf.cast(number, tf.int32)


def demand(fits: tf.Tensor, line: str, values: tf.Tensor) -> list[Any]:
    """Assert that the values of a batch fit.

    In eager execution a UserError is raised at once. In a graph the assertion is returned, and
    `refusals` turns its failure into a UserError.

    Args:
        fits: Whether the batch is valid, a bool scalar.
        line: "argument: expected ..., received"; the range of the values is appended.
        values: The values to be described in the error.

    Returns:
        The list of operations that later computations must depend on; empty in eager execution.
    """
    numbers = tf.cast(values, tf.float32)
    odd = tf.math.count_nonzero(~tf.math.is_finite(numbers))
    seen = (tf.reduce_min(numbers), tf.reduce_max(numbers), odd)
    if not tf.executing_eagerly():
        return [tf.debugging.Assert(fits, [f"{MARK} {line}>>", *seen])]
    if not fits:
        raise UserError(_refusal(line, *map(float, seen)))
    return []


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turn the failure of an assertion by `demand` in a compiled step into a UserError."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        refusal = REFUSED.search(str(error))
        if refusal is None:
            raise
        line, *statistics = refusal.groups()
        raise UserError(_refusal(line, *map(float, statistics))) from None


def _refusal(line: str, least: float, most: float, odd: float) -> str:
    """Return the error message, with the range of the values or that some are not finite.

    Args:
        line: The `line` of `demand`.
        least: The least value.
        most: The greatest value.
        odd: How many of the values are not finite.
    """
    if odd:
        return f"{line} NaN or infinite values"
    unit, hint = (0.0, 1.0), ""
    for rank in RANKS:
        hint = divide(least, most, unit, rank) if in_box(unit, rank) in line else hint
    return f"{line} {least:g} to {most:g}{hint}"


def _check_arrays(
    x: Any, y: Any, taken: Taken, names: Names, layout: str | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    images = check_images(x, names[0], taken.box, layout=layout)
    if taken.image_shape is not None:
        check_size(images.shape, taken.image_shape, names[0])
    return images, y if y is None else check_labels(y, len(images), taken.classes, names[1])


def _check_spec(spec: Any, taken: Taken, names: Names) -> None:
    """Raise a UserError unless the element_spec of a tf.data.Dataset fits images and labels, as far
    as its shapes and dtypes are known."""
    x, y, _ = keras.utils.unpack_x_y_sample_weight(spec)
    asked = isinstance(x, Mapping) and ASKED in x
    image = x.get("image") if isinstance(x, Mapping) else x
    label = x.get("label", y) if isinstance(x, Mapping) else y
    if isinstance(image, tf.TensorSpec):
        check_image_spec(image, names[0], taken.box)
        shape = tuple(image.shape)
        if not asked:
            ask_layout(shape, names[0])
        if taken.image_shape is not None:
            check_size(shape, taken.image_shape, names[0])
    if isinstance(label, tf.TensorSpec):
        check_label_spec(label, names[1])


def check_image_spec(image: Any, name: str, box: Box) -> None:
    """Raise a UserError unless a tensor or its spec is one of images, float [B, H, W, C], or one of
    series [B, T, C] or rows of a table [B, F]."""
    dtype, shape = image.dtype, image.shape
    if not dtype.is_floating:
        received = f"{dtype.name!r}{convert(np.dtype(dtype.as_numpy_dtype), box, shape.rank)}"
        raise UserError(f"{name}: expected {in_box(box, shape.rank)}, received {received}")
    require(shape.rank is not None, name, f"batches [B, H, W, C] ({SHAPED})", "an unknown shape")
    unbatched = " (batch the data set)" if shape.rank == 1 else ""
    expected = f"batches [B, H, W, C], [B, T, C] or [B, F]{unbatched}"
    require(shape.rank in RANKS, name, expected, tuple(shape))


def check_label_spec(label: Any, name: str) -> None:
    """Raise a UserError unless a tensor or its spec is one of labels: numbers or bool, [B] or
    [B, 1]."""
    ranked = label.shape.rank is not None
    require(ranked, name, f"class numbers [B] ({SHAPED})", "an unknown shape")
    dtype, shape = label.dtype, tuple(label.shape)
    valued = dtype.is_integer or dtype.is_floating or dtype.is_bool
    require(valued, name, "integer class numbers", dtype.name)
    one_hot = " (of one-hot labels, argmax(-1))" if len(shape) == 2 else ""
    fits = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    require(fits, name, f"class numbers [B]{one_hot}", f"shape {label.shape}")
