"""Loops that spend no forward or backward pass on examples that are already broken."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfrobust import noise
from tfrobust.norms import rows
from tfrobust.xla import has_fixed_shapes

State = dict[str, tf.Tensor]
Step = Callable[[tf.Tensor, State], State]
Hunt = Callable[[Step, State, Any], State]

_stand_in: contextvars.ContextVar[Hunt | None] = contextvars.ContextVar("stand_in", default=None)


def hunt(step: Step, state: State, steps: Any) -> State:
    """Call `step` up to `steps` times, each time on the examples that are not broken yet.

    An example keeps the state of the call that broke it, and leaves the batch. If XLA fixes the
    shapes, the batch keeps its size, and the rows of broken examples stay unchanged.

    Args:
        step: A function (number of the call, state of B' examples) -> their new state. In the
            state, "row" [B'] is the position of each example in the batch.
        state: Tensors whose first axis is the example; one of them is "broken", bool [B].
        steps: The number of calls, an integer or a scalar tensor.

    Returns:
        The final state of all examples, in their order.
    """
    step, stand_in = functools.partial(_at_its_rows, step), _stand_in.get()
    if stand_in is not None:
        return stand_in(step, state, steps)
    if has_fixed_shapes():
        row = tf.range(tf.shape(state["broken"])[0])
        return masked(step, state | {"row": row}, 0, steps)
    everything = dict(state)
    active = state | {"row": tf.range(tf.shape(state["broken"])[0])}

    def compact(everything: State, active: State) -> tuple[State, State]:
        standing = tf.where(~active["broken"])[:, 0]
        remaining = {k: tf.gather(v, standing) for k, v in active.items()}
        return written(everything, active), remaining

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
    return written(everything, active)


def _at_its_rows(step: Step, i: tf.Tensor, state: State) -> State:
    with noise.standing(state["row"]):
        return step(i, state)


def written(everything: State, active: State) -> State:
    """Return the state of all examples after writing the rows of the active ones into it."""
    row = active["row"][:, None]
    return {k: tf.tensor_scatter_nd_update(v, row, active[k]) for k, v in everything.items()}


@contextlib.contextmanager
def standing_in(stand_in: Hunt) -> Iterator[None]:
    """Replace the first call of `hunt` in this context by a call of another function."""

    def once(step: Step, state: State, steps: Any) -> State:
        _stand_in.set(None)
        return stand_in(step, state, steps)

    token = _stand_in.set(once)
    try:
        yield
    finally:
        _stand_in.reset(token)


def masked(step: Step, state: State, first: Any, last: Any) -> State:
    """Call the `step` of `hunt` on all examples, from call number `first` to `last` - 1.

    The rows of broken examples stay unchanged.
    """

    def body(i: tf.Tensor, before: State) -> tuple[tf.Tensor, State]:
        after, broken = step(i, before), before["broken"]
        return i + 1, {k: tf.where(rows(broken, v), v, after[k]) for k, v in before.items()}

    return tf.while_loop(
        lambda i, s: (i < last) & tf.reduce_any(~s["broken"]),
        body,
        (tf.convert_to_tensor(first), state),
        parallel_iterations=1,
    )[1]


def take_rows(value: Any, row: tf.Tensor) -> Any:
    """Return these rows of a tensor with a value for each example, or any other value unchanged."""
    return tf.gather(value, row) if tf.is_tensor(value) and value.shape.rank else value
