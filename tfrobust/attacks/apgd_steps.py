"""The two rules by which APGD moves: `Halving` for Linf and L2, and `Sparse` for L1.

Both keep a state for each example, and have the same three functions:

- begin(start, x) returns the state at the start of an ascent.
- adapt(k, s, value, gradient) is called once iterate k has been evaluated. It returns the adapted
  state, and the gradient along which to move.
- move(k, s, gradient) returns the state at the next iterate.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust.attacks.compaction import State
from tfrobust.norms import rows
from tfrobust.threat import Threat

MOMENTUM = 0.25
# The constants of `Sparse`. The best image has changed clearly fewer coordinates if their number is
# below FEWER times the former one. A step moves 1 / SPREAD of that number. SHRINK divides its size.
FEWER, SPREAD, SHRINK = 0.95, 1.5, 1.5


@dataclasses.dataclass(frozen=True)
class Halving:
    """The rule for Linf and L2: steps with momentum, which are halved at checkpoints.

    x_{k+1} = P(x_k + 0.75 (P(x_k + step * steepest) - x_k) + 0.25 (x_k - x_{k-1})).
    """

    threat: Threat
    steps: int
    rho: float

    def begin(self, start: tf.Tensor, x: tf.Tensor) -> State:
        zeros = tf.zeros(tf.shape(x)[:1])
        return {
            "before": start,
            "step": zeros + 2 * self.threat.eps,
            "last": zeros,  # the loss at the iterate before
            "rises": zeros,  # the number of rises of the loss since the last checkpoint
            "record": zeros,  # the highest loss up to the last checkpoint
            "halved": zeros == 0,  # whether the step was halved at the last checkpoint
        }

    def adapt(
        self, k: tf.Tensor, s: State, value: tf.Tensor, gradient: tf.Tensor
    ) -> tuple[State, tf.Tensor]:
        # For parity with the public implementation the loss of iterate 1 counts as a rise when it
        # is above 0, not above the start's, and the first checkpoint does not ask for progress.
        counted = tf.cast((value > s["last"]) & (k > 0), value.dtype)
        last = tf.where(k > 0, value, s["last"])
        s = s | {"rises": s["rises"] + counted, "last": last}
        interval = tf.gather(intervals(self.steps), k)

        def check() -> tuple[State, tf.Tensor]:
            stopped = ~s["halved"] & (s["record"] >= s["value"])
            halve = stopped | (s["rises"] <= self.rho * tf.cast(interval, value.dtype))
            back = rows(halve, gradient)
            adapted = {
                "x_adv": tf.where(back, s["best"], s["x_adv"]),
                "step": tf.where(halve, 0.5 * s["step"], s["step"]),
                "rises": tf.zeros_like(s["rises"]),
                "record": s["value"],
                "halved": halve,
            }
            return s | adapted, tf.where(back, s["best_gradient"], gradient)

        return tf.cond(interval > 0, check, lambda: (s, gradient))

    def move(self, k: tf.Tensor, s: State, gradient: tf.Tensor) -> State:
        here, x = s["x_adv"], s["x"]
        step = rows(s["step"], x) * self.threat.steepest(gradient)
        ascent = self.threat.project(here + step, x) - here
        momentum = tf.where(k > 0, MOMENTUM, 0.0)
        moved = here + (1 - momentum) * ascent + momentum * (here - s["before"])
        return s | {"x_adv": self.threat.project(moved, x), "before": here}


@dataclasses.dataclass(frozen=True)
class Sparse:
    """The rule for L1: x_{k+1} = P(x_k + step * sign(g) / m) over the m coordinates of largest |g|.

    m is 2/3 of the number of coordinates in which the best image differs from the clean one. If
    this number is clearly smaller than at the last checkpoint, the search goes back to the best
    image and the step is eps again. If not, the step is divided by 1.5, down to eps / 10.
    """

    threat: Threat
    steps: Any

    def begin(self, start: tf.Tensor, x: tf.Tensor) -> State:
        count = changed(start, x)
        return {"step": tf.zeros_like(count) + self.threat.eps, "changed": count}

    def adapt(
        self, k: tf.Tensor, s: State, value: tf.Tensor, gradient: tf.Tensor
    ) -> tuple[State, tf.Tensor]:
        every = tf.maximum(4 * self.steps // 100, 1)

        def check() -> tuple[State, tf.Tensor]:
            now, eps = changed(s["best"], s["x"]), tf.cast(self.threat.eps, gradient.dtype)
            fewer = now < FEWER * s["changed"]
            back = rows(fewer, gradient)
            adapted = {
                "x_adv": tf.where(back, s["best"], s["x_adv"]),
                "step": tf.where(fewer, eps, tf.maximum(s["step"] / SHRINK, eps / 10)),
                "changed": now,
            }
            return s | adapted, tf.where(back, s["best_gradient"], gradient)

        return tf.cond((k > 0) & tf.equal(k % every, 0), check, lambda: (s, gradient))

    def move(self, k: tf.Tensor, s: State, gradient: tf.Tensor) -> State:
        count = tf.maximum(tf.cast(tf.math.ceil(s["changed"] / SPREAD), tf.int32), 1)
        threat = self.threat
        direction = threat.from_ball(sparse_sign(threat.from_ball(gradient), count))
        moved = threat.project(s["x_adv"] + rows(s["step"], gradient) * direction, s["x"])
        return s | {"x_adv": moved}


def intervals(steps: int) -> list[int]:
    """Return, for each iterate from 0 to `steps`, the interval that ends there; 0 if none does.

    An interval is the number of steps between two checkpoints. The intervals shrink from 22 % of
    the steps by 3 % each to 6 %: 22, 19, 16, 13, 10, 7, 6, 6 of 100 steps.
    """
    lengths = [0] * (steps + 1)
    interval = at = max(22 * steps // 100, 1)
    while at <= steps:
        lengths[at] = interval
        interval = max(interval - max(3 * steps // 100, 1), max(6 * steps // 100, 1))
        at += interval
    return lengths


def changed(x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return the number of coordinates in which x_adv differs from x, a float [B]."""
    differs = tf.cast(tf.not_equal(x_adv, x), x.dtype)
    return tf.reduce_sum(differs, axis=list(range(1, len(x.shape))))


def sparse_sign(gradient: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Return the signs of the `count` [B] largest entries of |gradient|, scaled to an L1 norm of 1.

    All other entries are 0.
    """
    flat = tf.reshape(gradient, [tf.shape(gradient)[0], -1])
    flat = tf.where(tf.math.is_nan(flat), tf.zeros_like(flat), flat)
    size = tf.abs(flat)
    largest = tf.math.top_k(size, tf.reduce_max(count)).values
    least = tf.gather(largest, count - 1, batch_dims=1)[:, None]
    signs = tf.where(size >= least, tf.sign(flat), tf.zeros_like(flat))
    unit = tf.math.divide_no_nan(signs, tf.reduce_sum(tf.abs(signs), axis=1, keepdims=True))
    return tf.reshape(unit, tf.shape(gradient))
