"""Networks that another runtime computes: .onnx files by ONNX Runtime, .tflite files by LiteRT.

TensorFlow calls them as NumPy functions. Gradients do not pass through them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tensorflow as tf

from tfrobust.errors import UserError, one_line, optional

Arrays = Mapping[str, np.ndarray]
Specs = dict[str, tf.TensorSpec]
ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class Runtime(NamedTuple):
    """A network in a runtime.

    Attributes:
        run: A function from the inputs, by name, to the outputs, by name.
        inputs, outputs: Their shapes and types, with None for a size that is free.
    """

    run: Callable[[Arrays], Arrays]
    inputs: Specs
    outputs: Specs


def open_runtime(file: Path, where: str) -> Runtime:
    """Return the network of a file that ends in one of RUNTIMES.

    Raises:
        UserError: The file does not load, or its runtime is not installed. The message begins with
            `where` if the file is at fault.
    """
    name, package, extra, open_file = RUNTIMES[file.suffix.lower()]
    module = optional(package, extra)
    try:
        return open_file(module, str(file))
    except Exception as error:  # each runtime has errors of its own
        line = one_line(error)
        raise UserError(f"{where}: expected {name} to load {file}: {line}") from None


def outside_tensorflow(
    run: Callable[..., np.ndarray], shape: tf.TensorShape, name: str
) -> Callable[..., tf.Tensor]:
    """Return a NumPy function as a TensorFlow function that has no gradient.

    Args:
        run: A function from arrays to an array in float32.
        shape: The shape of that array, with None for a size that is free.
        name: The name of the runtime, for errors.

    Returns:
        A function from tensors to a tensor. To trace its gradient raises a LookupError.
    """

    @tf.custom_gradient
    def forward(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[..., NoReturn]]:
        def gradient(*_: Any) -> NoReturn:
            raise LookupError(f"{name} computes the network")

        values = tf.numpy_function(run, inputs, tf.float32)
        return tf.ensure_shape(values, shape), gradient

    return forward


def _open_onnx(onnxruntime: Any, file: str) -> Runtime:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = _onnx_specs(session.get_outputs())

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(list(outputs), dict(inputs)), strict=True))

    return Runtime(run, _onnx_specs(session.get_inputs()), outputs)


def _onnx_specs(tensors: Any) -> Specs:
    """Return the specs of ONNX's tensors. A size with a name is free, and integers stay a type."""
    specs = {}
    for tensor in tensors:
        shape = [size if isinstance(size, int) else None for size in tensor.shape]
        specs[tensor.name] = tf.TensorSpec(shape, ONNX_TYPES.get(tensor.type, "int64"))
    return specs


def _open_litert(interpreter: Any, file: str) -> Runtime:
    runner = interpreter.Interpreter(file).get_signature_runner()

    def run(inputs: Arrays) -> Arrays:
        return runner(**inputs)  # allocates anew for a batch of another size

    return Runtime(
        run, _litert_specs(runner.get_input_details()), _litert_specs(runner.get_output_details())
    )


def _litert_specs(tensors: Any) -> Specs:
    """Return the specs of LiteRT's tensors, in which -1 is a free size."""
    return {
        name: tf.TensorSpec(
            [None if size < 0 else int(size) for size in tensor["shape_signature"]],
            tensor["dtype"],
        )
        for name, tensor in tensors.items()
    }


# The suffix of a file -> the runtime's name, its module, the extra that has it, and its opener.
RUNTIMES: dict[str, tuple[str, str, str, Callable[[Any, str], Runtime]]] = {
    ".onnx": ("ONNX Runtime", "onnxruntime", "onnx", _open_onnx),
    ".tflite": ("LiteRT", "ai_edge_litert.interpreter", "litert", _open_litert),
}
