"""Attacks compiled by XLA: their loop runs in stages, between which broken examples leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.attacks.base import Outcome
from tfrobust.attacks.compaction import State, Step, masked, standing_in, written
from tfrobust.xla import compiled

STAGES = 10  # into which an attack's loop is cut
HALVINGS = 3  # of the batch size: the number of smaller sizes that are compiled


class _Stopped(Exception):
    """Ends the tracing of an attack at its loop."""

    def __init__(self, *values: Any):
        self.values = values


class Staged:
    """A compiled function (images, labels, number) -> Outcome, for batches up to one size.

    Few shapes are compiled: a batch is filled up to the batch size, a half, a quarter or an eighth
    of it, and shrinks to a smaller one of these as examples leave, which they do after each tenth
    of the attack's loop. An attack without `hunt` is compiled as a whole. The noise is that of the
    full batch.
    """

    def __init__(self, run: Callable[..., Outcome], batch_size: int):
        self.run = run
        self.sizes = sorted({-(-batch_size // 2**k) for k in range(HALVINGS + 1)})
        self._begin = compiled(self._traced_begin)
        self._stage = compiled(self._traced_stage)
        self._end = compiled(self._traced_end)

    def __call__(self, images: np.ndarray, labels: np.ndarray, number: int) -> Outcome:
        n = len(images)
        filled = np.arange(self._size(n)) % n
        batch = (tf.constant(images[filled]), tf.constant(labels[filled]), tf.constant(number))
        begun = self._begin(*batch)
        if isinstance(begun, Outcome):
            return Outcome(*(part[:n] for part in begun))
        state, steps = begun
        everything = state | {"broken": state["broken"] | (tf.range(len(filled)) >= n)}
        active = everything | {"row": tf.range(len(filled))}
        steps = int(steps)
        stage = max(1, -(-steps // STAGES))
        for first in range(0, steps, stage):
            broken = active["broken"].numpy()
            if broken.all():
                break
            if (size := self._size(int((~broken).sum()))) < len(broken):
                everything = written(everything, active)
                kept = np.argsort(broken, kind="stable")[:size]
                active = {k: tf.gather(v, kept) for k, v in active.items()}
            last = min(first + stage, steps)
            active = self._stage(*batch, active, tf.constant(first), tf.constant(last))
        outcome = self._end(*batch, written(everything, active))
        return Outcome(*(part[:n] for part in outcome))

    def _size(self, n: int) -> int:
        """Return the smallest size that holds n examples."""
        return next(size for size in self.sizes if size >= n)

    def _traced_begin(self, *batch: tf.Tensor) -> Any:
        """Return the initial state of the loop and its number of steps, or the outcome if there is
        no loop."""

        def stop(_: Step, state: State, steps: Any) -> State:
            raise _Stopped(state, tf.convert_to_tensor(steps))

        return self._until_stopped(stop, *batch)

    def _traced_stage(self, *arguments: Any) -> Any:
        *batch, active, first, last = arguments

        def stop(step: Step, _: State, __: Any) -> State:
            raise _Stopped(masked(step, active, first, last))

        return self._until_stopped(stop, *batch)[0]

    def _traced_end(self, *arguments: Any) -> Outcome:
        *batch, everything = arguments
        with standing_in(lambda *_: everything):
            return self.run(*batch)

    def _until_stopped(self, stand_in: Any, *batch: tf.Tensor) -> Any:
        try:
            with standing_in(stand_in):
                return self.run(*batch)
        except _Stopped as stopped:
            return stopped.values
