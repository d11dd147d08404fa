"""The batch of a training step, made from any form of data that Keras takes."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.errors import UserError, require
from tfrobust.gate import (
    Taken,
    check_batch,
    check_image_spec,
    check_label_spec,
    check_size,
    demand,
    require_labels_once,
)

Batch = dict[str, Any]


def as_batch(
    data: Any,
    requires: Sequence[str],
    method: str,
    taken: Taken,
    examples: int | None = None,
) -> Batch:
    """Return data as a batch {"image", "label", ...}.

    Args:
        data: A dict, (x, y) or (x, y, sample_weight), where x is an array or a dict. The "weight"
            of a dict and a sample_weight beside it are multiplied.
        requires: The entries that the batch must have beside image and label.
        method: The name of the method that requires them, for the error.
        taken: The inputs that the network takes.
        examples: The number of training examples, which the index must be below; None for any.

    Raises:
        UserError: An entry is missing or has not one value for each image, an index is out of
            range, images are outside the box or of another shape, or labels are no classes. In a
            compiled step the error is like that of
            `tfrobust.gate.check_batch`.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    require_labels_once(x, y)
    batch = dict(x) if isinstance(x, Mapping) else {"image": x}
    if weight is not None and "weight" in batch:
        weight = _weight(batch["weight"]) * _weight(weight)
    if y is not None:
        batch["label"] = y
    if weight is not None:
        batch["weight"] = weight
    missing = sorted({"image", "label", *requires} - batch.keys())
    if missing:
        raise UserError(
            f"batch: {method} expected {', '.join(missing)} beside {', '.join(sorted(batch))}; "
            "tfrobust.data.from_arrays(x, y) makes such batches"
        )
    image, label = tf.convert_to_tensor(batch["image"]), tf.convert_to_tensor(batch["label"])
    check_image_spec(image, "image", taken.box)
    if taken.image_shape is not None:
        check_size(tuple(image.shape), taken.image_shape, "image")
    check_label_spec(label, "label")
    if label.shape.rank == 2:  # [B, 1], as in Keras's data sets
        label = label[:, 0]
    label = _paired("label", label, image)
    image, label = check_batch(image, label, taken.classes, taken.box)
    if "weight" in batch:
        batch["weight"] = _paired("sample_weight", _weight(batch["weight"]), image)
    if "index" in requires and examples is not None:
        batch["index"] = _paired("index", _index(batch["index"], examples), image)
    return batch | {"image": image, "label": label}


def without_strings(batch: Batch) -> Batch:
    """Return the entries of a batch that XLA takes."""
    return {k: v for k, v in batch.items() if tf.convert_to_tensor(v).dtype != tf.string}


def filled(batch: Batch) -> Batch:
    """Return a replica's batch, or, if it has no examples, one of weight 0 and without an index.

    A replica has none where the last batch of an epoch is too small for all of them. BatchNorm and
    its gradients would then be NaN. The filling has the first image of the global batch.
    """
    context, image = tf.distribute.get_replica_context(), batch["image"]
    if context is None or context.num_replicas_in_sync == 1 or image.shape[0]:
        return batch
    first = tf.reduce_sum(image[:1], axis=0)  # 0 of no images
    is_first = tf.equal(context.replica_id_in_sync_group, 0)
    first = context.all_reduce("SUM", tf.where(is_first, first, tf.zeros_like(first)))
    missing = tf.maximum(1 - tf.shape(image)[0], 0)

    def with_filling(name: str, values: Any) -> tf.Tensor:
        values = tf.convert_to_tensor(values)
        if values.shape.rank == 0:
            return values
        filling = tf.zeros(tf.concat([[missing], tf.shape(values)[1:]], axis=0), values.dtype)
        if name == "image":
            filling = tf.repeat(first[None], missing, axis=0)
        elif name == "index":
            filling -= 1
        return tf.ensure_shape(tf.concat([values, filling], axis=0), values.shape)

    weighted = {"weight": tf.ones(tf.shape(image)[:1])} | batch
    return {name: with_filling(name, values) for name, values in weighted.items()}


