"""A network that somebody trained, from its file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from tfrobust.registry import UserError, choose, require

OUTPUTS = ("logits", "probabilities")
KERAS = "a .keras file or a run folder with model.keras"
SIGNATURE = "serving_default"
TINY = float(np.finfo(np.float32).tiny)  # the least probability whose logarithm has a gradient


@dataclasses.dataclass(frozen=True, eq=False)
class SavedNetwork:
    """Images [B, H, W, C] float32 -> logits [B, classes] float32, as at inference.

    Gradients pass through it, so it serves every attack and every evaluation.

    input_shape: (H, W, C). outputs: "probabilities" where the network ends in a softmax: log(p),
    with p away from 0, serves as logits. strength, width: the lambda and the width that all images
    get, of a once-for-all network; None for one that takes none.
    """

    forward: Callable[[Any], tf.Tensor]
    input_shape: tuple[int, ...]
    classes: int
    outputs: str = "logits"
    strength: float | None = None
    width: float | None = None

    def __call__(self, x: Any) -> tf.Tensor:
        x = tf.convert_to_tensor(x, tf.float32)
        given = {"strength": self.strength, "width": self.width}
        more = {
            name: tf.fill(tf.shape(x)[:1], tf.constant(value))
            for name, value in given.items()
            if value is not None
        }
        x = {"image": x, **more} if more else x
        values = tf.cast(self.forward(x), tf.float32)
        values = tf.ensure_shape(values, [None, self.classes])
        return tf.math.log(tf.maximum(values, TINY)) if self.outputs != "logits" else values

    def check(self, images: np.ndarray, where: str) -> None:
        """Raise a UserError unless it takes such images and its outputs on them are what `outputs`
        says. where: the name of the network in errors."""
        require(
            images.shape[1:] == self.input_shape,
            where,
            f"a network of images {images.shape[1:]}",
            self.input_shape,
        )
        given = dataclasses.replace(self, outputs="logits")(images)
        seen = OUTPUTS[are_probabilities(np.asarray(given, np.float64))]
        require(
            seen == self.outputs, where, f"a network of {self.outputs} (or outputs: {seen})", seen
        )


def are_probabilities(values: np.ndarray) -> bool:
    """Whether all rows [B, C] are at least 0 and sum to 1."""
    return bool(values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() < 1e-3)


def load_network(path: str | Path, outputs: str = "logits", where: str = "path") -> SavedNetwork:
    """The network of a run folder with model.keras, a .keras file or a SavedModel folder.

    A SavedModel is called by its signature "serving_default", whatever its input and its output
    are named. The other inputs of a once-for-all network, "strength" and "width", are 1. outputs:
    what the network gives, "logits" or "probabilities". where: the name of the path in errors.
    Raises UserError for a file that does not load, and for one that takes something else than
    images or does not give one output [B, classes].
    """
    choose("outputs", outputs, OUTPUTS)
    folder = Path(path).expanduser()
    if (folder / "saved_model.pb").is_file():
        forward, taken, given, more = _open_saved_model(folder, where)
    else:
        model_files(folder, where)
        forward, taken, given, more = _open_keras(load_keras(folder, where), where)
    shape = taken.shape
    whole = shape.rank == 4 and shape[0] is None and taken.dtype.is_floating
    received = f"{taken.dtype.name} {shape}"
    require(whole, where, "a network of float images (None, H, W, C)", received)
    fits = given.rank == 2 and given[1]
    require(fits, where, "a network with an output (None, classes)", str(given))
    return SavedNetwork(forward, tuple(shape[1:]), given[1], outputs, **dict.fromkeys(more, 1.0))


def keras_file(path: str | Path, where: str = "path") -> Path:
    """The .keras file that a run folder or a path stands for. Raises UserError if there is none."""
    file = _find(Path(path).expanduser())
    require(file, where, KERAS, str(path))
    assert file is not None
    return file


def model_files(path: str | Path, where: str = "path") -> list[Path]:
    """The files that `load_network` reads. Raises UserError if there are none."""
    folder = Path(path).expanduser()
    if (folder / "saved_model.pb").is_file():
        return sorted(file for file in folder.rglob("*") if file.is_file())
    found = _find(folder)
    require(found, where, f"{KERAS}, or a SavedModel folder", str(path))
    assert found is not None
    return [found]


def load_keras(path: str | Path, where: str = "path") -> keras.Model:
    """The Keras network of a run folder or a .keras file, to train on; of a saved RobustModel, the
    network inside. Raises UserError as `load_network`."""
    file = keras_file(path, where)
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:
        _does_not_load("a .keras file", file, where, error)
    network = getattr(model, "network", model)
    if hasattr(model, "evaluated_weights"):  # with a moving average, what was validated
        network.set_weights(model.evaluated_weights())
    expected = "a functional or Sequential network (any other one as a SavedModel)"
    require(hasattr(network, "outputs"), where, expected, type(network).__name__)
    return network


def _find(path: Path) -> Path | None:
    file = path / "model.keras" if path.is_dir() else path
    return file if file.is_file() and file.suffix == ".keras" else None


# (forward, the images that it takes, the shape of what it gives, the names of its other inputs)
Opened = tuple[Callable[[Any], tf.Tensor], tf.TensorSpec, tf.TensorShape, set[str]]


def _open_keras(network: keras.Model, where: str) -> Opened:
    inputs = {tensor._keras_history.operation.name: tensor for tensor in network.inputs}
    image = _image(inputs, where)
    _one("output", [tensor._keras_history.operation.name for tensor in network.outputs], where)
    # Keras notes the size of the batch that built a network, and takes any other.
    taken = tf.TensorSpec([None, *inputs[image].shape[1:]], inputs[image].dtype)
    given = tf.TensorShape(network.outputs[0].shape)
    forward = lambda x: tf.nest.flatten(network(x, training=False))[0]  # noqa: E731
    return forward, taken, given, set(inputs) - {image}


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


def _open_saved_model(folder: Path, where: str) -> Opened:
    try:
        loaded = open_saved_model(folder)
    except Exception as error:
        _does_not_load("a SavedModel", folder, where, error)
    names = sorted(loaded.signatures)
    expected = f"a SavedModel with the signature {SIGNATURE}"
    require(SIGNATURE in names, where, expected, ", ".join(names) or "none")
    serve = loaded.signatures[SIGNATURE]
    inputs, outputs = serve.structured_input_signature[1], serve.structured_outputs
    image, output = _image(inputs, where), _one("output", outputs, where)
    taken = inputs[image]

    def forward(x: Any) -> tf.Tensor:
        given = x if isinstance(x, dict) else {image: x}
        given = {name: tf.cast(value, inputs[name].dtype) for name, value in given.items()}
        # By `loaded`: the variables live as long as it does.
        return loaded.signatures[SIGNATURE](**given)[output]

    return forward, taken, outputs[output].shape, set(inputs) - {image}


def _image(inputs: Collection[str], where: str) -> str:
    """The name of the input for images: the only one, or "image" beside others that are known."""
    known = {"image", "strength"} <= set(inputs) <= {"image", "strength", "width"}
    return "image" if known else _one("input", inputs, where)


def _one(what: str, names: Collection[str], where: str) -> str:
    received = f"{len(names)}: {', '.join(sorted(names))}"
    if len(names) != 1:
        raise UserError(f"{where}: expected a network with one {what}, received {received}")
    return next(iter(names))


def _does_not_load(kind: str, file: Path, where: str, error: Exception) -> NoReturn:
    line = " ".join(str(error).split())[:200]
    raise UserError(f"{where}: expected {kind}, {file} does not load: {line}") from None
