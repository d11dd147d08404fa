"""Copies of a network that compute in another precision."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust._compat import layers_of, operation_of
from tfrobust.errors import UserError, choose, require
from tfrobust.models.copies import copy_state
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.signatures import is_symbolic

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@neutral()
def with_precision(network: keras.Model, precision: str) -> keras.Model:
    """Return a copy of a network, with the same weights, that computes in `precision`.

    A network whose layers compute in it already is returned itself. In every precision the weights
    are float32, and the output layers compute in float32.

    Args:
        network: A functional or Sequential network.
        precision: One of PRECISIONS.

    Raises:
        UserError: The precision is another one, or the network is no Keras model, or a subclassed
            one, which cannot be copied.
    """
    choose("precision", precision, PRECISIONS)
    require(isinstance(network, keras.Model), "network", "a keras.Model", network)
    policies = {layer.dtype_policy.name for layer in layers_of(network)}
    if policies == {precision}:  # float32, as the output layers always are
        return network
    config = network.get_config() if is_symbolic(network) else {}
    if "layers" not in config:
        raise UserError(
            f"precision: expected {', '.join(sorted(policies))} (a {type(network).__name__} cannot "
            f"be copied, only a functional or Sequential network), received {precision!r}; "
            f"build it under keras.config.set_dtype_policy({precision!r}), its last layer with "
            "dtype='float32'"
        )
    outputs = {operation_of(tensor).name for tensor in network.outputs}
    for layer in config["layers"]:
        policy = "float32" if layer["config"].get("name") in outputs else precision
        layer["config"] = _replace_policy(layer["config"], policy)
    copy = type(network).from_config(config)
    copy_state(copy, network)
    return copy


def _replace_policy(config: Any, policy: str) -> Any:
    """Return a config in which every dtype policy, at any depth, is replaced."""
    if isinstance(config, dict):
        if config.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
            return keras.saving.serialize_keras_object(keras.DTypePolicy(policy))
        return {key: _replace_policy(value, policy) for key, value in config.items()}
    if isinstance(config, list):
        return [_replace_policy(value, policy) for value in config]
    return config
