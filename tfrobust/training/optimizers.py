"""Optimizers by name, with the arguments that papers tune."""

from __future__ import annotations

from collections.abc import Callable

import keras


def sgd(
    learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False
) -> keras.optimizers.Optimizer:
    """Keras's SGD. For the papers' coupled weight decay see `l2` of the methods."""
    return keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=nesterov)


def adam(
    learning_rate: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999
) -> keras.optimizers.Optimizer:
    """Keras's Adam."""
    return keras.optimizers.Adam(learning_rate, beta_1=beta_1, beta_2=beta_2)


def adamw(learning_rate: float = 0.001, weight_decay: float = 0.004) -> keras.optimizers.Optimizer:
    """Keras's AdamW; its weight decay is decoupled."""
    return keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
}
