"""Optimizers by name, with the arguments that papers tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfrobust.errors import number
from tfrobust.serialization import serializable


def sgd(
    learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False
) -> keras.optimizers.Optimizer:
    """Return Keras's SGD. For the papers' coupled weight decay see `l2` of the methods.

    Its velocity v <- m v - rate * g contains the rates of past steps; see `torch_sgd`.
    """
    return keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=nesterov)


def torch_sgd(
    learning_rate: float = 0.01, momentum: float = 0.9, nesterov: bool = False
) -> keras.optimizers.Optimizer:
    """Return SGD with the momentum of torch, in which almost all papers were trained.

    v <- m v + g; w <- w - rate * v. At a constant rate this is Keras's SGD. When the rate drops,
    all further steps are at the new rate. Keras's velocity still contains the old rate, and makes
    steps that are too long by a share that falls as m^k.
    """
    return TorchSGD(learning_rate, momentum=momentum, nesterov=nesterov)


@serializable
class TorchSGD(keras.optimizers.SGD):
    """SGD as `torch_sgd` describes it, with coupled Nesterov momentum w <- w - rate (g + m v)."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        rate = keras.ops.cast(learning_rate, variable.dtype)
        g = keras.ops.cast(gradient, variable.dtype)
        if self.momentum:
            velocity = self.momentums[self._get_variable_index(variable)]
            self.assign(velocity, self.momentum * velocity.value + g)
            g = g + self.momentum * velocity.value if self.nesterov else velocity.value
        self.assign_sub(variable, rate * g)


def adam(
    learning_rate: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999
) -> keras.optimizers.Optimizer:
    """Return Keras's Adam."""
    return keras.optimizers.Adam(
        learning_rate,
        beta_1=number("beta_1", beta_1, at_least=0, below=1),
        beta_2=number("beta_2", beta_2, at_least=0, below=1),
    )


def adamw(learning_rate: float = 0.001, weight_decay: float = 0.004) -> keras.optimizers.Optimizer:
    """Return Keras's AdamW, whose weight decay is decoupled."""
    weight_decay = number("weight_decay", weight_decay, at_least=0)
    return keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
    "torch_sgd": torch_sgd,
}
