"""Backward pass differentiable approximation (Athalye et al., 2018, arXiv:1802.00420)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust._compat import after_layers
from tfrobust.attacks.base import LogitsFn, Outcome
from tfrobust.attacks.wrapper import Wrapper
from tfrobust.errors import UserError, choose, require
from tfrobust.serialization import serializable
from tfrobust.threat import Threat

IDENTITY = "linear"  # Keras's name of the identity among its activations


@serializable
@dataclasses.dataclass(frozen=True)
class BPDA(Wrapper):
    """An attack on a network in which some layers get the gradient of another function.

    The layer f is computed as it is, and is differentiated as its stand-in g. So attacks see
    through layers without a useful gradient.

    The record of an evaluation knows a function by its name alone. After a change of a stand-in,
    evaluate into the same folder with `rerun=True`.

    Args:
        attack: The attack, an Attack, or its name and settings as in a config. It must follow
            gradients of the attacked network.
        layers: The names of layers of the Keras network, at any depth, whose stand-in is the
            identity, such as `[quantise]`; or a mapping from their names to stand-ins, such as
            `{k_winners: relu}`. A stand-in is the name of an activation of Keras or a function of
            the layer's input. Its output must have the shape of the layer's or broadcast to it.
    """

    attack: Any
    layers: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "one that follows gradients of the attacked network"
        require(self.attack.needs_gradients, "attack", expected, self.attack.title)
        layers = self.layers.items() if isinstance(self.layers, Mapping) else self.layers
        expected = "a list of the names of layers, or a mapping from names to stand-ins"
        require(layers and not isinstance(layers, str), "layers", expected, self.layers)
        pairs = tuple((entry, IDENTITY) if isinstance(entry, str) else entry for entry in layers)
        fits = all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs)
        require(fits, "layers", expected, self.layers)
        object.__setattr__(self, "layers", tuple((name, g) for name, g in pairs))
        for name, stand_in in self.layers:
            require(isinstance(name, str), "layers", expected, name)
            try:
                keras.activations.get(stand_in)
            except ValueError:
                activations = "a function or an activation of Keras, such as relu"
                require(False, f"layers.{name}", activations, stand_in)

    @property
    def title(self) -> str:
        return f"{self.attack.title} BPDA {', '.join(name for name, _ in self.layers)}"

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the settings, with the names of the stand-ins."""
        names = {
            name: getattr(g, "__name__", type(g).__name__) if callable(g) else g
            for name, g in self.layers
        }
        return super().settings(threat) | {"layers": names}

    def check_network(self, logits_fn: LogitsFn, images: np.ndarray) -> None:
        """Raise a UserError if the network has no such layer, or a stand-in does not fit."""
        self.differentiable(logits_fn)(tf.constant(images[:1]))
        super().check_network(logits_fn, images)

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        logits_fn = self.differentiable(logits_fn)
        return self.attack.outcome(logits_fn, x, y, threat=threat, seed=seed)

    def differentiable(self, logits_fn: LogitsFn) -> LogitsFn:
        """Return the network with the gradients of the stand-ins."""
        stand_ins = {name: keras.activations.get(g) for name, g in self.layers}

        def logits(images: tf.Tensor) -> tf.Tensor:
            called: set[str] = set()
            misfits: list[UserError] = []

            def after(layer: keras.Layer, inputs: tuple[Any, ...], outputs: Any) -> Any:
                called.add(layer.name)
                stand_in = stand_ins.get(layer.name)
                try:
                    return outputs if stand_in is None else replaced(stand_in, inputs, outputs)
                except UserError as error:  # raised below, as Keras adds lines to it here
                    misfits.append(UserError(f"layers.{layer.name}: {error}"))
                    return outputs

            with after_layers(after):
                values = logits_fn(images)
            expected = "a Keras network, not a tf.function of one"
            require(called, "layers", expected, "one that calls no layer")
            for name in stand_ins:
                choose("layers", name, called)
            for misfit in misfits:
                raise misfit
            return values

        return logits


def replaced(stand_in: Callable[..., Any], inputs: tuple[Any, ...], outputs: Any) -> tf.Tensor:
    """Return the outputs of a layer with the gradient of its stand-in. Raises UserError."""
    if len(inputs) != 1 or not tf.is_tensor(inputs[0]) or not tf.is_tensor(outputs):
        raise UserError("expected a layer of one input and one output")
    value = tf.cast(stand_in(inputs[0]), outputs.dtype)
    try:
        shape = tf.broadcast_static_shape(value.shape, outputs.shape)
        fits = shape.is_compatible_with(outputs.shape)
    except ValueError:
        fits = False
    if not fits:
        expected = f"outputs of the shape {outputs.shape} of the layer's"
        raise UserError(f"expected a stand-in with {expected}, received {value.shape}")
    return _differentiated_as(tf.broadcast_to(value, tf.shape(outputs)), outputs)


@tf.custom_gradient
def _differentiated_as(stand_in: tf.Tensor, outputs: tf.Tensor) -> Any:
    """Return the outputs, with the gradient of the stand-in, whose values need not be finite."""
    return tf.identity(outputs), lambda gradient: (gradient, None)
