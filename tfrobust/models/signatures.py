"""The inputs and outputs of a Keras network, and how it is called.

Functional, Sequential and subclassed networks are treated alike, whatever containers (lists, dicts)
their inputs and outputs come in.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfrobust._compat import operation_of
from tfrobust.errors import UserError, choose, one_line, require
from tfrobust.gate import check_float_input

Shape = tuple[int | None, ...]
CALL_ONCE = "a network that was called once, on a batch of images"
ONE_INPUT = "give the others values: network = keras.Model(x, network([x, ...]))"
ONE_OUTPUT = "keep one: network = keras.Model(network.inputs, network.outputs[0])"
NAME_OUTPUT = "name that of the logits by output (model.output in a config)"
IN_FRONT = "put a layer in front: x = keras.Input({}); network = keras.Model(x, network({}))"
AGAIN = "export it again for images {}"
FROM_TORCH = ", with x.permute(0, 3, 1, 2) in front of a network of torch"


class Signature(NamedTuple):
    """The inputs of a network, and its one output, the logits [B, classes].

    Attributes:
        inputs: The names of all inputs. A single input is called "image", whatever its name.
        image_shape: (H, W, C), (T, C) or (F,), with None for a size that is free.
        classes: The number of classes.
    """

    inputs: tuple[str, ...]
    image_shape: Shape
    classes: int


def signature(network: keras.Model, where: str = "network") -> Signature:
    """Return the signature of a built network.

    Raises:
        UserError: The network does not take float images, or its output is not one [B, classes].
            The message begins with `where`.
    """
    tensors = outputs(network, where)
    inputs = _by_name(_inputs(network))
    image = inputs.get("image") if len(inputs) > 1 else next(iter(inputs.values()))
    if image is None:
        raise UserError(f"{where}: {several('input', inputs)}; {ONE_INPUT}")
    shape = tuple(image.shape[1:])
    check_float_input(where, image.dtype, shape)
    if len(tensors) != 1:
        raise UserError(f"{where}: {several('output', tensors)}; {ONE_OUTPUT}")
    logits = tuple(next(iter(tensors.values())).shape)
    fits = len(logits) == 2 and logits[1]
    require(fits, where, "a network with an output (None, classes)", str(logits))
    return Signature(tuple(inputs) if len(inputs) > 1 else ("image",), shape, logits[1])


def forward(network: keras.Model, inputs: Any, training: bool = False) -> tf.Tensor:
    """Return the one output [B, classes] of a network.

    The inputs are images [B, H, W, C], or a mapping with all inputs.
    """
    structure = _inputs(network)
    if structure is not None and not isinstance(inputs, Mapping):
        inputs = keras.tree.pack_sequence_as(structure, [inputs])
    return keras.tree.flatten(network(inputs, training=training))[0]


def alone(network: keras.Model) -> keras.Model:
    """Return a functional network that calls a network on a batch of any size.

    Its inputs are the images, or a mapping of several inputs. Its output is one tensor. There are
    no other containers.
    """
    tensors = _by_name(_inputs(network))
    names = list(tensors) if is_symbolic(network) or len(tensors) > 1 else ["image"]
    inputs: Any = {
        name: keras.Input(tensor.shape[1:], name=name)
        for name, tensor in zip(names, tensors.values(), strict=True)
    }
    inputs = inputs if len(inputs) > 1 else inputs[names[0]]
    return keras.Model(inputs, forward(network, inputs))


def outputs(network: keras.Model, where: str = "network") -> dict[str, Any]:
    """Return the symbolic outputs of a network by name.

    The names are the keys of a dict, or else the names of the output layers, or else "0", "1", ...
    Raises UserError, which begins with `where`, for a network that was never called.
    """
    if is_symbolic(network):
        sequential = isinstance(network, keras.Sequential)
        return _by_name(network.outputs if sequential else network.output)
    inputs = _inputs(network)
    require(inputs is not None, where, CALL_ONCE, type(network).__name__)
    try:
        return _by_name(network.compute_output_spec(inputs))
    except Exception as error:
        line = one_line(error)
        raise UserError(f"{where}: expected {CALL_ONCE}, received: {line}") from None


def cut(network: keras.Model, output: str | None, where: str) -> keras.Model:
    """Return the network with one of its outputs, named by `output` if there are several.

    Raises UserError, which begins with `where`, if there is no such output.
    """
    names = outputs(network, where)
    if output is not None:
        choose(f"{where}: output", output, list(names))
    if len(names) == 1:
        return network
    if not is_symbolic(network):
        hint = "network.export(FOLDER) makes a SavedModel, one output of which can be named"
        raise UserError(f"{where}: {several('output', names)}; {hint}")
    if output is None:
        raise UserError(f"{where}: {several('output', names)}; {NAME_OUTPUT}")
    return keras.Model(network.input, names[output], name=network.name)


def several(what: str, names: Collection[str]) -> str:
    """Return the error about a network with several inputs or outputs, which `what` names."""
    return f"expected a network with one {what}, received {len(names)}: {', '.join(sorted(names))}"


def inputs_advice(inputs: Collection[str]) -> str:
    """Return advice on a network that has other inputs than a method gives it."""
    if {*inputs} <= {"image", "strength", "width"}:
        return "model.lambdas makes one of both"
    return ONE_INPUT


def takes(image_shape: Shape, shape: Sequence[int]) -> bool:
    """Return whether a network of images `image_shape` takes images of a shape (H, W, C)."""
    if len(image_shape) != len(shape):
        return False
    sizes = zip(image_shape, shape, strict=True)
    return all(expected in (None, size) for expected, size in sizes)


def in_front(image_shape: Shape, shape: Sequence[Any], runtime: str | None = None) -> str:
    """Return the hint about a layer in front of a network that lets it take other images.

    Args:
        image_shape: The shape that the network takes.
        shape: The shape (H, W, C) of the images, with letters for unknown sizes,
            or that of a series or of a row of a table.
        runtime: The runtime outside TensorFlow that computes the network, before which no layer can
            be put; None for TensorFlow.

    Returns:
        The hint, which begins with "; ". It is empty if no layer helps.
    """
    layer = _layer_in_front(image_shape, shape)
    if not layer:
        return ""
    images = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    if runtime is None:
        return "; " + IN_FRONT.format(images, layer)
    return "; " + AGAIN.format(images) + FROM_TORCH * ("Permute" in layer)


def _layer_in_front(image_shape: Shape, shape: Sequence[Any]) -> str:
    """Return the call of the layers for the hint of `in_front`; "" if none helps."""
    if len(shape) == len(image_shape) == 3:
        height, width, channels = shape
        if takes(image_shape, (channels, height, width)):
            return "keras.layers.Permute((3, 1, 2))(x)"
        *size, taken = image_shape
        more: dict[Any, str] = {
            (1, 3): "keras.layers.Concatenate()([x, x, x])",
            (3, 1): "x[..., :1]",  # of grey images, whose channels are equal
        }
        layer = "x" if taken == channels else more.get((channels, taken), "")
        if takes((*size, None), shape):
            return layer if layer != "x" else ""
        resized = layer and None not in size
        return f"keras.layers.Resizing({size[0]}, {size[1]})({layer})" if resized else ""
    sizes = [size for size in shape if isinstance(size, int)]
    count = math.prod(size or 0 for size in image_shape)  # 0 if a size is free
    fits = count and (not sizes or math.prod(sizes) == count)
    return f"keras.layers.Reshape({tuple(image_shape)})(x)" if fits else ""


def is_symbolic(network: keras.Model) -> bool:
    """Return whether a network is a graph of layers, functional or Sequential."""
    return isinstance(getattr(network, "outputs", None), list)


def _inputs(network: keras.Model) -> Any:
    """Return the symbolic inputs in the containers with which the network is called.

    It is None for a subclassed network that has no record of their shapes.
    """
    if is_symbolic(network):
        return network.inputs[0] if isinstance(network, keras.Sequential) else network.input
    shapes = (network.get_build_config() or {}).get("input_shape")
    if shapes is None:
        return None

    def any_batch(shape: Any) -> keras.KerasTensor:
        """Return a tensor of any batch size, although the network was built with one."""
        return keras.KerasTensor((None, *shape[1:]))

    return keras.tree.map_shape_structure(any_batch, shapes)


def _by_name(tensors: Any) -> dict[str, Any]:
    """Return the tensors of a container by name."""
    paths = keras.tree.flatten_with_path(tensors)
    names = []
    for number, (path, tensor) in enumerate(paths):
        keys = [part for part in path if isinstance(part, str)]
        operation = operation_of(tensor)
        names.append(".".join(keys) or (operation.name if operation else str(number)))
    if len(set(names)) < len(names):  # a layer that is called twice
        names = [str(number) for number in range(len(names))]
    return {name: tensor for name, (_, tensor) in zip(names, paths, strict=True)}
