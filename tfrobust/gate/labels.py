"""Checks of labels and of sample weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfrobust.errors import UserError, require
from tfrobust.gate.images import as_array, is_float

# A larger label is likely an identifier, and would need a network of gigabytes.
MOST_CLASSES = 2**16


def check_labels(
    labels: Any, count: int | None = None, classes: int | None = None, where: str = "y"
) -> np.ndarray:
    """Return class numbers as int32 [N].

    Args:
        labels: An array or tensor [N] or [N, 1] of any integer dtype, of bool, or of floats that
            are whole numbers.
        count: The number of images; None for any.
        classes: The number of classes of the network; None for any up to `MOST_CLASSES`.
        where: The name of the labels in errors.

    Raises:
        UserError: If the labels are not fit.
    """
    labels = as_array(labels, where)
    check_label_form(labels, count, where)
    if is_float(labels.dtype):
        labels = labels.reshape(-1).astype(np.float64)
        wrong = labels[~np.isfinite(labels) | (labels != np.rint(labels))]
        if wrong.size:
            raise UserError(f"{where}: expected whole class numbers, received {wrong[0]:g}")
    expected = f"class numbers 0 to {(classes or MOST_CLASSES) - 1}"
    if classes is not None:
        expected += f", as the network has {classes} logits"
    for label in (int(labels.min()), int(labels.max())):
        require(0 <= label < (classes or MOST_CLASSES), where, expected, label)
    return labels.reshape(-1).astype(np.int32)


def check_weights(weights: Any, count: int, where: str = "sample_weight") -> np.ndarray:
    """Return weights as an array [N] or [N, 1].

    Raises a UserError unless they are one number for each of `count` images.
    """
    weights = as_array(weights, where)
    valued = weights.dtype.kind in "iub" or is_float(weights.dtype)
    fits = valued and weights.shape in ((count,), (count, 1))
    received = f"{weights.dtype.name} of shape {weights.shape}"
    require(fits, where, f"one number for each of {count} images", received)
    return weights


def check_label_form(labels: Any, count: int | None, where: str) -> None:
    """Raise a UserError unless shape and dtype are those of labels, with arguments as in
    `check_labels`.

    No value is read, so `labels` may be a stand-in made from the header of a file.
    """
    shape, dtype = tuple(labels.shape), labels.dtype
    one_hot = len(shape) == 2 and shape[1] > 1
    require(not one_hot, where, "class numbers [N] (of one-hot labels, argmax(-1))", shape)
    valued = dtype.kind in "iub" or is_float(dtype)
    require(valued, where, "integer class numbers", dtype.name)
    paired = len(shape) in (1, 2) and shape[0] > 0 and count in (None, shape[0])
    expected = "class numbers [N]" if count is None else f"one label for each of {count} images"
    require(paired, where, expected, shape)
