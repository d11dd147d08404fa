"""The export of a network to the formats in which it is shipped; each is loaded again and checked.

The SavedModel and the .onnx and .tflite files are written by Keras. `load_network` opens them all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import tf32
from tfrobust._compat import layers_of
from tfrobust.errors import UserError, choose, one_line, optional, require, user_path
from tfrobust.io import unwritable
from tfrobust.models import load_network
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.saved import open_saved_model
from tfrobust.models.signatures import alone, forward, signature

# The largest error of a logit by rounding, relative to the largest logit.
ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}
Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of exported networks.

    Attributes:
        file: The name of the file, or of the folder, in the folder of a run.
        write: A function (network of functional form, path, inputs to calibrate by).
        modules: The modules that write and run it, and the extra of tfrobust that has them.
        rounds: Whether only the rounding of float32 moves the logits.
    """

    file: str
    write: Callable[[keras.Model, Path, Inputs], None]
    modules: dict[str, str] = dataclasses.field(default_factory=dict)
    rounds: bool = True

    def check(self) -> None:
        """Raise a UserError if a package that the format needs is not installed."""
        for module, extra in self.modules.items():
            optional(module, extra)


def export(
    network: keras.Model,
    path: str | Path,
    images: np.ndarray,
    format: str = "saved_model",
    samples: np.ndarray | None = None,
) -> None:
    """Write a network in one of FORMATS.

    It maps images [None, H, W, C], float32 in [0, 1], to logits [None, C], float32. A once-for-all
    network has the inputs "image", "strength" [None] and, if it has widths, "width" [None]. The
    endpoints of a SavedModel are "serve" and "serving_default".

    Args:
        network: The network.
        path: The file or, for a SavedModel, the folder. Only a valid one replaces what is there.
        images: A few images [N, H, W, C], at which the logits of both are compared.
        format: "saved_model"; "onnx"; "litert"; or "litert_int8", with weights and activations in
            8 bits, between inputs and outputs in float32.
        samples: Training images [n, H, W, C], from which litert_int8 takes the ranges of the
            activations; a few hundred are enough.

    Raises:
        UserError: A package of the format is not installed, the network has an operation that the
            format lacks, or what was written does not give the network's logits.
    """
    kind = FORMATS[choose("format", format, FORMATS)]
    kind.check()
    path = user_path("path", path)
    expected = "training images, by which litert_int8 is calibrated"
    require(samples is not None or format != "litert_int8", "samples", expected, samples)
    new, former = path.with_name(f".{path.name}"), path.with_name(f".{path.name}.former")
    _remove(new)
    try:
        try:
            with neutral(), _quietly():
                calibration = _inputs(network, images if samples is None else samples)
                kind.write(alone(network), new, calibration)
        except Exception as error:  # converters raise anything
            if place := unwritable(error, path):
                raise place from None
            raise UserError(
                f"{path}: expected a network that {format} can hold: {one_line(error)}"
            ) from error
        _compare(new, network, _inputs(network, images), kind, path)
        _remove(former)
        if path.exists():
            path.rename(former)
        new.rename(path)
        _remove(former)
    finally:
        _remove(new)


def _inputs(network: keras.Model, images: np.ndarray) -> Inputs:
    """Return the inputs of a network by name: images [N, H, W, C], and others from 0 to 1, [N]."""
    others = np.linspace(0.0, 1.0, len(images), dtype=np.float32)
    return dict.fromkeys(signature(network).inputs, others) | {"image": images}


def _saved_model(network: keras.Model, path: Path, calibration: Inputs) -> None:
    network.export(str(path), verbose=False)


def _onnx(network: keras.Model, path: Path, calibration: Inputs) -> None:
    specs = _specs(calibration)
    network.export(str(path), format="onnx", verbose=False, input_signature=specs)


def _litert(network: keras.Model, path: Path, calibration: Inputs) -> None:
    _to_litert(network, path, calibration, tf.lite.OpsSet.TFLITE_BUILTINS)


def _litert_int8(network: keras.Model, path: Path, calibration: Inputs) -> None:
    def rows() -> Iterator[Inputs]:
        for row in range(len(calibration["image"])):
            yield {name: values[row : row + 1] for name, values in calibration.items()}

    options = {"optimizations": [tf.lite.Optimize.DEFAULT], "representative_dataset": rows}
    operations = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
    _to_litert(network, path, calibration, operations, **options)


def _to_litert(
    network: keras.Model, path: Path, calibration: Inputs, operations: Any, **options: Any
) -> None:
    """Write a .tflite file whose operations are all of a set, none of them TensorFlow's."""
    options["target_spec"] = {"supported_ops": [operations]}
    specs = _specs(calibration)
    network.export(str(path), format="litert", verbose=False, input_signature=specs, **options)


def _specs(inputs: Inputs) -> list[Any]:
    """Return the input signature of a network for a batch of any size."""
    specs = {
        name: tf.TensorSpec([None, *values.shape[1:]], name=name) for name, values in inputs.items()
    }
    return [specs if len(specs) > 1 else specs["image"]]


FORMATS = {
    "saved_model": Format("saved_model", _saved_model),
    "onnx": Format("model.onnx", _onnx, {"tf2onnx": "onnx", "onnxruntime": "onnx"}),
    "litert": Format("model.tflite", _litert, {"ai_edge_litert.interpreter": "litert"}),
    "litert_int8": Format(
        "model_int8.tflite", _litert_int8, {"ai_edge_litert.interpreter": "litert"}, rounds=False
    ),
}


def _compare(new: Path, network: keras.Model, inputs: Inputs, kind: Format, path: Path) -> None:
    """Raise a UserError unless the logits of both networks are equal within rounding."""
    x: Any = {name: tf.constant(values) for name, values in inputs.items()}
    x = x if len(x) > 1 else x["image"]
    with tf32.switched_off():  # it moves a logit by a thousandth
        if kind.file == "saved_model":
            loaded = open_saved_model(new)  # which owns the variables
            served = loaded.serve(x).numpy()
        else:
            served = load_network(new, where=str(path)).forward(x).numpy()
        expected = forward(network, x).numpy()
    computed = {layer.compute_dtype for layer in layers_of(network)}
    tolerance = max(ROUNDING.get(dtype, ROUNDING["float32"]) for dtype in computed)
    gap, scale = np.abs(served - expected).max(), np.abs(expected).max()
    if kind.rounds and not gap <= tolerance * max(scale, 1.0):  # a gap of NaN is an error too
        raise UserError(
            f"{path}: expected an export with the network's own logits, received one in which "
            f"a logit differs by {gap:.3g}, where the largest logit is {scale:.3g} and rounding in "
            f"{', '.join(sorted(computed))} explains {tolerance:g} of it"
        )
    require(np.isfinite(served).all(), str(path), "an export with finite logits", gap)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hold back what converters print: a graph in thousands of lines if they fail.

    They write it past Python, to the file descriptor of stderr.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as output, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(output.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
