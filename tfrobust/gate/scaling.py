"""The scale of the images that a network seems to expect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tfrobust.errors import UserError
from tfrobust.gate.images import Box
from tfrobust.gate.networks import LogitsFn, outputs, right

FEWEST = 100  # with fewer images, accuracies may differ by GAP by chance
GAP = 0.2


class Scaled(NamedTuple):
    """Which images are classified correctly after a scaling.

    name: the scaling in words. layer: the Keras layer that does it. right: bool [n].
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
        logits: Logits [n, C] of the first n images.
        box: The range of valid pixels.
        batch_size: Number of images in one forward pass.
    """
    few, truth = images[: len(logits)], labels[: len(logits)]
    now = right(logits, truth)
    best = other_scaling(logits_fn, few, truth, now, box, batch_size)
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

    x: images [n, H, W, C] in the box. y: labels, int [n]. now: which are classified correctly, bool
    [n]. The other arguments are those of `check_scaling`.
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


def best_scaled(
    logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray, box: Box, batch_size: int
) -> Scaled:
    """Return the usual scaling with which the network classifies most images correctly.

    x: images [n, H, W, C] in the box. y: labels, int [n]. Images that the network does not take
    count as wrong.
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
