"""What `fit` and `evaluate` of a RobustModel are given, whatever brings it: whole where it is in
memory, the first batch of a validation stream, and every batch inside the compiled step."""

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
    Box,
    ask_layout,
    check_images,
    check_size,
    convert,
    divide,
    in_box,
    rounding,
)
from tfrobust.gate.labels import check_labels

MARK = "tfrobust refuses"  # opens the message of an assertion that `refusals` reads
REFUSED = re.compile(rf"{MARK} (.*?)>>\] \[(\S+)\] \[(\S+)\] \[(\d+)\]")
ASKED = "index"  # an entry of batches that are of a Split, which has asked for the layout
SHAPED = (  # what gives a data set the shapes that it does not know
    "data.map(lambda x, y: (tf.ensure_shape(x, [None, H, W, C]), tf.ensure_shape(y, [None]))) "
    "gives them"
)
Names = tuple[str, str]


class Taken(NamedTuple):
    """What a network takes: images of the box and of a size (H, W, C), None for any, with labels of
    so many classes; None where a network does not say."""

    box: Box = (0.0, 1.0)
    image_shape: tuple[int | None, ...] | None = None
    classes: int | None = None


def check_data(x: Any, y: Any, taken: Taken, names: Names = ("x", "y")) -> tuple[Any, Any]:
    """Return (x, y) as Keras is given them, arrays and tensors checked and cast.

    Args:
        x: images, a mapping of them and more, or a stream of batches. Of a tf.data.Dataset its
            element_spec is looked at; no stream is read.
        y: the labels of an array.
        names: of images and labels in errors; of a mapping's they are "image" and "label" unless
            these are given.

    Raises:
        UserError: one line, for images and labels that `check_images` and `check_labels` refuse.
    """
    if isinstance(x, tf.data.Dataset):
        _check_spec(x.element_spec, taken, names)
        return x, y
    if isinstance(x, Mapping):
        inner = ("image", "label") if names == ("x", "y") else names
        if "image" not in x:
            return x, y
        images, labels = _check_arrays(
            x["image"], x.get("label", y), taken, inner, "channels_last" if ASKED in x else None
        )
        parts = {**x, "image": images}
        return (parts | {"label": labels}, y) if "label" in x else (parts, labels)
    if hasattr(x, "__array__") or isinstance(x, list | tuple):
        return _check_arrays(x, y, taken, names)
    return x, y  # a PyDataset or a generator: the step looks at its batches


def check_validation(data: Any, taken: Taken) -> Any:
    """Return `validation_data` checked as by `check_data`: (x, y) and (x, y, weight) whole, of a
    stream its first batch, so that no epoch is trained for nothing."""
    names = ("validation_data: image", "validation_data: label")
    if isinstance(data, list | tuple):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x, y = check_data(x, y, taken, names)
        return tuple(part for part in (x, y, weight) if part is not None)
    first = None
    if isinstance(data, tf.data.Dataset):
        _check_spec(data.element_spec, taken, names)
        first = next(iter(data), None)
    elif isinstance(data, keras.utils.PyDataset):
        first = data[0]
    elif isinstance(data, GeneratorType):
        first = next(data, None)
        data = _rejoined(first, data) if first is not None else data
    if first is not None:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(first)
        check_data(x, y, taken, names)
    return data


def _rejoined(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    """Yield what was taken off a generator, then the rest; Keras takes no other iterators."""
    yield first
    yield from rest


def check_batch(
    image: tf.Tensor, label: tf.Tensor, classes: int | None, box: Box
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return (float32 image, int32 label) of a batch inside a step, checked by their values.

    What does not pass is an error that `refusals` makes one line, before the image flows on, so
    that no weight moves. XLA drops assertions, so this is not what it may compile.

    Args:
        image: float [B, H, W, C]; what rounding put outside the box is clipped.
        label: a number or bool [B], whole, from 0 up to `classes` where that is known.
    """
    low, high = box
    slack = rounding(box)
    image = tf.cast(image, tf.float32)
    inside = tf.reduce_all((image >= low - slack) & (image <= high + slack))  # NaN is not
    number = tf.cast(label, tf.float32 if label.dtype.is_floating else tf.int64)
    known = number >= 0
    if label.dtype.is_floating:
        known &= tf.equal(number, tf.round(number))
    if classes is not None:
        known &= number < classes
    known = tf.reduce_all(known)
    expected = "class numbers" if classes is None else f"class numbers 0 to {classes - 1}"
    with tf.control_dependencies(
        [
            *demand(inside, f"image: expected {in_box(box)}, received", image),
            *demand(known, f"label: expected whole {expected}, received", number),
        ]
    ):
        image = tf.clip_by_value(image, low, high)
    return image, tf.cast(number, tf.int32)


def demand(fits: tf.Tensor, line: str, values: tf.Tensor) -> list[Any]:
    """Return the assertion that values fit, in a list, to be a control dependency of what goes on
    with them; while nothing is compiled, raise the UserError at once. `refusals` reads it.

    line: "argument: expected ..., received"; the range of the values is added.
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
    """Raise the one-line UserError of a batch that `check_batch` refused in a compiled step."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        told = REFUSED.search(str(error))
        if told is None:
            raise
        raise UserError(_refusal(told[1], *map(float, told.groups()[1:]))) from None


def _refusal(line: str, least: float, most: float, odd: float) -> str:
    """Return the whole line, with the range of the values and how many of them are not finite."""
    hint = divide(most, (0.0, 1.0)) if in_box((0.0, 1.0)) in line else ""
    return f"{line} {'NaN or infinite values' if odd else f'{least:g} to {most:g}{hint}'}"


def _check_arrays(
    x: Any, y: Any, taken: Taken, names: Names, layout: str | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    images = check_images(x, names[0], taken.box, layout=layout)
    if taken.image_shape is not None:
        check_size(images.shape, taken.image_shape, names[0])
    return images, y if y is None else check_labels(y, len(images), taken.classes, names[1])


def _check_spec(spec: Any, taken: Taken, names: Names) -> None:
    """Raise a UserError unless the batches of a tf.data.Dataset have the shapes and dtypes of
    images and labels, as far as these are known."""
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
    """Raise a UserError unless a tensor or its spec has the shape and dtype of images: float
    [B, H, W, C]."""
    dtype, shape = image.dtype, image.shape
    if not dtype.is_floating:
        received = f"{dtype.name!r}{convert(np.dtype(dtype.as_numpy_dtype), box)}"
        raise UserError(f"{name}: expected {in_box(box)}, received {received}")
    require(shape.rank is not None, name, f"batches [B, H, W, C] ({SHAPED})", "an unknown shape")
    unbatched = " (batch the data set)" if shape.rank == 3 else ""
    require(shape.rank == 4, name, f"batches [B, H, W, C]{unbatched}", tuple(shape))


def check_label_spec(label: Any, name: str) -> None:
    """Raise a UserError unless a tensor or its spec has the shape and dtype of labels: a number or
    bool, [B] or [B, 1]."""
    known = label.shape.rank is not None
    require(known, name, f"class numbers [B] ({SHAPED})", "an unknown shape")
    dtype, shape = label.dtype, tuple(label.shape)
    valued = dtype.is_integer or dtype.is_floating or dtype.is_bool
    require(valued, name, "integer class numbers", dtype.name)
    one_hot = " (of one-hot labels, argmax(-1))" if len(shape) == 2 else ""
    fits = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    require(fits, name, f"class numbers [B]{one_hot}", f"shape {label.shape}")
