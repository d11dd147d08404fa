"""The section `model`: what makes the network of a run, or the file that it lies in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras

from tfrobust.data import Dataset
from tfrobust.errors import UserError, choose, require
from tfrobust.models import MODELS, OUTPUTS, load_keras, model_files
from tfrobust.models.signatures import Shape, in_front, signature, takes
from tfrobust.registry import arguments, convert, located, resolve


def made(
    top: Mapping[str, Any], source: Dataset, trains: bool, init_from: str | None
) -> Callable[[], keras.Model] | None:
    """What makes the network that is trained; a config that trains none names a file instead."""
    section: Any = top.get("model")
    output = None
    if init_from is not None and section is not None:
        output = named_output(top)
        section = {key: value for key, value in section.items() if key != "output"}
        for key in ("outputs", "signature"):
            expected = "none (a method trains a Keras network that gives logits)"
            require(key not in section, f"model.{key}", expected, section.get(key))
    require(section is not None or init_from, "model", "a section with a name or a path", None)
    path, make = (section or {}).get("path"), None
    require(trains or path, "model.path", "the network to evaluate (there is no method)", path)
    if path is not None:
        require("name" not in section, "model", "either a name or a path", section)
        options = arguments(network_file, section, "model")
        choose("model.outputs", options.get("outputs", OUTPUTS[0]), OUTPUTS)
        require(
            not trains or path == init_from,
            "model.path",
            "a model.name where a method trains (to train on from a file set train.init_from)",
            path,
        )
        model_files(path, "model.path")
    elif section is not None:
        maker = resolve(MODELS, section, "model", ("image_shape", "num_classes"), ("path",))
        make = partial(maker, source.image_shape, source.num_classes)
        located("model", make)  # the constructor checks its values: now, not when data are loaded
    if init_from is not None:
        read = partial(_read, init_from, output, source)
        read()  # a file that does not fit is told now; it is read again where it is trained on
        return read
    return None if make is None else lambda: located("model", make)


def network_file(
    *, path: str, outputs: str = "logits", output: str | None = None, signature: str | None = None
) -> None:
    """The network of a file that is evaluated: a run folder, a .keras or .h5 file or a SavedModel.

    outputs: what it gives, logits, probabilities (a softmax) or sigmoids (one for each class).
    output: of several, the name of the one that holds them; also of the file train.init_from.
    signature: of a SavedModel, the name of the one that is called; serving_default if it has one.
    """


def named_output(top: Mapping[str, Any]) -> str | None:
    """The output that `model` names, of the file train.init_from."""
    return convert("model.output", (top.get("model") or {}).get("output"), str | None)


def _read(path: str, output: str | None, source: Dataset) -> keras.Model:
    """The network that is trained on. Raises UserError unless it fits the data."""
    where = "train.init_from"
    network = load_keras(path, where, output=output)
    shown = signature(network, where)
    check_fit(where, source, shown.image_shape, shown.classes)
    return network


def check_fit(where: str, source: Dataset, image_shape: Shape, classes: int) -> None:
    """Raise a UserError unless a network's images and classes are those of the data."""
    if takes(image_shape, source.image_shape) and classes == source.num_classes:
        return
    hint = "" if classes != source.num_classes else in_front(image_shape, source.image_shape)
    raise UserError(
        f"{where}: expected images {source.image_shape} to {source.num_classes} logits, as the "
        f"data has them, received {(image_shape, classes)}{hint}"
    )
