"""The gradients of several replicas, for an optimizer that looks at those of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrobust.errors import require


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


def check(model: Any) -> None:
    """Raise a UserError for what Keras cannot do on several replicas."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas == 1:
        return
    expected = f"1 on {replicas} replicas (Keras takes several steps at once only on one)"
    steps = model.steps_per_execution
    require(steps == 1, "steps_per_execution", expected, steps)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    steps = optimizer.gradient_accumulation_steps
    expected = f"None on {replicas} replicas (Keras accumulates gradients only on one)"
    require(not steps, "gradient_accumulation_steps", expected, steps)
