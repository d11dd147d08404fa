"""AWP: adversarial weight perturbation (Wu et al., 2020, arXiv:2004.05884)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust.errors import require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.methods.table import Table
from tfrobust.registry import located, parameters, resolve
from tfrobust.serialization import serializable


@serializable
class Awp(RobustModel):
    """Another method's loss at weights that were first moved to make it worse.

    Each kernel w (a weight of more than one axis, but no scale or offset) moves by
    gamma * ||w|| * g / ||g||, g the gradient of that loss on the same adversaries; the step is then
    taken from where they were.

    method: a name (but not `free`, which has a training step of its own), or a mapping with `name`
    and the settings of its own; all other arguments go to it too. gamma: the authors take 0.01 for
    ADV and 0.005 for TRADES. warmup_epochs: how long the weights are not moved.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        method: str | dict[str, Any] = "adv",
        gamma: float = 0.01,
        warmup_epochs: int = 0,
        **kwargs: Any,
    ):
        from tfrobust.methods import METHODS  # which holds this class

        others = {name: made for name, made in METHODS.items() if name not in ("awp", "free")}
        maker = resolve(others, method, "method", tuple(parameters(RobustModel)))
        inner = located("method", maker, network, **kwargs | {"ema": 0.0})
        self.method, self.gamma, self.warmup_epochs = method, gamma, warmup_epochs
        for name in (
            "reports",
            "requires",
            "needs",
            "network_inputs",
            "crafting_loss",
            "sizes_vary",
        ):
            setattr(self, name, getattr(inner, name))
        if inner.attack is None:
            self.default_attack = None
        if warmup_epochs:
            self.needs = (*self.needs, "steps_per_epoch")
        super().__init__(network, **kwargs | {"attack": inner.attack, "craft": inner.craft})
        require(gamma >= 0, "gamma", "a number >= 0", gamma)
        require(warmup_epochs >= 0, "warmup_epochs", "int >= 0", warmup_epochs)
        self.inner = inner

    def inputs(self, batch: Batch, x: tf.Tensor) -> Any:
        return self.inner.inputs(batch, x)

    def perturb(self, batch: Batch) -> Batch:
        return self.inner.perturb(batch)

    def robust_loss(self, batch: Batch) -> Batch:
        return self.inner.robust_loss(batch)

    def after_update(self, batch: Batch) -> None:
        self.inner.after_update(batch)
        self.inner.step.assign_add(1)

    def tables(self) -> dict[str, Table]:
        return self.inner.tables()

    def scalars(self) -> dict[str, Any]:
        return self.inner.scalars()

    def gradients(self, batch: Batch, penalised: bool = True) -> Any:
        with self.substituted({}):  # the averages of BatchNorm move once
            _, ascent, _ = super().gradients(batch, penalised=False)
        size = tf.constant(self.gamma)
        if self.warmup_epochs:
            size = tf.where(self.epoch < self.warmup_epochs, 0.0, size)
        moved = {}
        for k, (weight, own) in enumerate(
            zip(self.network.trainable_variables, ascent, strict=True)
        ):
            if own is not None and len(weight.shape) > 1 and weight.name not in ("gamma", "beta"):
                g = tf.distribute.get_replica_context().all_reduce("SUM", own)
                length = tf.norm(g)
                # Of a gradient that overflows (float16) there is no direction: stay.
                unit = tf.where(tf.math.is_finite(length), tf.math.divide_no_nan(g, length), 0.0)
                moved[k] = weight.value + size * tf.norm(weight.value) * unit
        with self.substituted(moved) as scope:
            found = super().gradients(batch, penalised)
        for variable in self.network.non_trainable_variables:
            variable.assign(scope.get_current_value(variable))
        return found
