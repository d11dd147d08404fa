"""What an evaluation is given, checked at the cost of a few passes: a wrong scale, a softmax or
labels of another data set would make any score, and none of them an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrobust.models import SavedNetwork
from tfrobust.models.saved import are_probabilities
from tfrobust.registry import UserError, require
from tfrobust.threat import Threat

LogitsFn = Callable[[Any], Any]
MOST = 500  # images that are looked at
SOME = 10  # images whose outputs tell logits from probabilities
FEWEST = 100  # on fewer, chance alone makes accuracies differ by GAP
GAP = 0.2


class Scaled(NamedTuple):
    """Whether the network is right (bool [n]) on images scaled by a Keras layer."""

    name: str
    layer: str
    right: np.ndarray


def check_inputs(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    batch_size: int = 250,
) -> None:
    """Raise a one-line UserError unless these can be evaluated: float32 images [N, H, W, C] in the
    threat's box, class numbers [N], eps > 0, and a network that takes such images and gives logits.

    A network that is wrong on most of the images, and right on many more of them once they are
    scaled in one of the usual ways, is refused: its scaling belongs inside it. Costs one pass of a
    single image and one of up to 500 images; three more of these where most are wrong.
    """
    require(batch_size >= 1, "batch_size", "int >= 1", batch_size)
    _check_arrays(x, y, threat)
    _check_one(logits_fn, x[:1])
    few, labels = x[:MOST], y[:MOST]
    logits = outputs(logits_fn, few, batch_size)
    classes = logits.shape[1]
    expected = f"class numbers 0 to {classes - 1}, as the network has {classes} logits"
    require(y.max() < classes, "y", expected, int(y.max()))
    if isinstance(logits_fn, SavedNetwork) and logits_fn.outputs == "probabilities":
        logits_fn.check(x[:SOME], "model.outputs")
    if are_probabilities(logits):
        raise UserError(
            "logits_fn: expected logits, received probabilities; attacks need logits: remove the "
            "softmax, or set model.outputs=probabilities"
        )
    here = right(logits, labels).mean()
    if here < 0.5 and len(few) >= FEWEST:
        best = best_scaled(logits_fn, few, labels, threat.box, batch_size)
        if best.right.mean() > here + GAP:
            raise UserError(
                f"logits_fn: expected a network of images in [{threat.box[0]:g}, "
                f"{threat.box[1]:g}], received one that is right on {here:.0%} of them and on "
                f"{best.right.mean():.0%} of the same images {best.name}; put this scaling inside "
                f"the network: keras.layers.{best.layer}"
            )


def _check_arrays(x: np.ndarray, y: np.ndarray, threat: Threat) -> None:
    low, high = threat.box
    require(threat.eps > 0, "threat.eps", "a number > 0", threat.eps)
    require(x.dtype == np.float32, "x", "float32 images", x.dtype.name)
    require(x.ndim == 4, "x", "images [N, H, W, C]", f"shape {x.shape}")
    require(len(x), "x", "at least one image", "none")
    least, most = float(x.min()), float(x.max())  # either is NaN if any value is
    require(np.isfinite(least + most), "x", "finite images", (least, most))
    require(low <= least and most <= high, "x", f"images in [{low:g}, {high:g}]", (least, most))
    one_hot = y.ndim == 2 and y.shape[1] > 1
    hint = " (of one-hot labels, argmax(-1))" if one_hot else ""
    require(y.shape == x.shape[:1], "y", f"{len(x)} class numbers [N]{hint}", f"shape {y.shape}")
    require(y.dtype.kind in "iu", "y", "integer class numbers", y.dtype.name)
    require(y.min() >= 0, "y", "class numbers from 0", int(y.min()))


def _check_one(logits_fn: LogitsFn, x: np.ndarray) -> None:
    try:
        logits = logits_fn(tf.constant(x))
    except tf.errors.ResourceExhaustedError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"x: expected images that the network takes, received shape {x.shape}: {line}"
        ) from error
    shape = tuple(getattr(logits, "shape", ()))
    fits = tf.is_tensor(logits) and len(shape) == 2 and shape[0] == 1 and shape[1] >= 2
    received = f"{type(logits).__name__} of shape {shape}"
    expected = f"a TensorFlow function, a tensor of logits [1, C] for images {x.shape}"
    require(fits, "logits_fn", expected, received)


def best_scaled(
    logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray, box: tuple[float, float], batch_size: int
) -> Scaled:
    """The usual scaling, other than the box, of images [n, H, W, C] on which the network is right
    most often."""
    tried = [
        Scaled(name, layer, right(outputs(logits_fn, images, batch_size), y))
        for name, layer, images in _scalings(x, box)
    ]
    return max(tried, key=lambda scaled: scaled.right.sum())


def right(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool [n]: the label is the argmax; logits [n, C] that are not finite count as wrong."""
    return (logits.argmax(axis=1) == y) & np.isfinite(logits).all(axis=1)


def _scalings(x: np.ndarray, box: tuple[float, float]) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, the layer that does it, images) of the usual scalings, other than the box itself."""
    low, high = box
    for to in ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)):
        if to != (low, high):
            scale = (to[1] - to[0]) / (high - low)
            offset = to[0] - scale * low
            layer = f"Rescaling({scale:g}, offset={offset:g})"
            yield f"in [{to[0]:g}, {to[1]:g}]", layer, (scale * x + offset).astype(np.float32)
    mean, std = (f(x, axis=(0, 1, 2), dtype=np.float64) for f in (np.mean, np.std))
    standard = (x - mean) / np.maximum(std, 1e-6)
    layer = "Normalization with the training images' mean and variance"
    yield "standardised", layer, standard.astype(np.float32)


def outputs(logits_fn: LogitsFn, x: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits [n, C] of passes that are not compiled."""
    batches = (x[i : i + batch_size] for i in range(0, len(x), batch_size))
    parts = [np.asarray(logits_fn(tf.constant(batch)), np.float64) for batch in batches]
    return np.concatenate(parts)
