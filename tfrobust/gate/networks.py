"""Checks that a network takes images in the box and returns logits of the labels' classes."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfrobust import losses
from tfrobust._compat import in_inference_mode, untraced
from tfrobust.errors import UserError, require
from tfrobust.gate.images import Box
from tfrobust.gate.logit_advice import advice, ending

LogitsFn = Callable[[Any], Any]

MOST = 500  # images used by the checks
SOME = 10  # images used to tell logits from probabilities
SUM = 0.01  # largest distance of a sum of probabilities from 1; in bfloat16 it is 0.003
END = 0.01  # a sigmoid this close to 1, or within a tenth of it to 0, is saturated
FAR = (1e2, 1e4)  # sizes of probes, in units of the box, for which logits are far from [0, 1]
FLOATS = (
    "gradients do not pass through integers: network.save_weights('of.weights.h5'); "
    "inner = keras.models.clone_model(network, input_tensors=keras.Input({0})); "
    "inner.load_weights('of.weights.h5'); "
    "x = keras.Input({0}); network = keras.Model(x, inner(255 * x)) takes images in [0, 1]"
)
FROM_FILE = "tfrobust.load_network(PATH) makes one of a file or of an exported folder"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # terminal colours in messages of Keras


def inference(logits_fn: LogitsFn) -> LogitsFn:
    """Return the callable in inference mode, with training=False if it takes `training`.

    Keras layers that a function calls are in inference mode too, unless it gives them `training`.
    The single output of a Keras network is returned without its container. A partial that already
    binds `training` is returned unchanged.
    """
    function: Any = logits_fn
    if isinstance(function, partial) and "training" in function.keywords:
        return function
    if isinstance(function, keras.Layer):
        return lambda images: _one(function(images, training=False))
    if _takes_training(function):
        return partial(function, training=False)
    function = untraced(function)

    def run(images: Any) -> Any:
        with in_inference_mode():
            return function(images)

    return run


def _one(outputs: Any) -> Any:
    """Return the single output of a Keras network. Several outputs are returned unchanged, to be
    refused later."""
    flat = keras.tree.flatten(outputs)
    return flat[0] if len(flat) == 1 else outputs


def _takes_training(function: Any) -> bool:
    # An object of tf.saved_model.load has the signature in its own __call__, not in its class.
    for called in (function, function.__call__):
        with contextlib.suppress(TypeError, ValueError):  # a callable without a signature
            if "training" in inspect.signature(called).parameters:
                return True
    return False


def check_network(
    logits_fn: LogitsFn, images: np.ndarray, box: Box = (0.0, 1.0), batch_size: int = 250
) -> np.ndarray:
    """Check that a network is fit for an evaluation, and return logits of its first images.

    Logs a warning if some logits are not finite.

    Args:
        logits_fn: Function from images [B, H, W, C] to logits [B, C].
        images: Images in the box, float32 [N, H, W, C].
        box: The range of valid pixels.
        batch_size: Number of images in one forward pass.

    Returns:
        Logits [n, C] of the first n images, with n up to 500.

    Raises:
        UserError: If the network does not take the images, does not return a tensor of logits
            [B, C] with C >= 2, or returns no finite logits.
    """
    expected = f"a Keras network or another function of images ({FROM_FILE})"
    require(callable(logits_fn), "logits_fn", expected, logits_fn)
    run = inference(logits_fn)
    inputs = getattr(logits_fn, "inputs", None)  # of a Keras network that is a graph
    if isinstance(logits_fn, keras.Model) and isinstance(inputs, list) and len(inputs) == 1:
        check_float_input("logits_fn", inputs[0].dtype, tuple(inputs[0].shape[1:]))
    _check_pass("logits_fn", run, images[:1])
    # A SavedNetwork has the kind of its outputs as `outputs`, a Keras network a list of tensors.
    if getattr(logits_fn, "outputs", "logits") in ("probabilities", "sigmoids"):
        logits_fn.check(images[:SOME], "model.outputs")  # type: ignore[attr-defined]
    few = images[:MOST]
    with _taken(f"batch_size: expected batches that the network takes, received {batch_size}"):
        logits = outputs(run, few, batch_size)
    _check_outputs("logits_fn", logits_fn, run, few, logits, box)
    return logits


def check_float_input(where: str, dtype: Any, shape: tuple[int | None, ...]) -> None:
    """Raise a UserError unless the images of a network, of this dtype and shape, are floats."""
    if not tf.as_dtype(dtype).is_floating:
        expected, hint = "a network of float images", FLOATS.format(shape)
        raise UserError(f"{where}: expected {expected}, received {dtype}; {hint}")


def check_trained(
    network: keras.Model,
    logits_fn: LogitsFn,
    images: np.ndarray,
    box: Box = (0.0, 1.0),
    where: str = "network",
) -> None:
    """Raise a UserError if a network cannot be trained, as its outputs are probabilities, not
    finite, or only one.

    Args:
        network: The network.
        logits_fn: Function from images [B, H, W, C] to its outputs in inference mode.
        images: A few images, or noise in the box.
        box: The range of valid pixels.
        where: The name of the network in errors.
    """
    few = images[:SOME]
    _check_pass(where, logits_fn, few[:1])
    _check_outputs(where, network, logits_fn, few, outputs(logits_fn, few, len(few)), box)


def reaches_images(logits_fn: LogitsFn, image: np.ndarray) -> bool:
    """Return whether a gradient of the outputs for one image [1, H, W, C] reaches the image.

    It does not through a rounding or a conversion to integers. A gradient of 0 does reach it.
    """
    x = tf.constant(image)
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = logits_fn(x)
    try:
        return tape.gradient(values, x) is not None
    except LookupError:  # an operation without a gradient
        return False


def kind_of_outputs(values: np.ndarray) -> str:
    """Return the kind of finite outputs [n, C].

    It is "probabilities" for rows of numbers >= 0 that sum to 1 up to the precision of half floats,
    "sigmoids" for numbers in [0, 1] of which some are almost at an end, as saturated sigmoids are,
    and otherwise "logits".
    """
    if not in_unit(values):
        return "logits"
    if values.shape[1] > 1 and np.abs(values.sum(axis=1) - 1).max() < SUM:
        return "probabilities"
    # An output of 0 is no sign of a sigmoid, as it may come from a ReLU.
    saturated = (values > 1 - END) | ((values > 0) & (values < END / 10))
    return "sigmoids" if values.max() <= 1 and saturated.any() else "logits"


def in_unit(values: np.ndarray) -> bool:
    """Return whether outputs [n, C] are all in [0, 1], up to rounding."""
    return bool(len(values) and values.min() >= 0 and values.max() <= 1 + SUM)


def _check_pass(name: str, logits_fn: LogitsFn, image: np.ndarray) -> None:
    """Raise a UserError unless one image [1, H, W, C] gives a tensor [1, C]."""
    with _taken(f"x: expected images that the network takes, received shape {image.shape}"):
        logits = logits_fn(tf.constant(image))
    shape = tuple(getattr(logits, "shape", ()))
    fits = tf.is_tensor(logits) and len(shape) == 2 and shape[0] == 1 and shape[1] >= 1
    received = f"{type(logits).__name__} of shape {shape}"
    expected = f"a TensorFlow function, a tensor of logits [1, C] for images {image.shape}"
    if isinstance(logits, Mapping | list | tuple) and logits:
        key = next(iter(logits)) if isinstance(logits, Mapping) else 0
        expected += f" (of several, as lambda x: network(x)[{key!r}])"
    require(fits, name, expected, received)


@contextlib.contextmanager
def _taken(line: str) -> Iterator[None]:
    """Return a context in which an error of a network is a UserError that begins with `line`."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, UserError):
        raise
    except Exception as error:
        reason = " ".join(COLOURS.sub("", str(error)).split())[:200]
        raise UserError(f"{line}: {reason}") from error


