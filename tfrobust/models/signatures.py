"""What a Keras network takes and gives, and how it is called: one notion for the functional, the
Sequential and the subclassed, whatever containers its input and its output come in."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfrobust._compat import operation_of
from tfrobust.errors import UserError, choose, require

Shape = tuple[int | None, ...]
CALL_ONCE = "a network that was called once, on a batch of images"
ONE_INPUT = "give the others values: network = keras.Model(x, network([x, ...]))"
ONE_OUTPUT = "keep one: network = keras.Model(network.inputs, network.outputs[0])"
NAME_OUTPUT = "name that of the logits by output (model.output in a config)"
FLOATS = (
    "gradients pass through no whole numbers: inner = keras.models.clone_model(network, "
    "input_tensors=keras.Input({0})); inner.set_weights(network.get_weights()); "
    "x = keras.Input({0}); network = keras.Model(x, inner(255 * x)) takes images in [0, 1]"
)
IN_FRONT = "put a layer in front: x = keras.Input({}); network = keras.Model(x, network({}))"


class Signature(NamedTuple):
    """Of a network whose one output is the logits [B, classes].

    inputs: the names of all it takes; "image" where that is one, whatever its name. image_shape:
    (H, W, C), with None for a size that is free.
    """

    inputs: tuple[str, ...]
    image_shape: Shape
    classes: int


def signature(network: keras.Model, where: str = "network") -> Signature:
    """What a built network takes and gives. Raises UserError, which begins with `where`, for one
    that does not take float images, or whose only output is not [B, C]."""
    given = outputs(network, where)
    inputs = _by_name(_taken(network))
    image = inputs.get("image") if len(inputs) > 1 else next(iter(inputs.values()))
    if image is None:
        raise UserError(f"{where}: {several('input', inputs)}; {ONE_INPUT}")
    shape = tuple(image.shape[1:])
    if not tf.as_dtype(image.dtype).is_floating:
        expected, hint = "a network of float images", FLOATS.format(shape)
        raise UserError(f"{where}: expected {expected}, received {image.dtype}; {hint}")
    if len(given) != 1:
        raise UserError(f"{where}: {several('output', given)}; {ONE_OUTPUT}")
    logits = tuple(next(iter(given.values())).shape)
    fits = len(logits) == 2 and logits[1]
    require(fits, where, "a network with an output (None, classes)", str(logits))
    return Signature(tuple(inputs) if len(inputs) > 1 else ("image",), shape, logits[1])


def forward(network: keras.Model, inputs: Any, training: bool = False) -> tf.Tensor:
    """The one output [B, C] of a network. inputs: its images, or a mapping of all that it takes."""
    taken = _taken(network)
    if taken is not None and not isinstance(inputs, Mapping):
        inputs = keras.tree.pack_sequence_as(taken, [inputs])
    return keras.tree.flatten(network(inputs, training=training))[0]


def alone(network: keras.Model) -> keras.Model:
    """The network as one of its inputs, images or a mapping, and of its output, without any other
    containers, for batches of any size."""
    taken = _by_name(_taken(network))
    names = list(taken) if _symbolic(network) or len(taken) > 1 else ["image"]
    inputs: Any = {
        name: keras.Input(tensor.shape[1:], name=name)
        for name, tensor in zip(names, taken.values(), strict=True)
    }
    inputs = inputs if len(inputs) > 1 else inputs[names[0]]
    return keras.Model(inputs, forward(network, inputs))


def outputs(network: keras.Model, where: str = "network") -> dict[str, Any]:
    """The symbolic outputs by their names: a dict's keys, else those of the layers that give them,
    else their places."""
    if _symbolic(network):
        sequential = isinstance(network, keras.Sequential)
        return _by_name(network.outputs if sequential else network.output)
    taken = _taken(network)
    require(taken is not None, where, CALL_ONCE, type(network).__name__)
    try:
        return _by_name(network.compute_output_spec(taken))
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: expected {CALL_ONCE}, received: {line}") from None


def cut(network: keras.Model, output: str | None, where: str) -> keras.Model:
    """The network with one of its outputs, which is named where it has several. Raises
    UserError."""
    names = outputs(network, where)
    if output is not None:
        choose(f"{where}: output", output, list(names))
    if len(names) == 1:
        return network
    if not _symbolic(network):
        hint = "its network.export(FOLDER) makes a SavedModel, of which one can be named"
        raise UserError(f"{where}: {several('output', names)}; {hint}")
    if output is None:
        raise UserError(f"{where}: {several('output', names)}; {NAME_OUTPUT}")
    return keras.Model(network.input, names[output], name=network.name)


def several(what: str, names: Collection[str]) -> str:
    """What is wrong with a network of several inputs or outputs."""
    return f"expected a network with one {what}, received {len(names)}: {', '.join(sorted(names))}"


def takes(image_shape: Shape, shape: Sequence[int]) -> bool:
    """Whether a network of images `image_shape` takes those of a shape (H, W, C)."""
    sizes = zip(image_shape, shape, strict=False)
    return len(image_shape) == len(shape) and all(own in (None, size) for own, size in sizes)


def in_front(image_shape: Shape, shape: Sequence[Any]) -> str:
    """What a user can put in front of a network of `image_shape` for images of a shape (H, W, C),
    letters for sizes that are not known; empty where no layer does it."""
    height, width, channels = shape
    sizes = [size for size in image_shape if size is not None]
    known = [size for size in shape if isinstance(size, int)]
    if len(image_shape) == 3 and takes(image_shape, (channels, height, width)):
        made = "keras.layers.Permute((3, 1, 2))(x)"
    elif len(image_shape) == len(sizes) != 3 and (
        not known or math.prod(known) == math.prod(sizes)
    ):
        made = f"keras.layers.Reshape({tuple(sizes)})(x)"
    else:
        return ""
    return "; " + IN_FRONT.format(f"({height}, {width}, {channels})", made)


def _symbolic(network: keras.Model) -> bool:
    """Whether it is a graph of layers, as the functional and the Sequential are."""
    return isinstance(getattr(network, "outputs", None), list)


def _taken(network: keras.Model) -> Any:
    """Symbolic tensors in the containers that the network is called with; None of a subclassed one
    that has noted none."""
    if _symbolic(network):
        return network.inputs[0] if isinstance(network, keras.Sequential) else network.input
    shapes = (network.get_build_config() or {}).get("input_shape")
    if shapes is None:
        return None
    # The size of the batch that built it is not asked of any other.
    free = lambda shape: keras.KerasTensor((None, *shape[1:]))  # noqa: E731
    return keras.tree.map_shape_structure(free, shapes)


def _by_name(tensors: Any) -> dict[str, Any]:
    """The tensors in a container by their names."""
    paths = keras.tree.flatten_with_path(tensors)
    names = []
    for place, (path, tensor) in enumerate(paths):
        keys = [part for part in path if isinstance(part, str)]
        operation = operation_of(tensor)
        names.append(".".join(keys) or (operation.name if operation else str(place)))
    if len(set(names)) < len(names):  # one layer that is called twice
        names = [str(place) for place in range(len(names))]
    return {name: tensor for name, (_, tensor) in zip(names, paths, strict=True)}
