"""Optimizers by name, with the arguments that papers tune."""

from __future__ import annotations

from collections.abc import Callable

import keras

from tfrobust.errors import require


def sgd(
    learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False
) -> keras.optimizers.Optimizer:
    """Return Keras's SGD. For the papers' coupled weight decay see `l2` of the methods."""
    return keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=nesterov)


def adam(
    learning_rate: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999
) -> keras.optimizers.Optimizer:
    """Return Keras's Adam."""
    for name, value in (("beta_1", beta_1), ("beta_2", beta_2)):
        require(0 <= value < 1, name, "a number from 0 up to 1, exclusive", value)
    return keras.optimizers.Adam(learning_rate, beta_1=beta_1, beta_2=beta_2)


def adamw(learning_rate: float = 0.001, weight_decay: float = 0.004) -> keras.optimizers.Optimizer:
    """Return Keras's AdamW, whose weight decay is decoupled."""
    require(weight_decay >= 0, "weight_decay", "a number >= 0", weight_decay)
    return keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
}