def _paired(name: str, values: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Return the values [B], checked to be as many as the images. Errors are as in `_weight`."""
    if values.shape[0] is not None and values.shape[0] == image.shape[0]:
        return values
    count = tf.shape(values)[0]
    line = f"{name}: expected one for each image of a batch, received"
    with tf.control_dependencies(demand(count == tf.shape(image)[0], line, count)):
        return tf.identity(values)


def _index(index: Any, examples: int) -> tf.Tensor:
    """Return the index as int64 [B], checked to be in [0, examples). Errors are as in `_weight`."""
    index = tf.convert_to_tensor(index)
    received = f"{index.dtype.name} of shape {index.shape}"
    fits = _is_one_each(index) and index.dtype.is_integer
    require(fits, "index", "whole numbers [B], one for each example", received)
    index = tf.reshape(tf.cast(index, tf.int64), [-1])
    inside = tf.reduce_all((index >= 0) & (index < examples))
    line = f"index: expected rows 0 to {examples - 1} (num_examples is {examples}), received"
    with tf.control_dependencies(demand(inside, line, index)):
        return tf.identity(index)


def _is_one_each(values: tf.Tensor) -> bool:
    """Return whether values may be one number for each example, [B] or [B, 1]."""
    shape = values.shape
    return shape.rank in (None, 1) or (shape.rank == 2 and shape[1] == 1)


def _weight(weight: Any) -> tf.Tensor:
    """Return the weights as float32 [B], because [B, 1] would broadcast the losses to [B, B].

    Raises a UserError unless there is one number >= 0 for each example. In a compiled step the
    error is TensorFlow's, with the same line, before any weight of the network moves.
    """
    weight = tf.convert_to_tensor(weight)
    kind, received = weight.dtype, f"{weight.dtype.name} of shape {weight.shape}"
    numeric = kind.is_floating or kind.is_integer or kind.is_bool
    fits = _is_one_each(weight) and numeric
    require(fits, "sample_weight", "numbers [B], one for each example", received)
    weight = tf.reshape(tf.cast(weight, tf.float32), [-1])
    finite = tf.reduce_all((weight >= 0) & (weight < np.inf))  # NaN is neither
    line = "sample_weight: expected finite numbers >= 0, received"
    with tf.control_dependencies(demand(finite, line, weight)):
        return tf.identity(weight)


@contextlib.contextmanager
def weighing(model: keras.Model, class_weight: Any) -> Iterator[None]:
    """Return a context in which a model's training weighs classes by {class: weight}.

    Keras's own `class_weight` takes neither batches that are one dict nor weights of the examples.
    """
    if class_weight is None:
        yield
        return
    model.class_weight = class_weights(class_weight, model.signature.classes)
    model.train_function = None
    try:
        yield
    finally:
        model.class_weight, model.train_function = None, None


def weighed(batch: Batch, class_weights: np.ndarray | None) -> Batch:
    """Return the batch with its weights multiplied by those of the classes, float32 [classes]."""
    if class_weights is None:
        return batch
    weight = tf.gather(class_weights, batch["label"])
    return batch | {"weight": batch.get("weight", 1.0) * weight}


def class_weights(class_weight: Any, classes: int) -> np.ndarray:
    """Return the weight of each class, float32 [classes]; 1 for a class that is not named.

    Raises a UserError for anything but a mapping of classes to weights.
    """
    expected = f"a mapping of classes 0 to {classes - 1} to numbers >= 0, as {{0: 1.0, 1: 2.5}}"
    is_mapping = isinstance(class_weight, Mapping) and bool(class_weight)
    require(is_mapping, "class_weight", expected, class_weight)
    weights = np.ones(classes, np.float32)
    for label, weight in class_weight.items():
        is_class = isinstance(label, numbers.Integral) and 0 <= int(label) < classes
        is_weight = isinstance(weight, numbers.Real) and 0 <= float(weight) < np.inf
        require(is_class and is_weight, "class_weight", expected, {label: weight})
        weights[label] = weight
    return weights
