"""Whether a network is fit to use: logits of the labels' classes, of images in the box."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfrobust import losses
from tfrobust.errors import UserError, require
from tfrobust.gate.images import Box
from tfrobust.gate.logit_advice import advice, ending

LogitsFn = Callable[[Any], Any]

MOST = 500  # images that are looked at
SOME = 10  # images whose outputs tell logits from probabilities
FEWEST = 100  # on fewer, chance alone makes accuracies differ by GAP
GAP = 0.2
SUM = 0.01  # a softmax of bfloat16 is off 1 by 0.003
END = 0.01  # from 1, where a sigmoid saturates; a tenth of it from 0
FAR = (1e2, 1e4)  # sizes of probes, in units of the box, where a logit is far from [0, 1]
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of Keras's messages


class Scaled(NamedTuple):
    """Whether the network is right (bool [n]) on images scaled by a Keras layer."""

    name: str
    layer: str
    right: np.ndarray


def inference(logits_fn: LogitsFn) -> LogitsFn:
    """Return the callable in inference mode: with training=False where it takes `training`, as
    every Keras network does; of that its one output, whatever container it comes in. One to which
    `training` is bound already stays as it is."""
    function: Any = logits_fn
    if isinstance(function, partial) and "training" in function.keywords:
        return function
    if isinstance(function, keras.Layer):
        return lambda images: _one(function(images, training=False))
    return partial(function, training=False) if _takes_training(function) else function


def _one(outputs: Any) -> Any:
    """The one output of a Keras network; of several the container, which is refused as it is."""
    flat = keras.tree.flatten(outputs)
    return flat[0] if len(flat) == 1 else outputs


def _takes_training(function: Any) -> bool:
    try:
        return "training" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # one that does not tell its parameters
        return False


def check_network(
    logits_fn: LogitsFn, images: np.ndarray, box: Box = (0.0, 1.0), batch_size: int = 250
) -> np.ndarray:
    """Return the logits [n, C] of the first images, up to 500, of a network fit to be evaluated.

    Args:
        logits_fn: images [B, H, W, C] -> logits [B, C].
        images: float32 [N, H, W, C] in the box.

    Raises:
        UserError: one line, for one that does not take the images, gives no tensor [B, C >= 2] of
            logits, or none that is finite. Warns where some logits are not finite.
    """
    run = inference(logits_fn)
    _check_pass("logits_fn", run, images[:1])
    if getattr(logits_fn, "outputs", "logits") in ("probabilities", "sigmoids"):  # as a file says
        logits_fn.check(images[:SOME], "model.outputs")  # type: ignore[attr-defined]
    few = images[:MOST]
    logits = outputs(run, few, batch_size)
    _check_outputs("logits_fn", logits_fn, run, few, logits, box)
    return logits


def check_scaling(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    box: Box = (0.0, 1.0),
    batch_size: int = 250,
) -> None:
    """Raise a UserError for a network that is wrong on most of the images, and right on many more
    of them once they are scaled in one of the usual ways: its scaling belongs inside it.

    logits: [n, C] of the first images.
    """
    few, truth = images[: len(logits)], labels[: len(logits)]
    here = right(logits, truth).mean()
    if here >= 0.5 or len(few) < FEWEST:
        return
    best = best_scaled(logits_fn, few, truth, box, batch_size)
    if best.right.mean() > here + GAP:
        raise UserError(
            f"logits_fn: expected a network of images in [{box[0]:g}, {box[1]:g}], received one "
            f"that is right on {here:.0%} of them and on {best.right.mean():.0%} of the same "
            f"images {best.name}; put this scaling inside the network: keras.layers.{best.layer}"
        )


def check_trained(
    network: keras.Model,
    logits_fn: LogitsFn,
    images: np.ndarray,
    box: Box = (0.0, 1.0),
    where: str = "network",
) -> None:
    """Raise a UserError for a network that cannot be trained: of probabilities, of one output, or
    of none that is finite.

    logits_fn: images [B, H, W, C] -> what the network gives, in inference mode. images: some, or
    noise in the box. where: the name of the network in errors.
    """
    few = images[:SOME]
    _check_pass(where, logits_fn, few[:1])
    _check_outputs(where, network, logits_fn, few, outputs(logits_fn, few, len(few)), box)


def kind_of_outputs(values: np.ndarray) -> str:
    """Return what finite outputs [n, C] are: "probabilities", rows of numbers >= 0 with sum 1 in
    the precision of half floats; "sigmoids", numbers in [0, 1] of which some are all but at an end,
    as those of saturated sigmoids; else "logits"."""
    if not in_unit(values):
        return "logits"
    if values.shape[1] > 1 and np.abs(values.sum(axis=1) - 1).max() < SUM:
        return "probabilities"
    saturated = (values > 1 - END) | ((values > 0) & (values < END / 10))  # 0 is a ReLU's too
    return "sigmoids" if values.max() <= 1 and saturated.any() else "logits"


def in_unit(values: np.ndarray) -> bool:
    """Return whether outputs [n, C] are all in [0, 1], up to rounding."""
    return bool(len(values) and values.min() >= 0 and values.max() <= 1 + SUM)


def _check_pass(name: str, logits_fn: LogitsFn, image: np.ndarray) -> None:
    """Raise a UserError unless one image [1, H, W, C] gives a tensor [1, C]."""
    try:
        logits = logits_fn(tf.constant(image))
    except (tf.errors.ResourceExhaustedError, UserError):
        raise
    except Exception as error:
        line = " ".join(COLOURS.sub("", str(error)).split())[:200]
        raise UserError(
            f"x: expected images that the network takes, received shape {image.shape}: {line}"
        ) from error
    shape = tuple(getattr(logits, "shape", ()))
    fits = tf.is_tensor(logits) and len(shape) == 2 and shape[0] == 1 and shape[1] >= 1
    received = f"{type(logits).__name__} of shape {shape}"
    expected = f"a TensorFlow function, a tensor of logits [1, C] for images {image.shape}"
    if isinstance(logits, Mapping | list | tuple) and logits:
        key = next(iter(logits)) if isinstance(logits, Mapping) else 0
        expected += f" (of several, as lambda x: network(x)[{key!r}])"
    require(fits, name, expected, received)


def _check_outputs(
    name: str, network: Any, run: LogitsFn, images: np.ndarray, values: np.ndarray, box: Box
) -> None:
    """Raise a UserError unless the outputs [n, C] of images are finite logits of two classes or
    more; warn where some are not finite."""
    finite = np.isfinite(values).all(axis=1)
    count, total = int((~finite).sum()), len(values)
    if count == total:
        received = f"NaN or infinite ones for all of {total} images"
        raise UserError(f"{name}: expected finite logits, received {received}")
    if count:
        line = "%s: NaN or infinite logits for %d of %d images, which count as wrong"
        logging.warning(line, name, count, total)
    kind = kind_of_network(network, run, images, values[finite], box)
    if values.shape[1] == 1:
        one, two = "one logit z", "tf.concat([tf.zeros_like(z), z], 1)"
        if kind != "logits":
            one, two = "one sigmoid p", "tf.math.log(tf.concat([1 - p, p], 1))"
        raise UserError(
            f"{name}: expected at least two logits, received {one}; the two of classes 0 and 1 are "
            f"{two}, or train a network that ends in Dense(2)"
        )
    if kind == "logits":
        return
    way, what = advice(network), "probabilities"
    if kind == "sigmoids":
        what = "probabilities, a sigmoid for each class"
    if isinstance(getattr(network, "outputs", None), str):  # a SavedNetwork
        way = f"read the file with outputs={kind}, in a config model.outputs"
    raise UserError(f"{name}: expected logits, received {what}; attacks need logits: {way}")


def kind_of_network(
    network: Any, run: LogitsFn, images: np.ndarray, values: np.ndarray, box: Box = (0.0, 1.0)
) -> str:
    """Return the kind of a network's finite outputs [n, C]. The last layer of a Keras network tells
    it; of others the outputs do, if all are in [0, 1], with those of images so far outside the box
    that the logits of any network leave it."""
    if (end := ending(network)) is not None:
        return end.gives
    if not in_unit(values):
        return "logits"
    return kind_of_outputs(np.concatenate([values, *_far_outputs(run, images[:SOME], box)]))


def _far_outputs(run: LogitsFn, images: np.ndarray, box: Box) -> Iterator[np.ndarray]:
    """Yield finite outputs [m, C] of noise, plain and real images, of both signs, far outside the
    box; none where the network takes no such images."""
    noise = np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
    for scale in FAR:
        for probes in (noise, np.ones_like(images[:1]), images):
            for sign in (1.0, -1.0):
                far = np.float32(sign * scale * (box[1] - box[0])) * probes
                try:
                    values = outputs(run, far, len(far))
                except Exception:  # of the network's own checks, of any kind
                    continue
                yield values[np.isfinite(values).all(axis=1)]


def best_scaled(
    logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray, box: Box, batch_size: int
) -> Scaled:
    """Return the usual scaling, other than the box, of images [n, H, W, C] on which the network is
    right most often."""
    tried = [
        Scaled(name, layer, right(outputs(logits_fn, images, batch_size), y))
        for name, layer, images in _scalings(x, box)
    ]
    return max(tried, key=lambda scaled: scaled.right.sum())


def right(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where logits [n, C] are right, bool [n]."""
    return losses.correct(tf.constant(logits), tf.constant(y)).numpy()


def _scalings(x: np.ndarray, box: Box) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (name, the layer that does it, images) of the usual scalings, other than the box."""
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
    """Return logits [n, C] of passes in inference mode that are not compiled."""
    run = inference(logits_fn)
    batches = (x[i : i + batch_size] for i in range(0, len(x), batch_size))
    parts = [np.asarray(run(tf.constant(batch)), np.float64) for batch in batches]
    return np.concatenate(parts)
