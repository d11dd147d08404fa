"""The scale of the images that a network seems to expect."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfrobust.errors import UserError
from tfrobust.gate.images import Box
from tfrobust.gate.networks import LogitsFn, outputs, right

FEWEST = 100  # images by which a network is judged; with fewer, accuracies differ by GAP by chance
GAP = 0.2
FAINT = 0.05  # a difference of black and white that no network is made for
# Layers that leave the values of pixels alone.
KEPT = (
    keras.layers.InputLayer,
    keras.layers.Identity,
    keras.layers.Resizing,
    keras.layers.CenterCrop,
    keras.layers.ZeroPadding2D,
    keras.layers.Permute,
)


class Scaled(NamedTuple):
    """Which images are classified correctly after a scaling.

    Attributes:
        name: The scaling in words.
        layer: The Keras layer that does it, as Python.
        right: Whether each image is classified correctly, bool [n].
    """

    name: str
    layer: str
    right: np.ndarray


def check_scaling(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    box: Box = (0.0, 1.0),
    batch_size: int = 250,
) -> None:
    """Raise a UserError if the network seems to expect images of another scale.

    That is, if it misclassifies most images, but far fewer of them after one of the usual
    scalings. Such a scaling belongs inside the network.

    Args:
        logits_fn: Function from images [B, H, W, C] to logits [B, C].
        images: Images in the box, float32 [N, H, W, C].
        labels: Class numbers, int [N].
        logits: The logits of the images, [N, C].
        box: The range of valid pixels.
        batch_size: Number of images in one forward pass.
    """
    now = right(logits, labels)
    best = other_scaling(logits_fn, images, labels, now, box, batch_size)
    if best is not None:
        raise UserError(
            f"logits_fn: expected a network of images in [{box[0]:g}, {box[1]:g}], received one "
            f"that is right on {now.mean():.0%} of them and on {best.right.mean():.0%} of the same "
            f"images {best.name}; put this scaling inside the network: keras.layers.{best.layer}"
        )


def other_scaling(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    now: np.ndarray,
    box: Box,
    batch_size: int,
) -> Scaled | None:
    """Return the scaling of the images that a network seems to expect; None for that of the box.

    Args:
        logits_fn: Function from images [B, H, W, C] to logits [B, C].
        x: Images in the box, float32 [n, H, W, C].
        y: Class numbers, int [n].
        now: Whether each image is classified correctly without a scaling, bool [n].
        box: The range of valid pixels.
        batch_size: Number of images in one forward pass.
    """
    if len(x) < FEWEST or now.mean() >= 0.5:
        return None
    best = best_scaled(logits_fn, x, y, box, batch_size)
    if best.right.mean() <= now.mean() + GAP:
        return None
    # A network that always returns one class is right on many images if most are of that class.
    return best if _balanced(best.right, y) > _balanced(now, y) + GAP else None


def _balanced(correct: np.ndarray, y: np.ndarray) -> float:
    """Return the mean over the classes of their accuracies."""
    return float(np.mean([correct[y == label].mean() for label in np.unique(y)]))


def warn_of_scale(
    network: keras.Model,
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray | None,
    box: Box,
    where: str,
) -> None:
    """Log a warning if a network that is to be trained seems to expect images of another scale.

    A network that was trained may be right on far more images of that scale. One that was not
    may begin with a layer that scales them.

    Args:
        network: The network.
        logits_fn: Function from images [B, H, W, C] to its logits in inference mode.
        images: Images in the box, float32 [N, H, W, C].
        labels: Class numbers, int [N]; None if they are not known.
        box: The range of valid pixels.
        where: The name of the network in the warning.
    """
    low, high = box
    layer = _first_scaling(network)
    if layer is not None and _contrast(layer, images.shape[1:], box) < FAINT:
        logging.warning(
            "%s: made for images in [0, 255], as its layer %s says; with the box [%g, %g] it sees "
            "hardly any contrast: remove the layer, or put keras.layers.Rescaling(255) in front of "
            "the network", where, layer.name, low, high,
        )  # fmt: skip
        return
    if labels is None or len(images) < FEWEST:
        return
    chosen = np.linspace(0, len(images) - 1, FEWEST).astype(int)
    few, truth = images[chosen], labels[chosen]
    now = right(outputs(logits_fn, few, FEWEST), truth)
    best = other_scaling(logits_fn, few, truth, now, box, FEWEST)
    # A new network may by chance be right on most images if they are of a few classes.
    if best is not None and best.right.mean() >= (0.9 if len(np.unique(truth)) < 5 else 0.6):
        logging.warning(
            "%s: right on %.0f%% of %d images in [%g, %g], and on %.0f%% of the same images %s; if "
            "it was trained on these, put keras.layers.%s in front of it", where,
            100 * now.mean(), FEWEST, low, high, 100 * best.right.mean(), best.name, best.layer,
        )  # fmt: skip


def _contrast(layer: keras.Layer, shape: Sequence[int], box: Box) -> float:
    """Return the largest difference that a layer makes of black and white images of a shape.

    It is infinite if the layer does not take these, as a layer before it changes their shape.
    """
    ends = np.stack([np.full(shape, value, np.float32) for value in box])
    try:
        black, white = np.asarray(layer(tf.constant(ends)))
    except Exception:
        return math.inf
    return float(np.abs(white - black).max())


def _first_scaling(network: keras.Model) -> Any:
    """Return the layer by which a network scales its images first; None if there is none.

    Layers that leave the values of pixels alone may come before.
    """
    if isinstance(getattr(network, "outputs", None), list):
        for layer in network.layers:
            if isinstance(layer, keras.Model):
                return _first_scaling(layer)
            if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
                return layer
            if not (isinstance(layer, KEPT) or type(layer).__name__.startswith("Random")):
                return None
    return None


def best_scaled(
    logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray, box: Box, batch_size: int
) -> Scaled:
    """Return the usual scaling with which the network classifies most images correctly.

    Images that the network does not take count as wrong. The arguments are those of
    `other_scaling`.
    """
    results = []
    for name, layer, images in _scalings(x, box):
        correct = np.zeros(len(x), bool)
        with contextlib.suppress(Exception):  # the network itself may check its images
            correct = right(outputs(logits_fn, images, batch_size), y)
        results.append(Scaled(name, layer, correct))
    return max(results, key=lambda scaled: scaled.right.sum())


def _scalings(x: np.ndarray, box: Box) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, Keras layer and scaled images of each usual scaling other than the box."""
    low, high = box
    for to in ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)):
        if to != (low, high):
            scale = (to[1] - to[0]) / (high - low)
            offset = to[0] - scale * low
            layer = f"Rescaling({scale:g}, offset={offset:g})"
            yield f"in [{to[0]:g}, {to[1]:g}]", layer, (scale * x + offset).astype(np.float32)
    axes = tuple(range(x.ndim - 1))
    mean = np.mean(x, axis=axes, dtype=np.float64)
    std = np.std(x, axis=axes, dtype=np.float64)
    standard = (x - mean) / np.maximum(std, 1e-6)
    layer = "Normalization with the training images' mean and variance"
    yield "standardised", layer, standard.astype(np.float32)
