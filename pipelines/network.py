"""The section `model`: a network to make, or the file of a finished network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras

from tfrobust.data import Dataset
from tfrobust.data.folder import ImageFolder
from tfrobust.data.npz import Npz
from tfrobust.errors import UserError, choose, require
from tfrobust.models import MODELS, OUTPUTS, load_keras, model_files
from tfrobust.models.signatures import Shape, in_front, signature, takes
from tfrobust.registry import arguments, convert, located, resolve
from tfrobust.zoo import ARCHITECTURES, weights_file


@dataclasses.dataclass(frozen=True)
class NetworkFile:
    """The section `model` of a config that evaluates a network from a file.

    Args:
        path: A run folder, a .keras or .h5 file, a SavedModel, or a .onnx or .tflite file, which
            has no gradients. With an architecture, a file of weights: of torch (.pt), .safetensors,
            .npz or .npy.
        outputs: What the network returns: logits, probabilities (of a softmax) or sigmoids (one for
            each class).
        output: The name of the output to use, if there are several. It is also valid for the file
            of train.init_from.
        signature: The name of the signature to call in a SavedModel, by default serving_default.
        architecture: The network whose weights the file holds, one of those in docs/zoo.md.
    """

    path: str
    outputs: str = "logits"
    output: str | None = None
    signature: str | None = None
    architecture: str | None = None

    def __post_init__(self) -> None:
        choose("outputs", self.outputs, OUTPUTS)
        if self.architecture is None:
            return
        choose("architecture", self.architecture, ARCHITECTURES)
        expected = "none (a network of the zoo has one output, its logits)"
        require(self.outputs == "logits", "outputs", expected, self.outputs)
        require(self.output is None, "output", expected, self.output)
        require(self.signature is None, "signature", expected, self.signature)


def network_maker(
    section: Mapping[str, Any] | None, source: Dataset, trains: bool, init_from: str | None
) -> Callable[[], keras.Model] | None:
    """Check the section `model`, and return a function that makes the network to train.

    Args:
        section: The section, whose name is one of MODELS.
        source: The data set, whose images and classes the network must fit.
        trains: Whether the config trains a network. If it does not, the section names a file.
        init_from: `train.init_from`, the file of the network to start from.

    Returns:
        A function without arguments that returns a new network, or the network in `init_from`. It
        raises a UserError if a value is wrong, or if the file does not fit the data. None if the
        config only evaluates the network in a file.

    Raises:
        UserError: If the section is wrong.
    """
    require(section is not None or init_from, "model", "a section with a name or a path", None)
    section = section or {}
    output = None
    if init_from is not None:
        output = named_output(section)
        for key in ("outputs", "signature", "architecture"):
            expected = "none (a method trains a Keras network that gives logits)"
            require(key not in section, f"model.{key}", expected, section.get(key))
        section = {key: value for key, value in section.items() if key != "output"}
    path = section.get("path")
    require(trains or path, "model.path", "the network to evaluate (there is no method)", path)
    make = None
    if path is not None:
        _check_file(section, trains, init_from)
    elif section or init_from is None:
        maker = resolve(MODELS, section, "model", ("image_shape", "num_classes"), ("path",))
        make = partial(maker, source.image_shape, source.num_classes)
    if init_from is not None:
        return partial(_read, init_from, output, source)
    return None if make is None else lambda: located("model", make)


# The hint for a network of one logit.
TWO_LOGITS = (
    "; z = network.outputs[0]; "
    "keras.Model(network.inputs[0], keras.ops.concatenate([0 * z, z], 1)) has the two logits if z "
    "is one; if z is a sigmoid, they are keras.ops.log of [1 - z, z]"
)


def _check_file(section: Mapping[str, Any], trains: bool, init_from: str | None) -> None:
    path = section["path"]
    require("name" not in section, "model", "either a name or a path", dict(section))
    located("model", NetworkFile, **arguments(NetworkFile, section, "model"))
    require(
        not trains or path == init_from,
        "model.path",
        "a model.name where a method trains (to train on from a file set train.init_from)",
        path,
    )
    if "architecture" in section:
        weights_file(path, "model.path")
    else:
        model_files(path, "model.path")


def named_output(section: Mapping[str, Any] | None) -> str | None:
    """Return the output of the file `train.init_from` that the section `model` names, if any."""
    return convert("model.output", (section or {}).get("output"), str | None)


def _read(path: str, output: str | None, source: Dataset) -> keras.Model:
    """Return the network from which training starts. Raises a UserError unless it fits the data."""
    where = "train.init_from"
    network = load_keras(path, where, output=output)
    interface = signature(network, where)
    check_fit(where, source, interface.image_shape, interface.classes)
    return network


def check_fit(
    where: str, source: Dataset, image_shape: Shape, classes: int, runtime: str | None = None
) -> None:
    """Raise a UserError unless a network's images and classes are those of the data.

    Args:
        where: The network's place in the config, for the error message.
        source: The data set.
        image_shape: The (height, width, channels) of the network's images, or the shape of its
            other inputs.
        classes: The number of its logits.
        runtime: The runtime outside TensorFlow that computes the network, if there is one.
    """
    if takes(image_shape, source.image_shape) and classes == source.num_classes:
        return
    hint, side = "", image_shape[0]
    if takes(image_shape, source.image_shape):
        if classes == 1 and source.num_classes == 2:
            hint = TWO_LOGITS
        elif isinstance(source, Npz) and classes > source.num_classes:
            hint = f"; set data.num_classes to {classes} if the labels do not show all classes"
        elif isinstance(source, Npz) and classes == source.num_classes - 1:
            hint = "; subtract 1 from all labels if they begin at 1"
    elif isinstance(source, Npz) and source.image_shape == (*image_shape, 1):
        hint = "; set data.layout to series"
    elif isinstance(source, ImageFolder) and side and source.image_shape[:2] != image_shape[:2]:
        hint = f"; set data.image_size to {side}" if image_shape[:2] == (side, side) else ""
    if not hint and classes == source.num_classes:
        hint = in_front(image_shape, source.image_shape, runtime)
    things = "images" if len(source.image_shape) == 3 else "inputs"
    raise UserError(
        f"{where}: expected {things} {source.image_shape} to {source.num_classes} logits, as the "
        f"data has them, received {(image_shape, classes)}{hint}"
    )
