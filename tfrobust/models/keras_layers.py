"""The exchange of our layers for Keras's, so that files load with Keras alone, and back.

A network with Keras's layers keeps its names and weights. Its logits in inference are the same to
the bit, except for BatchNorm, whose fused kernel rounds float32 differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras

from tfrobust._compat import layers_of
from tfrobust.errors import UserError, require
from tfrobust.models.copies import copy_state
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import BatchNorm, Dropout, MaxPool
from tfrobust.models.signatures import is_symbolic

# Keras's name of a layer -> our layer of the same function and weights.
OURS: dict[str, type[keras.Layer]] = {
    "BatchNormalization": BatchNorm,
    "Dropout": Dropout,
    "MaxPooling2D": MaxPool,
}
POOLING = {
    "pool_size": (2, 2),
    "strides": (2, 2),
    "padding": "valid",
    "data_format": "channels_last",
}
# The names that Keras gives our layers. A layer that is exchanged for Keras's keeps its name.
NAMED = {"BatchNormalization": r"batch_norm(_\d+)?", "MaxPooling2D": r"max_pool(_\d+)?"}

Entry = dict[str, Any]  # a layer in the config of a network


@neutral()
def with_keras_layers(network: keras.Model) -> keras.Model:
    """Return a copy of a network with Keras's own layers in place of ours.

    `with_keras_layers(network).save("network.keras")` writes a file that loads without tfrobust. A
    network without layers of ours is returned itself, and so is a subclassed network, whose file
    needs code to load anyway.

    Raises:
        UserError: The network is no Keras model, or has layers that Keras lacks, as every
            once-for-all network does.
    """
    require(isinstance(network, keras.Model), "network", "a keras.Model", network)
    ours = {type(layer) for layer in layers_of(network) if _is_ours(type(layer))}
    others = sorted(cls.__name__ for cls in ours - set(OURS.values()))
    if others:
        raise UserError(
            f"network: expected layers that Keras has too, received {', '.join(others)}; save the "
            "network itself and import tfrobust before it is loaded, or export a SavedModel"
        )
    return _rebuilt(network, _to_keras) if ours and is_symbolic(network) else network


@neutral()
def with_tfrobust_layers(network: keras.Model) -> keras.Model:
    """Return a copy of a network from `with_keras_layers` that has our layers again.

    Any other network is returned itself. The layers are recognised by their names.
    """
    names = [(type(layer).__name__, layer.name) for layer in layers_of(network)]
    exchanged = any(re.fullmatch(NAMED.get(kind, ""), name) for kind, name in names)
    return _rebuilt(network, _to_tfrobust) if exchanged and is_symbolic(network) else network


def _is_ours(cls: type) -> bool:
    """Return whether a class is registered with Keras by tfrobust."""
    return keras.saving.get_registered_name(cls).startswith("tfrobust>")


def _rebuilt(network: keras.Model, exchange: Callable[[Entry], Entry]) -> keras.Model:
    """Return a copy of a network whose layers are exchanged, with the same weights and seeds."""
    copy = type(network).from_config(_exchanged(network.get_config(), exchange))
    copy_state(copy, network)
    return copy


def _exchanged(config: Any, exchange: Callable[[Entry], Entry]) -> Any:
    """Return a config in which every layer, at any depth, is exchanged."""
    if isinstance(config, list):
        return [_exchanged(value, exchange) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: _exchanged(value, exchange) for key, value in config.items()}
    return exchange(config) if "class_name" in config else config


def _to_keras(entry: Entry) -> Entry:
    """Return the entry of Keras's layer for one of ours; other entries unchanged."""
    for name, cls in OURS.items():
        if entry.get("registered_name") == keras.saving.get_registered_name(cls):
            config = entry["config"] | (POOLING if cls is MaxPool else {})
            reference = {"module": "keras.layers", "class_name": name, "registered_name": None}
            return entry | reference | {"config": config}
    return entry


def _to_tfrobust(entry: Entry) -> Entry:
    """Return the entry of our layer for one of Keras's that ours can replace; others unchanged."""
    name, config = entry["class_name"], entry.get("config") or {}
    if entry.get("module") != "keras.layers" or name not in OURS:
        return entry
    if not re.fullmatch(NAMED.get(name, ".*"), config["name"]):
        return entry
    if name == "Dropout" and config["noise_shape"] is not None:
        return entry
    if name == "MaxPooling2D":
        pooling = {key: config[key] for key in POOLING}
        if {key: tuple(v) if isinstance(v, list) else v for key, v in pooling.items()} != POOLING:
            return entry
        config = {key: value for key, value in config.items() if key not in POOLING}
    cls = OURS[name]
    reference = {
        "module": cls.__module__,
        "class_name": cls.__name__,
        "registered_name": keras.saving.get_registered_name(cls),
    }
    return entry | reference | {"config": config}
