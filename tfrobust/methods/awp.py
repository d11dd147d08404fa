"""AWP: adversarial weight perturbation (Wu et al., 2020, arXiv:2004.05884)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust.errors import number, require, require_at_least
from tfrobust.methods import hooks
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.methods.decay import is_kernel
from tfrobust.methods.table import Table
from tfrobust.registry import located, parameters, resolve
from tfrobust.serialization import serializable

# Attributes that AWP takes from the other method.
TAKEN_OVER = (
    "reports",
    "requires",
    "needs",
    "network_inputs",
    "crafting_loss",
    "sizes_vary",
    "one_threat",
    "mixed_labels",
)


@serializable
class Awp(RobustModel):
    """Another method's loss, at weights that were first moved to raise it.

    Each kernel w (a weight of more than one axis that is no scale or offset) moves by
    gamma * ||w|| * g / ||g||, where g is the gradient of the loss on the same adversaries. The
    optimizer's step then starts from the weights before the move. BatchNorm's averages move at the
    moved weights, in the passes of the other method. (The authors pass x' before x for TRADES, and
    with ADV they craft with craft="train" and pass x once more after the step.)

    Args:
        method: The other method: its name, a mapping of its `name` and arguments, or a method
            object that is built on the same network. It can be any but `free`, which has a training
            step of its own. All arguments but `gamma` and `warmup_epochs` are passed on to it, and
            what is not given has its defaults, such as its `craft`; with an object they are taken
            from it instead, but not its state.
        gamma: The relative length of the move. The authors take 0.01 for ADV and 0.005 for TRADES.
        warmup_epochs: The number of epochs in which the weights are not moved.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        method: str | dict[str, Any] | RobustModel = "adv",
        gamma: float = 0.01,
        warmup_epochs: int = 0,
        **kwargs: Any,
    ):
        expected = "the network alone (another method goes into `method`)"
        require(not isinstance(network, RobustModel), "network", expected, network)
        if isinstance(method, RobustModel):
            expected = f"a name or a mapping beside {', '.join(kwargs)} (an object has its own)"
            require(not kwargs, "method", expected, type(method).__name__)
            shares = method.network is network
            expected = "an object built on the same network"
            require(shares, "method", expected, "one on another network")
            shared = [name for name in parameters(RobustModel) if name not in ("network", "name")]
            kwargs = {name: getattr(method, name) for name in shared} | {"threat": method.threats}
            method = _settings(method)
        maker = resolve(_others(), method, "method", tuple(parameters(RobustModel)))
        inner = located("method", maker, network, **kwargs | {"averaging": None})
        self.gamma = number("gamma", gamma, at_least=0)
        self.method, self.warmup_epochs = method, warmup_epochs
        for name in TAKEN_OVER:
            setattr(self, name, getattr(inner, name))
        if inner.attack is None:
            self.default_attack = None
        if warmup_epochs:
            self.needs = (*self.needs, "steps_per_epoch")
        super().__init__(network, **kwargs | {"attack": inner.attack, "craft": inner.craft})
        require_at_least(0, warmup_epochs=warmup_epochs)
        self.inner = inner

    def inputs(self, batch: Batch, x: tf.Tensor) -> Any:
        return self.inner.inputs(batch, x)

    def perturb(self, batch: Batch) -> Batch:
        return self.inner.perturb_under(self.threat, batch)

    def robust_loss(self, batch: Batch) -> Batch:
        return hooks.checked_terms(self.inner.robust_loss(batch), batch, self.inner)

    def after_update(self, batch: Batch) -> None:
        self.inner.after_update(batch)

    def count_step(self) -> None:
        super().count_step()
        self.inner.count_step()

    def tables(self) -> dict[str, Table]:
        return self.inner.tables()

    def scalars(self) -> dict[str, Any]:
        return self.inner.scalars()

    def gradients(self, batch: Batch, penalised: bool = True) -> Any:
        with self.substituted({}):  # BatchNorm's averages move only in the second pass
            _, ascent, _ = super().gradients(batch, penalised=False)
        with self.substituted(self._moved(ascent)) as scope:
            result = super().gradients(batch, penalised)
        for variable in self.network.non_trainable_variables:
            variable.assign(scope.get_current_value(variable))
        return result

    def _moved(self, gradients: list[tf.Tensor]) -> dict[int, tf.Tensor]:
        """Return the moved kernels, by their position among the trainable weights."""
        size = tf.constant(self.gamma)
        if self.warmup_epochs:
            size = tf.where(self.epoch < self.warmup_epochs, 0.0, size)
        moved = {}
        pairs = zip(self.network.trainable_variables, gradients, strict=True)
        for k, (weight, gradient) in enumerate(pairs):
            if gradient is None or not is_kernel(weight):
                continue
            g = tf.distribute.get_replica_context().all_reduce("SUM", gradient)
            length = tf.norm(g)
            # A gradient that overflows (float16) has no direction, so the weight stays.
            unit = tf.where(tf.math.is_finite(length), tf.math.divide_no_nan(g, length), 0.0)
            share = tf.cast(size, weight.dtype)
            moved[k] = weight.value + share * tf.norm(weight.value) * unit
        return moved


def _others() -> dict[str, type[RobustModel]]:
    """Return the methods whose loss AWP takes, by name."""
    from tfrobust.methods import METHODS  # it holds Awp

    return {name: method for name, method in METHODS.items() if name not in ("awp", "free")}


def _settings(method: RobustModel) -> dict[str, Any]:
    """Return a method object's name and the arguments that only its class has, as a mapping."""
    names = [name for name, kind in _others().items() if kind is type(method)]
    expected = f"one of {', '.join(_others())}"
    require(names, "method", expected, type(method).__name__)
    settings: dict[str, Any] = {"name": names[0]}
    for name in sorted(parameters(type(method)).keys() - parameters(RobustModel).keys()):
        value = getattr(method, name)
        settings[name] = list(value) if isinstance(value, list) else value  # Keras tracks lists
    return settings
