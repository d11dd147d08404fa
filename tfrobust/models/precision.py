"""The same network under another precision."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust.registry import choose, require

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def with_precision(network: keras.Model, precision: str) -> keras.Model:
    """A functional network that computes in `precision`: the network itself if it does, else a
    copy with the same weights.

    Weights stay float32 and the output layers compute in float32, whatever the precision.
    """
    choose("precision", precision, PRECISIONS)
    config = network.get_config()
    require("layers" in config, "network", "a functional or Sequential keras.Model", network.name)
    outputs = {output.name for output in _output_layers(network)}
    policies = {layer.dtype_policy.name for layer in network._flatten_layers()}
    if policies == {precision}:  # all of it, as only float32 can be
        return network
    for layer in config["layers"]:
        policy = "float32" if layer["config"].get("name") in outputs else precision
        layer["config"] = _replace_policy(layer["config"], policy)
    copy = type(network).from_config(config)
    copy.set_weights(network.get_weights())
    return copy


def _output_layers(network: keras.Model) -> list[keras.Layer]:
    return [tensor._keras_history.operation for tensor in network.outputs]


def _replace_policy(config: Any, policy: str) -> Any:
    if isinstance(config, dict):
        if config.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
            return keras.saving.serialize_keras_object(keras.DTypePolicy(policy))
        return {key: _replace_policy(value, policy) for key, value in config.items()}
    if isinstance(config, list):
        return [_replace_policy(value, policy) for value in config]
    return config
