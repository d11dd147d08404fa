"""Networks from published weights."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np

from tfrobust.errors import UserError, choose, require
from tfrobust.zoo.architectures import (
    ARCHITECTURES,
    IMAGE_SHAPE,
    Architecture,
    Layer,
    Normalisation,
)
from tfrobust.zoo.reading import Arrays, read_arrays

# If a file holds several networks, the published one is under the first of these keys that it has:
# the average of the weights (Wang et al., 2023), or the last epoch (RobustBench).
PREFERRED = ("model_state_dict", "last")
# What files hold beside the network: counters, constants, and layers that it does not call.
UNUSED = re.compile(r"(.+\.)?num_batches_tracked|(sub_block1|model_preact_hl1)\..+|n_averaged")
# The normalisation, where a file has it.
CONSTANTS = (("mu", "sigma"), ("mean", "std"))
NORM = ("weight", "bias", "running_mean", "running_var")


def load(path: str | Path, architecture: str, where: str = "path") -> keras.Model:
    """Return a network with published weights, from images [B, 32, 32, 3] in [0, 1] to logits.

    It is in float32, and its logits are those of torch within rounding. The number of classes is
    that of the file. Where the file has constants of normalisation (mu and sigma, or mean and std),
    they are used in place of the architecture's.

    Args:
        path: A file of torch (.pt), .safetensors, .npz or .npy. Prefixes such as "module." and the
            dictionaries around the weights do not matter.
        architecture: A name of ARCHITECTURES.
        where: The name of the path in errors.

    Raises:
        UserError: The file does not load, or is that of another architecture; the line says what is
            missing or has another shape, and what would fit.
    """
    choose("architecture", architecture, ARCHITECTURES)
    return build(ARCHITECTURES[architecture], architecture, read_arrays(path, where), where)


def build(
    architecture: Architecture, name: str, arrays: Arrays, where: str = "path"
) -> keras.Model:
    """Return the network of an architecture with the weights of `arrays`.

    Args:
        architecture: The architecture.
        name: Its name, for errors.
        arrays: All arrays of a file by their names in torch.
        where: The name of the file in errors.
    """
    weights = of_network(architecture, arrays, where)
    if reason := mismatch(architecture, weights):
        hint = _fitting(arrays, where)
        raise UserError(f"{where}: expected the weights of {name}, received {reason}{hint}")
    classes = _classes(architecture, weights)
    mean, std = _normalisation(architecture, weights) or (None, None)
    if mean is None and architecture.normalisation:
        expected = f"{' or '.join(map(str, architecture.normalisation))} classes"
        raise UserError(
            f"{where}: expected {expected}, for which {name} has constants, received {classes}"
        )
    network = architecture.build(IMAGE_SHAPE, classes, mean=mean, std=std)
    fill(network, list(architecture.layers(classes)), weights)
    return network


def of_network(architecture: Architecture, arrays: Arrays, where: str = "path") -> Arrays:
    """Return the arrays of the network, without the prefix of their names.

    The prefix, such as "state_dict.module.", is what stands before the name of the last layer
    (`logits` of the architecture's names). All names of the network have it.
    """
    end = f"{architecture.names.logits}.weight"
    prefixes = [
        name.removesuffix(end) for name in arrays if name == end or name.endswith(f".{end}")
    ]
    for key in PREFERRED:
        prefixes = [p for p in prefixes if p.split(".")[0] == key] or prefixes
    several = ", ".join(repr(prefix) for prefix in prefixes)
    require(len(prefixes) < 2, where, "one network", several)
    prefix = prefixes[0] if prefixes else ""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def mismatch(architecture: Architecture, weights: Arrays) -> str | None:
    """Return what is missing, has another shape or is too much in a file; None if all fits."""
    expected = shapes(architecture, _classes(architecture, weights))
    for name, shape in expected.items():
        if name not in weights:
            return f"no {name}"
        if weights[name].shape != shape:
            return f"{name} of shape {weights[name].shape} in place of {shape}"
    constants = {constant for names in CONSTANTS for constant in names}
    for name in weights:
        if name not in expected and name not in constants and not UNUSED.fullmatch(name):
            return f"{name} too"
    return None


def _classes(architecture: Architecture, weights: Arrays) -> int:
    """Return the number of logits; that of CIFAR-10 if the last layer is missing."""
    return len(weights.get(f"{architecture.names.logits}.weight", range(10)))


def shapes(architecture: Architecture, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters by their names in torch."""
    expected: dict[str, tuple[int, ...]] = {}
    for layer in architecture.layers(classes):
        if layer.kind is keras.layers.BatchNormalization:
            expected |= {f"{layer.name}.{part}": layer.shape for part in NORM}
        else:
            expected[f"{layer.name}.weight"] = layer.shape
        if layer.kind is keras.layers.Dense:
            expected[f"{layer.name}.bias"] = layer.shape[:1]
    return expected


def _fitting(arrays: Arrays, where: str) -> str:
    """Return the hint which architectures fit a file, or which is nearest, from "; " on."""
    fitting, shares = [], {}
    for name, architecture in ARCHITECTURES.items():
        weights = of_network(architecture, arrays, where)
        if mismatch(architecture, weights) is None:
            fitting.append(name)
        expected = shapes(architecture, _classes(architecture, weights))
        same = sum(weights[key].shape == shape for key, shape in expected.items() if key in weights)
        shares[name] = same / len(expected.keys() | weights.keys())
    if fitting:
        return f"; it fits {', '.join(fitting)}"
    nearest = max(shares, key=lambda name: shares[name])
    return f"; nearest is {nearest}" if shares[nearest] else ""


def _normalisation(architecture: Architecture, weights: Arrays) -> Normalisation | None:
    """Return the constants of the file if it has some, else those of the architecture, if any."""
    for names in CONSTANTS:
        if all(np.size(weights.get(constant, ())) == IMAGE_SHAPE[2] for constant in names):
            mean, std = (tuple(weights[constant].ravel().tolist()) for constant in names)
            return mean, std
    return architecture.normalisation.get(_classes(architecture, weights))


def fill(network: keras.Model, layers: list[Layer], weights: Arrays) -> None:
    """Set the weights of a network from those of torch.

    Args:
        network: The network.
        layers: Its layers with weights, of each kind in the order in which they were made.
        weights: The arrays by their names in torch.
    """
    for kind in (keras.layers.Conv2D, keras.layers.BatchNormalization, keras.layers.Dense):
        named = [layer.name for layer in layers if layer.kind is kind]
        for layer, name in zip(_made(network, kind), named, strict=True):
            if kind is keras.layers.BatchNormalization:
                layer.set_weights([weights[f"{name}.{part}"] for part in NORM])
                continue
            kernel = weights[f"{name}.weight"]
            kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)
            layer.set_weights([kernel, weights[f"{name}.bias"]] if kernel.ndim == 2 else [kernel])


def _made(network: keras.Model, kind: type[keras.Layer]) -> list[keras.Layer]:
    """Return the layers of a kind as they were made: Keras numbers their names."""

    def number(layer: keras.Layer) -> int:
        end = layer.name.rpartition("_")[2]
        return int(end) if end.isdigit() else 0

    return sorted((layer for layer in network.layers if isinstance(layer, kind)), key=number)
