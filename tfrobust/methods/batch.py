"""What one training step is given, whatever form it came in."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.errors import UserError, require
from tfrobust.gate import check_batch, check_image_spec, check_label_spec, demand

Batch = dict[str, Any]


def as_batch(
    data: Any,
    requires: Sequence[str],
    method: str,
    classes: int | None = None,
    box: tuple[float, float] = (0.0, 1.0),
    examples: int | None = None,
) -> Batch:
    """A dict, (x, y) or (x, y, sample_weight), x an array or a dict, as a batch. The "weight" of a
    dict and a sample_weight beside it multiply.

    Raises UserError for one without what `method` requires, with an index that is not below
    `examples`, or that is no images of the box and labels of the classes; in a compiled step, as
    `tfrobust.gate.check_batch`.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    batch = dict(x) if isinstance(x, Mapping) else {"image": x}
    if weight is not None and "weight" in batch:
        weight = _weight(batch["weight"]) * _weight(weight)
    batch |= {k: v for k, v in (("label", y), ("weight", weight)) if v is not None}
    missing = sorted({"image", "label", *requires} - batch.keys())
    if missing:
        raise UserError(
            f"batch: {method} expected {', '.join(missing)} beside {', '.join(sorted(batch))}; "
            "tfrobust.data.from_arrays(x, y) makes such batches"
        )
    image, label = (tf.convert_to_tensor(batch[name]) for name in ("image", "label"))
    check_image_spec(image, "image", box)
    check_label_spec(label, "label")
    if label.shape.rank == 2:  # as Keras data sets give them
        label = label[:, 0]
    image, label = check_batch(image, label, classes, box)
    if "weight" in batch:
        batch["weight"] = _weight(batch["weight"])
    if "index" in requires and examples is not None:
        batch["index"] = _index(batch["index"], examples)
    return batch | {"image": image, "label": label}


def without_strings(batch: Batch) -> Batch:
    """Return the entries of a batch that XLA takes."""
    return {k: v for k, v in batch.items() if tf.convert_to_tensor(v).dtype != tf.string}


def _index(index: Any, examples: int) -> tf.Tensor:
    """Return the rows of the examples, each below their number. Errors are as of `_weight`."""
    index = tf.convert_to_tensor(index)
    fits = tf.reduce_all((index >= 0) & (index < examples))
    line = f"index: expected rows 0 to {examples - 1} (num_examples is {examples}), received"
    with tf.control_dependencies(demand(fits, line, index)):
        return tf.identity(index)


def _weight(weight: Any) -> tf.Tensor:
    """Return the weights as float32 [B]: [B, 1] would broadcast the losses to [B, B].

    Raises UserError for what is no number >= 0 for each example; in a compiled step the error is
    TensorFlow's, of the same line, before a weight of the network moves.
    """
    weight = tf.convert_to_tensor(weight)
    shape, kind = weight.shape, weight.dtype
    column = shape.rank in (None, 1) or (shape.rank == 2 and shape[1] == 1)
    number = kind.is_floating or kind.is_integer or kind.is_bool
    received = f"{kind.name} of shape {shape}"
    require(column and number, "sample_weight", "numbers [B], one for each example", received)
    weight = tf.reshape(tf.cast(weight, tf.float32), [-1])
    fits = tf.reduce_all((weight >= 0) & (weight < np.inf))  # NaN is neither
    line = "sample_weight: expected finite numbers >= 0, received"
    with tf.control_dependencies(demand(fits, line, weight)):
        return tf.identity(weight)


@contextlib.contextmanager
def weighing(model: keras.Model, class_weight: Any) -> Iterator[None]:
    """Let the training steps of a model weigh classes by Keras's `class_weight`, {class: weight}.

    Keras's own takes no batches that are one dict, and no weights of the examples beside it.
    """
    if class_weight is None:
        yield
        return
    model.class_weight = _of_classes(class_weight, model.signature.classes)
    model.train_function = None
    try:
        yield
    finally:
        model.class_weight, model.train_function = None, None


def weighed(batch: Batch, of_classes: np.ndarray | None) -> Batch:
    """Return the batch with the weights of its classes multiplied into those of its examples."""
    if of_classes is None:
        return batch
    own = tf.gather(of_classes, batch["label"])
    return batch | {"weight": batch.get("weight", 1.0) * own}


def _of_classes(class_weight: Any, classes: int) -> np.ndarray:
    """Return the weight of each class, float32 [classes], 1 of one that is not named. Raises
    UserError for what is no mapping of classes to weights."""
    expected = f"a mapping of classes 0 to {classes - 1} to numbers >= 0, as {{0: 1.0, 1: 2.5}}"
    fits = isinstance(class_weight, Mapping) and bool(class_weight)
    require(fits, "class_weight", expected, class_weight)
    for name, weight in class_weight.items():
        whole = isinstance(name, numbers.Integral) and 0 <= int(name) < classes
        real = isinstance(weight, numbers.Real) and 0 <= float(weight) < np.inf
        require(whole and real, "class_weight", expected, {name: weight})
    table = np.ones(classes, np.float32)
    for name, weight in class_weight.items():
        table[name] = weight
    return table
