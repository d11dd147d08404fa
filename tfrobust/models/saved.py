"""A network that somebody trained, from its file, as attacks and evaluations call it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.errors import UserError, choose, require
from tfrobust.gate import in_unit, kind_of_network
from tfrobust.models.files import EXPORTED, load_keras, model_files, saved_model
from tfrobust.models.precision import with_precision
from tfrobust.models.signatures import (
    NAME_OUTPUT,
    ONE_INPUT,
    Shape,
    forward,
    in_front,
    several,
    signature,
    takes,
)
from tfrobust.registry import located

OUTPUTS = ("logits", "probabilities", "sigmoids")
SIGNATURE = "serving_default"
TINY = float(np.finfo(np.float32).tiny)  # the least probability whose logarithm has a gradient
MOST = 1.0 - float(np.finfo(np.float32).epsneg)  # the greatest float32 below 1


@dataclasses.dataclass(frozen=True, eq=False)
class SavedNetwork:
    """Images [B, H, W, C] float32 -> logits [B, classes] float32, as at inference.

    Gradients pass through it, so it serves every attack and every evaluation.

    input_shape: (H, W, C), None where any size will do. outputs: "probabilities" where the network
    ends in a softmax: log(p), with p away from 0, serves as logits; "sigmoids" where in one for
    each class: log(p) - log(1 - p), with p away from 0 and 1. strength, width: the lambda and the
    width that all images get, of a once-for-all network; None for one that takes none. network: the
    Keras network that is called; None of a SavedModel.
    """

    forward: Callable[[Any], tf.Tensor]
    input_shape: Shape
    classes: int
    outputs: str = "logits"
    strength: float | None = None
    width: float | None = None
    network: keras.Model | None = None

    def __call__(self, x: Any) -> tf.Tensor:
        """The logits of images. Raises UserError for those of another shape."""
        x = tf.convert_to_tensor(x, tf.float32)
        if x.shape.rank is not None and None not in x.shape[1:]:
            self.require_images(tuple(x.shape[1:]), "network")
        given = {"strength": self.strength, "width": self.width}
        more = {
            name: tf.fill(tf.shape(x)[:1], tf.constant(value))
            for name, value in given.items()
            if value is not None
        }
        x = {"image": x, **more} if more else x
        values = tf.cast(self.forward(x), tf.float32)
        values = tf.ensure_shape(values, [None, self.classes])
        if self.outputs == "probabilities":
            return tf.math.log(tf.maximum(values, TINY))
        if self.outputs == "sigmoids":
            p = tf.clip_by_value(values, TINY, MOST)
            return tf.math.log(p) - tf.math.log1p(-p)
        return values

    def require_images(self, shape: tuple[int, ...], where: str) -> None:
        """Raise a UserError, which begins with `where`, unless it takes images of a shape."""
        if not takes(self.input_shape, shape):
            hint = in_front(self.input_shape, shape) if len(shape) == 3 else ""
            raise UserError(
                f"{where}: expected a network of images {shape}, received {self.input_shape}{hint}"
            )

    def check(self, images: np.ndarray, where: str) -> None:
        """Raise a UserError unless it takes such images and its outputs on them are what `outputs`
        says. where: the name of the network in errors."""
        self.require_images(images.shape[1:], where)
        plain = dataclasses.replace(self, outputs="logits")
        values = np.asarray(plain(images), np.float64)
        seen = kind_of_network(plain, plain, images, values)
        if seen == "logits" and self.outputs == "sigmoids" and in_unit(values):
            seen = "sigmoids"
        require(
            seen == self.outputs, where, f"a network of {self.outputs} (or outputs: {seen})", seen
        )


def load_network(
    path: str | Path,
    outputs: str = "logits",
    where: str = "path",
    *,
    output: str | None = None,
    signature: str | None = None,
) -> SavedNetwork:
    """The network of a run folder with model.keras, a .keras or .h5 file or a SavedModel folder.

    The other inputs of a once-for-all network, "strength" and "width", are 1. outputs: what the
    network gives, one of OUTPUTS. output: of a network of several, the name of the one that holds
    them. signature: that of a SavedModel that is called, "serving_default" if it has one. where:
    the name of the path in errors. Raises UserError for a file that does not load, and for one that
    takes something else than float images or does not give [B, classes].
    """
    choose("outputs", outputs, OUTPUTS)
    hint, network = "", None
    if (folder := saved_model(path)) is not None:
        call, taken, given, more = _open_saved_model(folder, where, output, signature)
        hint = "; export it again for float images (H, W, C) and a batch of any size, as Keras does"
    else:
        model_files(path, where)
        expected = "none (a Keras file has none, name an output)"
        require(signature is None, "signature", expected, signature)
        network = load_keras(path, where, output=output, code=EXPORTED)
        call, taken, given, more = _open_keras(network, where)
        one, grey = taken.shape[1:], (*taken.shape[1:], 1)
        hint = in_front(tuple(one), grey if len(grey) == 3 else ("H", "W", "C"))
    shape = taken.shape
    if shape.rank != 4 or shape[0] is not None or not taken.dtype.is_floating:
        expected = "a network of float images (None, H, W, C)"
        received = f"{taken.dtype.name} {shape}"
        raise UserError(f"{where}: expected {expected}, received {received!r}{hint}")
    fits = given.shape.rank == 2 and given.shape[1] and given.dtype.is_floating
    received = f"{given.dtype.name} {given.shape}"
    require(fits, where, "a network with a float output (None, classes)", received)
    others = dict.fromkeys(more, 1.0)
    return SavedNetwork(call, tuple(shape[1:]), given.shape[1], outputs, network=network, **others)


def in_precision(logits_fn: Any, precision: str, where: str) -> Any:
    """Return a copy of a Keras network, or of one that was loaded, that computes in `precision`.

    Raises UserError, which begins with `where`, for a network that cannot be copied.
    """
    network = logits_fn.network if isinstance(logits_fn, SavedNetwork) else logits_fn
    expected = "float32 (only of a functional or Sequential Keras network a copy is made)"
    require(isinstance(network, keras.Model), where, expected, precision)
    copy = located(where, with_precision, network, precision)
    if isinstance(logits_fn, SavedNetwork):
        return dataclasses.replace(logits_fn, forward=lambda x: forward(copy, x), network=copy)
    return copy


# (forward, the images that it takes, what it gives, the names of its other inputs)
Opened = tuple[Callable[[Any], tf.Tensor], tf.TensorSpec, tf.TensorSpec, set[str]]


def _open_keras(network: keras.Model, where: str) -> Opened:
    shown = signature(network, where)
    taken = tf.TensorSpec([None, *shown.image_shape])
    given = tf.TensorSpec([None, shown.classes])
    return lambda x: forward(network, x), taken, given, set(shown.inputs) - {"image"}


def open_saved_model(folder: Path) -> Any:
    """tf.saved_model.load without its warning that a gradient's own gradient was not saved, which
    no attack takes: that of BatchNorm and MaxPool, which have one by hand."""
    log = logging.getLogger("absl")

    def told(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "internal_grad_fn" not in said or "unsaved custom gradients" not in said

    log.addFilter(told)
    try:
        return tf.saved_model.load(str(folder))
    finally:
        log.removeFilter(told)


def _open_saved_model(folder: Path, where: str, named: str | None, signature: str | None) -> Opened:
    try:
        loaded = open_saved_model(folder)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: expected a SavedModel, {folder} does not load: {line}") from None
    serve = loaded.signatures[(called := _signature(sorted(loaded.signatures), signature, where))]
    inputs, outputs = serve.structured_input_signature[1], serve.structured_outputs
    image, output = _image(inputs, where), _output(outputs, named, where)

    def forward(x: Any) -> tf.Tensor:
        given = x if isinstance(x, dict) else {image: x}
        given = {name: tf.cast(value, inputs[name].dtype) for name, value in given.items()}
        # By `loaded`: the variables live as long as it does.
        return loaded.signatures[called](**given)[output]

    return forward, inputs[image], outputs[output], set(inputs) - {image}


def _signature(names: list[str], named: str | None, where: str) -> str:
    """The signature that is called."""
    if named is not None:
        return choose(f"{where}: signature", named, names)
    if SIGNATURE in names:
        return SIGNATURE
    hint = "name one by signature (model.signature in a config)"
    if not names:
        hint = "save it with one, as network.export(FOLDER) of Keras does"
    received = ", ".join(names) or "none"
    expected = f"a SavedModel with the signature {SIGNATURE}"
    raise UserError(f"{where}: expected {expected}, received {received}; {hint}")


def _image(inputs: Collection[str], where: str) -> str:
    """The name of the input for images: the only one, or "image" beside others that are known."""
    if {"image", "strength"} <= set(inputs) <= {"image", "strength", "width"}:
        return "image"
    if len(inputs) != 1:
        raise UserError(f"{where}: {several('input', inputs)}; {ONE_INPUT}")
    return next(iter(inputs))


def _output(names: Collection[str], named: str | None, where: str) -> str:
    if named is not None:
        return choose(f"{where}: output", named, names)
    if len(names) != 1:
        raise UserError(f"{where}: {several('output', names)}; {NAME_OUTPUT}")
    return next(iter(names))
