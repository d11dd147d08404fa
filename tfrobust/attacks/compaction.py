"""No passes for examples that are already broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfrobust.norms import rows
from tfrobust.xla import has_fixed_shapes

State = dict[str, tf.Tensor]


def hunt(step: Callable[[tf.Tensor, State], State], state: State, steps: Any) -> State:
    """Up to `steps` calls of `step`, each on the examples not yet broken; all examples in the end.

    state: tensors whose first axis is the example, "broken" [B] among them. step(i, state) gets
    the rows that stand, with their places in the batch as "row" [B'], and returns the same keys.
    An example leaves with the state of the call that broke it, in the order it came. Where shapes
    are fixed it stays, and its rows are not written any more.
    """
    if has_fixed_shapes():
        return _masked(step, state, steps)
    everything = dict(state)
    active = state | {"row": tf.range(tf.shape(state["broken"])[0])}

    def write(everything: State, active: State) -> State:
        rows = active["row"][:, None]
        return {k: tf.tensor_scatter_nd_update(v, rows, active[k]) for k, v in everything.items()}

    def compact(everything: State, active: State) -> tuple[State, State]:
        standing = tf.where(~active["broken"])[:, 0]
        left = {k: tf.gather(v, standing) for k, v in active.items()}
        return write(everything, active), left

    def body(i: tf.Tensor, everything: State, active: State) -> Any:
        everything, active = tf.cond(
            tf.reduce_any(active["broken"]),
            lambda: compact(everything, active),
            lambda: (everything, active),
        )
        return i + 1, everything, step(i, active)

    def unfinished(i: tf.Tensor, _: State, active: State) -> tf.Tensor:
        return (i < steps) & tf.reduce_any(~active["broken"])

    invariants = (
        tf.TensorShape([]),
        {k: v.shape for k, v in everything.items()},
        {k: tf.TensorShape([None]).concatenate(v.shape[1:]) for k, v in active.items()},
    )
    _, everything, active = tf.while_loop(
        unfinished,
        body,
        (tf.constant(0), everything, active),
        shape_invariants=invariants,
        parallel_iterations=1,
    )
    return write(everything, active)


def _masked(step: Callable[[tf.Tensor, State], State], state: State, steps: Any) -> State:
    """What `hunt` returns, every call on all examples."""
    row = tf.range(tf.shape(state["broken"])[0])

    def body(i: tf.Tensor, before: State) -> tuple[tf.Tensor, State]:
        after = step(i, before | {"row": row})
        left = before["broken"]
        return i + 1, {k: tf.where(rows(left, v), v, after[k]) for k, v in before.items()}

    return tf.while_loop(
        lambda i, s: (i < steps) & tf.reduce_any(~s["broken"]),
        body,
        (tf.constant(0), state),
        parallel_iterations=1,
    )[1]


def taken(value: Any, row: tf.Tensor) -> Any:
    """The rows of a tensor with one value per example; a scalar or a number as it is."""
    return tf.gather(value, row) if tf.is_tensor(value) and value.shape.rank else value
