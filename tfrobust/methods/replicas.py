"""Training on several replicas: gradients of the whole batch, and what Keras cannot do there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrobust._compat import layers_of
from tfrobust.errors import UserError, require


def for_optimizer(optimizer: Any, gradients: Sequence[Any]) -> Sequence[Any]:
    """Return a replica's gradients so that an optimizer can clip or scale them.

    Keras clips gradients, and looks whether they are finite, before it sums those of the replicas.
    Then each replica would clip its part of the gradient. So the first replica gets the sums, and
    the others get zeros, or NaN where a sum is not finite.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1 or not _looks_at_all(optimizer):
        return gradients
    is_first = tf.equal(context.replica_id_in_sync_group, 0)

    def part(gradient: Any) -> Any:
        if gradient is None:
            return None
        total = context.all_reduce("SUM", tf.convert_to_tensor(gradient))
        return tf.where(is_first, total, 0 * total)

    return [part(gradient) for gradient in gradients]


def _looks_at_all(optimizer: Any) -> bool:
    """Return whether an optimizer clips gradients, or scales the loss and asks for finite ones."""
    if hasattr(optimizer, "inner_optimizer"):
        return True
    limits = (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue)
    return any(limit is not None for limit in limits)


def check_steps(model: Any) -> None:
    """Raise a UserError for several steps at once, which Keras cannot take on several replicas."""
    replicas, steps = model.distribute_strategy.num_replicas_in_sync, model.steps_per_execution
    expected = f"1 on {replicas} replicas (Keras takes several steps at once only on one)"
    require(replicas == 1 or steps == 1, "steps_per_execution", expected, steps)


def check_optimizer(model: Any) -> None:
    """Raise a UserError if an optimizer does what Keras cannot do on several replicas."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    steps = optimizer.gradient_accumulation_steps
    expected = f"None on {replicas} replicas (Keras accumulates gradients only on one)"
    require(replicas == 1 or not steps, "gradient_accumulation_steps", expected, steps)
    steps = optimizer.use_ema and optimizer.ema_overwrite_frequency
    expected = f"None on {replicas} replicas (Keras overwrites weights by averages only on one)"
    require(replicas == 1 or not steps, "ema_overwrite_frequency", expected, steps)


@contextlib.contextmanager
def refusals(model: Any) -> Iterator[None]:
    """Turn Keras's error on statistics that replicas cannot sum in a loop into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if "merge_call" not in str(error) or not sum_statistics(model.network):
            raise
        raise UserError(
            "network: expected BatchNorm with the statistics of each replica, or craft='eval', as "
            "several replicas cannot sum statistics within the loop of an attack"
        ) from None


def sum_statistics(network: keras.Model) -> bool:
    """Return whether replicas sum the statistics of BatchNorm within a pass."""
    return any(getattr(layer, "synchronized", False) for layer in layers_of(network))
