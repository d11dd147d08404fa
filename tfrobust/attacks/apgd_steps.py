"""How APGD moves: two rules, each with its state per example.

begin(start, x): the rule's state. adapt(k, s, value, gradient): the state and the gradient to move
on with after the look at iterate k. move(k, s, gradient): the state at the next iterate.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust.attacks.compaction import State
from tfrobust.norms import rows
from tfrobust.threat import Threat

MOMENTUM = 0.25
# L1: less than this share of the coordinates is clearly fewer; how many coordinates the best image
# has changed for each one of a step; what a step shrinks by.
FEWER, SPREAD, SHRINK = 0.95, 1.5, 1.5


@dataclasses.dataclass(frozen=True)
class Halving:
    """Linf and L2: steps with momentum, halved at checkpoints.

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
            "rises": zeros,  # how often it rose since the last checkpoint
            "record": zeros,  # the highest loss at the last checkpoint
            "halved": zeros == 0,  # there
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
    """L1: x_{k+1} = P(x_k + step * sign(g) / m) over the m coordinates of largest |g|.

    m is 2/3 of how many coordinates the best image has changed. At a checkpoint the step is eps
    again if these have become clearly fewer, and smaller by 1.5, down to eps / 10, if not.
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
    """At 0 to `steps`: how many steps the checkpoint there looks back on; 0 where there is none.

    They shrink from 22 % of the steps by 3 % each to 6 %: 22, 19, 16, 13, 10, 7, 6, 6 of 100.
    """
    lengths = [0] * (steps + 1)
    interval = at = max(22 * steps // 100, 1)
    while at <= steps:
        lengths[at] = interval
        interval = max(interval - max(3 * steps // 100, 1), max(6 * steps // 100, 1))
        at += interval
    return lengths


def changed(x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """How many coordinates differ, as a float [B]."""
    differs = tf.cast(tf.not_equal(x_adv, x), x.dtype)
    return tf.reduce_sum(differs, axis=list(range(1, len(x.shape))))


def sparse_sign(gradient: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The signs of the `count` [B] largest entries of |gradient|, of L1 norm 1, 0 elsewhere."""
    flat = tf.reshape(gradient, [tf.shape(gradient)[0], -1])
    flat = tf.where(tf.math.is_nan(flat), tf.zeros_like(flat), flat)
    size = tf.abs(flat)
    largest = tf.math.top_k(size, tf.reduce_max(count)).values
    least = tf.gather(largest, count - 1, batch_dims=1)[:, None]
    signs = tf.where(size >= least, tf.sign(flat), tf.zeros_like(flat))
    unit = tf.math.divide_no_nan(signs, tf.reduce_sum(tf.abs(signs), axis=1, keepdims=True))
    return tf.reshape(unit, tf.shape(gradient))