def _check_outputs(
    name: str, network: Any, run: LogitsFn, images: np.ndarray, values: np.ndarray, box: Box
) -> None:
    """Raise a UserError unless the outputs [n, C] are logits of at least two classes, some of them
    finite; log a warning if others are not."""
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
    """Return the kind of the outputs of a network, as in `kind_of_outputs`.

    It is determined by the last layer of a Keras network. For other networks whose outputs are all
    in [0, 1], it is determined by these and by outputs for images far outside the box, for which
    the logits of any network leave [0, 1].

    Args:
        network: The network.
        run: Function from images to its outputs, in inference mode.
        images: Images in the box, float32 [n, H, W, C].
        values: Finite outputs [n, C] for the images.
        box: The range of valid pixels.
    """
    end = ending(network)
    if end is not None:
        return end.gives
    if not in_unit(values):
        return "logits"
    return kind_of_outputs(np.concatenate([values, *_far_outputs(run, images[:SOME], box)]))


def _far_outputs(run: LogitsFn, images: np.ndarray, box: Box) -> Iterator[np.ndarray]:
    """Yield finite outputs [m, C] for images far outside the box: for noise, for plain images and
    for the real ones, of both signs. Those that the network does not take are left out."""
    noise = np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
    for scale in FAR:
        for probes in (noise, np.ones_like(images[:1]), images):
            for sign in (1.0, -1.0):
                far = np.float32(sign * scale * (box[1] - box[0])) * probes
                try:
                    values = outputs(run, far, len(far))
                except Exception:  # a check inside the network may raise anything
                    continue
                yield values[np.isfinite(values).all(axis=1)]


def right(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which logits [n, C] classify correctly, bool [n]."""
    return losses.correct(tf.constant(logits), tf.constant(y)).numpy()


def outputs(logits_fn: LogitsFn, x: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the outputs [n, C] of forward passes in inference mode that are not compiled."""
    run = inference(logits_fn)
    batches = (x[i : i + batch_size] for i in range(0, len(x), batch_size))
    parts = [np.asarray(run(tf.constant(batch)), np.float64) for batch in batches]
    return np.concatenate(parts)
