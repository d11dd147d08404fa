"""The network of a file, in the form that attacks and evaluations call."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.errors import UserError, choose, one_line, path_text, require
from tfrobust.gate import RANKS, in_unit, kind_of_network
from tfrobust.io import literal
from tfrobust.models.files import (
    EXPORTED,
    load_keras,
    model_files,
    runtime_file,
    saved_model,
)
from tfrobust.models.precision import with_precision
from tfrobust.models.runtimes import RUNTIMES, open_runtime, outside_tensorflow
from tfrobust.models.signatures import (
    NAME_OUTPUT,
    ONE_INPUT,
    Shape,
    forward,
    in_front,
    is_symbolic,
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
    """A function from images [B, H, W, C] to logits [B, classes], float32, in inference mode.

    Series [B, T, C] and tables [B, F] take the place of images if the network takes these.

    Gradients pass through it, so every attack and every evaluation can use it, unless another
    runtime than TensorFlow computes it.

    Attributes:
        forward: The network itself, from images to its outputs.
        input_shape: (H, W, C), with None for a size that is free.
        classes: The number of classes.
        outputs: The kind of the network's outputs. "logits" are taken as they are. "probabilities"
            are those of a softmax, and the logits are log(p), with p at least the least normal
            float32. "sigmoids" are those of one sigmoid for each class, and the logits are
            log(p) - log(1 - p), with p also at most the greatest float32 below 1.
        strength: The lambda of all images, for a once-for-all network; None for others.
        width: The width of all images, for a once-for-all network with widths; None for others.
        network: The Keras network that is called; None for a SavedModel.
        runtime: The runtime outside TensorFlow that computes the network, such as "LiteRT", through
            which no gradients pass; None for TensorFlow.
    """

    forward: Callable[[Any], tf.Tensor]
    input_shape: Shape
    classes: int
    outputs: str = "logits"
    strength: float | None = None
    width: float | None = None
    network: keras.Model | None = None
    runtime: str | None = None

    def __call__(self, x: Any) -> tf.Tensor:
        """Return the logits of images. Raises UserError for images of another shape."""
        x = tf.convert_to_tensor(x, tf.float32)
        if x.shape.rank is not None and None not in x.shape[1:]:
            self.require_images(tuple(x.shape[1:]), "network")
        inputs: dict[str, tf.Tensor] = {}
        for name, value in (("strength", self.strength), ("width", self.width)):
            if value is not None:
                inputs[name] = tf.fill(tf.shape(x)[:1], tf.constant(value))
        values = self.forward({"image": x, **inputs} if inputs else x)
        values = tf.cast(values, tf.float32)
        values = tf.ensure_shape(values, [None, self.classes])
        if self.outputs == "probabilities":
            return tf.math.log(tf.maximum(values, TINY))
        if self.outputs == "sigmoids":
            p = tf.clip_by_value(values, TINY, MOST)
            return tf.math.log(p) - tf.math.log1p(-p)
        return values

    def require_images(self, shape: tuple[int, ...], where: str) -> None:
        """Raise a UserError, which begins with `where`, unless images of `shape` are taken."""
        if not takes(self.input_shape, shape):
            hint = in_front(self.input_shape, shape, self.runtime)
            received = f"{self.input_shape}{hint}"
            raise UserError(f"{where}: expected a network of images {shape}, received {received}")

    def check(self, images: np.ndarray, where: str) -> None:
        """Raise a UserError unless the network takes such images and returns its `outputs`.

        Args:
            images: Images [N, H, W, C] in [0, 1].
            where: The name of the network in errors.
        """
        self.require_images(images.shape[1:], where)
        raw = dataclasses.replace(self, outputs="logits")
        values = np.asarray(raw(images), np.float64)
        kind = kind_of_network(raw, raw, images, values)
        if kind == "logits" and self.outputs == "sigmoids" and in_unit(values):
            kind = "sigmoids"
        expected = f"a network of {self.outputs} (or outputs: {kind})"
        require(kind == self.outputs, where, expected, kind)


def load_network(
    path: str | Path,
    outputs: str = "logits",
    where: str = "path",
    *,
    output: str | None = None,
    signature: str | None = None,
) -> SavedNetwork:
    """Load the network of a file, for attacks and evaluations.

    A once-for-all network gets 1 for its other inputs, "strength" and "width".

    Args:
        path: A run folder with model.keras, a .keras or .h5 file, a SavedModel folder, or a .onnx
            or .tflite file, which ONNX Runtime or LiteRT computes.
        outputs: The kind of the network's outputs, one of OUTPUTS; see `SavedNetwork`.
        where: The name of the path in errors.
        output: The name of the output that is used, for a network with several.
        signature: The name of the SavedModel's signature that is called, by default
            "serving_default".

    Raises:
        UserError: The file does not load, its runtime is not installed, or its network does not
            take float images or does not return floats [B, classes].
    """
    choose("outputs", outputs, OUTPUTS)
    network = runtime = None
    path = path_text(where, path)
    folder, file = saved_model(path), runtime_file(path)
    hint = "; export it again for float images (H, W, C) and a batch of any size, as Keras does"
    if folder is None:
        model_files(path, where)
        expected = "none (only a SavedModel has signatures, name an output)"
        require(signature is None, "signature", expected, signature)
    if folder is not None:
        call, images, values, others = _open_saved_model(folder, where, output, signature)
    elif file is not None:
        runtime = RUNTIMES[file.suffix.lower()][0]
        call, images, values, others = _open_elsewhere(file, where, output, runtime)
    else:
        network = load_keras(path, where, output=output, code=EXPORTED)
        call, images, values, others = _open_keras(network, where)
        image_shape = tuple(images.shape[1:])
        hint = in_front(image_shape, ("H", "W", "C"))
    shape = images.shape
    if shape.rank not in RANKS or shape[0] is not None or not images.dtype.is_floating:
        expected = "a network of float images (None, H, W, C)"
        received = f"{images.dtype.name} {shape}"
        raise UserError(f"{where}: expected {expected}, received {received!r}{hint}")
    fits = values.shape.rank == 2 and values.shape[1] and values.dtype.is_floating
    received = f"{values.dtype.name} {values.shape}"
    require(fits, where, "a network with a float output (None, classes)", received)
    ones: Any = dict.fromkeys(others, 1.0)
    options = {"network": network, "runtime": runtime, **ones}
    return SavedNetwork(call, tuple(shape[1:]), values.shape[1], outputs, **options)


def in_precision(logits_fn: Any, precision: str, where: str) -> Any:
    """Return a copy of a Keras network or a SavedNetwork that computes in `precision`.

    Raises UserError, which begins with `where`, for a network that cannot be copied.
    """
    network = logits_fn.network if isinstance(logits_fn, SavedNetwork) else logits_fn
    expected = "float32 (only a functional or Sequential Keras network can be copied)"
    if hasattr(network, "evaluated_weights"):  # a method
        expected = (
            f"float32 for {type(network).__name__} (or give model.network, with the weights "
            "model.evaluated_weights() if it averages weights)"
        )
    require(isinstance(network, keras.Model) and is_symbolic(network), where, expected, precision)
    copy = located(where, with_precision, network, precision)
    if isinstance(logits_fn, SavedNetwork):
        return dataclasses.replace(logits_fn, forward=lambda x: forward(copy, x), network=copy)
    return copy


# A network's function, the specs of its images and its output, and the names of its other inputs.
Opened = tuple[Callable[[Any], tf.Tensor], tf.TensorSpec, tf.TensorSpec, set[str]]


def _open_keras(network: keras.Model, where: str) -> Opened:
    interface = signature(network, where)
    image = _image(interface.inputs, where)
    images = tf.TensorSpec([None, *interface.image_shape])
    values = tf.TensorSpec([None, interface.classes])
    return lambda x: forward(network, x), images, values, set(interface.inputs) - {image}


def _open_elsewhere(file: Path, where: str, output: str | None, runtime: str) -> Opened:
    run, inputs, outputs = open_runtime(file, where)
    image, output = _image(inputs, where), _output(outputs, output, where)
    names = list(inputs)

    def outputs_of(*arrays: np.ndarray) -> np.ndarray:
        return np.asarray(run(dict(zip(names, arrays, strict=True)))[output], np.float32)

    computed = outside_tensorflow(outputs_of, outputs[output].shape, runtime)

    def forward(x: Any) -> tf.Tensor:
        values = x if isinstance(x, dict) else {image: x}
        return computed(*(tf.cast(values[name], inputs[name].dtype) for name in names))

    return forward, inputs[image], outputs[output], set(inputs) - {image}


def open_saved_model(folder: Path) -> Any:
    """Load a SavedModel without TensorFlow's warning about unsaved custom gradients.

    These are our second-order gradients of BatchNorm and MaxPool, which no attack needs.
    """
    log = logging.getLogger("absl")

    def is_shown(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "internal_grad_fn" not in message or "unsaved custom gradients" not in message

    log.addFilter(is_shown)
    try:
        with literal(folder) as path:
            return tf.saved_model.load(str(path))
    finally:
        log.removeFilter(is_shown)


def _open_saved_model(
    folder: Path, where: str, output: str | None, signature: str | None
) -> Opened:
    try:
        loaded = open_saved_model(folder)
    except Exception as error:
        line = one_line(error)
        raise UserError(f"{where}: expected a SavedModel, {folder} does not load: {line}") from None
    name = _signature(sorted(loaded.signatures), signature, where)
    serve = loaded.signatures[name]
    inputs, outputs = serve.structured_input_signature[1], serve.structured_outputs
    image, output = _image(inputs, where), _output(outputs, output, where)

    def forward(x: Any) -> tf.Tensor:
        values = x if isinstance(x, dict) else {image: x}
        values = {key: tf.cast(value, inputs[key].dtype) for key, value in values.items()}
        # `loaded` owns the variables, and so must live as long as this function.
        return loaded.signatures[name](**values)[output]

    return forward, inputs[image], outputs[output], set(inputs) - {image}


def _signature(names: list[str], signature: str | None, where: str) -> str:
    """Return the name of the signature that is called."""
    if signature is not None:
        return choose(f"{where}: signature", signature, names)
    if SIGNATURE in names:
        return SIGNATURE
    hint = "name one by signature (model.signature in a config)"
    if not names:
        hint = "save it with one, as network.export(FOLDER) of Keras does"
    received = ", ".join(names) or "none"
    expected = f"a SavedModel with the signature {SIGNATURE}"
    raise UserError(f"{where}: expected {expected}, received {received}; {hint}")


def _image(inputs: Collection[str], where: str) -> str:
    """Return the name of the input for images, which is the only input or "image" among others."""
    if set(inputs) in ({"image", "strength"}, {"image", "strength", "width"}):
        return "image"
    if len(inputs) != 1:
        raise UserError(f"{where}: {several('input', inputs)}; {ONE_INPUT}")
    return next(iter(inputs))


def _output(names: Collection[str], output: str | None, where: str) -> str:
    """Return the name of the output that is used."""
    if output is not None:
        return choose(f"{where}: output", output, names)
    if len(names) != 1:
        raise UserError(f"{where}: {several('output', names)}; {NAME_OUTPUT}")
    return next(iter(names))
