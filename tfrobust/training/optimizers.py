"""Optimizers by name, with the arguments that papers tune."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

from tfrobust.errors import number
from tfrobust.methods.decay import is_kernel
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


def muon(
    learning_rate: float = 0.01, weight_decay: float = 0.06, adam_lr_ratio: float = 0.1
) -> keras.optimizers.Optimizer:
    """Return Muon, which moves a kernel by an orthogonal matrix (Jordan et al., 2024).

    The step of a kernel has a root mean square of about 0.2 times the rate (arXiv:2502.16982).
    Biases, the weights of normalisations and the layer "logits" are trained by Adam.

    Args:
        weight_decay: The decoupled weight decay of the kernels that Muon moves. The other weights
            have none. It replaces the method's `l2`, whose gradient would only turn the steps.
        adam_lr_ratio: The rate of Adam, as a fraction of the learning rate.
    """
    return Muon(
        learning_rate,
        weight_decay=number("weight_decay", weight_decay, at_least=0),
        adam_weight_decay=0.0,
        adam_lr_ratio=number("adam_lr_ratio", adam_lr_ratio, at_least=0),
        exclude_layers=["logits"],
    )


@serializable
class Muon(keras.optimizers.Muon):
    """Keras's Muon, which also moves the kernels of convolutions.

    A kernel [H, W, C, D] is a matrix [H W C, D]. Keras leaves all but matrices to Adam. The matrix
    is made orthogonal in bfloat16, as in the code of Jordan et al.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        excluded = any(name in variable.path for name in self.exclude_layers)
        return excluded or not is_kernel(variable)

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        matrix = keras.ops.cast(keras.ops.reshape(x, (-1, x.shape[-1])), "bfloat16")
        orthogonal = super().zeropower_via_newtonschulz5(matrix, steps)
        return keras.ops.reshape(keras.ops.cast(orthogonal, x.dtype), x.shape)

    def lr_adjust(self, x: Any) -> Any:
        return x * (max(math.prod(x.shape[:-1]), x.shape[-1]) ** 0.5 * self.rms_rate)


OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "muon": muon,
    "sgd": sgd,
    "torch_sgd": torch_sgd,
}
