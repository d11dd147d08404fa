"""The same network under another precision."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust._compat import layers_of, operation_of
from tfrobust.errors import UserError, choose
from tfrobust.models.keras_defaults import neutral

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@neutral()
def with_precision(network: keras.Model, precision: str) -> keras.Model:
    """A network that computes in `precision`: the network itself if it does, else, of a functional
    or Sequential one, a copy with the same weights.

    Weights stay float32 and the output layers compute in float32, whatever the precision. Raises
    UserError for a network that cannot be copied.
    """
    choose("precision", precision, PRECISIONS)
    policies = {layer.dtype_policy.name for layer in layers_of(network)}
    if policies == {precision}:  # all of it, as only float32 can be
        return network
    symbolic = isinstance(getattr(network, "outputs", None), list)
    config = network.get_config() if symbolic else {}
    if "layers" not in config:
        raise UserError(
            f"precision: expected {', '.join(sorted(policies))} (a {type(network).__name__} is "
            f"no functional or Sequential network, which alone is copied), received {precision!r}; "
            f"build it under keras.config.set_dtype_policy({precision!r}), its last layer with "
            "dtype='float32'"
        )
    outputs = {output.name for output in _output_layers(network)}
    for layer in config["layers"]:
        policy = "float32" if layer["config"].get("name") in outputs else precision
        layer["config"] = _replace_policy(layer["config"], policy)
    copy = type(network).from_config(config)
    copy.set_weights(network.get_weights())
    return copy


def _output_layers(network: keras.Model) -> list[keras.Layer]:
    return [operation_of(tensor) for tensor in network.outputs]


def _replace_policy(config: Any, policy: str) -> Any:
    if isinstance(config, dict):
        if config.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
            return keras.saving.serialize_keras_object(keras.DTypePolicy(policy))
        return {key: _replace_policy(value, policy) for key, value in config.items()}
    if isinstance(config, list):
        return [_replace_policy(value, policy) for value in config]
    return config
