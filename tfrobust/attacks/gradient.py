"""The one core of the gradient attacks: projected steepest ascent with restarts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks.base import Attack, LogitsFn
from tfrobust.norms import per_example, rows
from tfrobust.registry import choose, require
from tfrobust.threat import Threat

LOSSES = ("cross_entropy", "kl", "margin")
STARTS = ("uniform", "normal", "none")
Evaluate = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class GradientAttack(Attack):
    """x_{k+1} = project(x_k + step * steepest(grad objective(x_k))).

    loss: what is ascended: "cross_entropy", "kl" (divergence from the clean prediction) or
        "margin"; None is cross entropy, or in training the method's own crafting loss.
    start: "uniform" in the ball, "normal" (0.001 * N(0, 1), as TRADES), or "none".
    """

    loss: str | None = None
    start: str = "uniform"

    def __post_init__(self) -> None:
        if self.loss is not None:
            choose("loss", self.loss, LOSSES)
        choose("start", self.start, STARTS)
        require(
            not (self.loss == "kl" and self.start == "none"),
            "start",
            "a random one with loss kl, whose gradient is 0 at the image itself",
            self.start,
        )

    # What a subclass says, as fields or properties.
    @property
    def schedule(self) -> tuple[int, int, bool]:
        """(steps, restarts, whether an example is kept at its first misclassified iterate)."""
        raise NotImplementedError

    def step(self, eps: Any) -> Any:
        """Step size in image units, for a scalar or [B] eps."""
        raise NotImplementedError

    def settings(self, threat: Threat) -> dict[str, Any]:
        """As everywhere, with the loss and the step size (image units) that defaults stand for."""
        used = {"loss": self.loss or "cross_entropy", "step_size": self.step(threat.eps)}
        return super().settings(threat) | used

    def __call__(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> tf.Tensor:
        name = self.loss or "cross_entropy"
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)
        target = tf.stop_gradient(logits_fn(x)) if name == "kl" else y
        loss = getattr(losses, name)

        def evaluate(x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = logits_fn(x_adv)
            return loss(logits, target), tf.logical_not(losses.correct(logits, y))

        return self._search(evaluate, x, threat, seed)

    def maximise(
        self,
        objective: Callable[[tf.Tensor], tf.Tensor],
        x: tf.Tensor,
        *,
        threat: Threat,
        seed: Any,
    ) -> tf.Tensor:
        """Images that maximise `objective`: [B, H, W, C] -> [B]; success plays no part."""

        def evaluate(x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            value = objective(x_adv)
            return value, tf.zeros_like(value, tf.bool)

        return self._search(evaluate, x, threat, seed)

    def _search(self, evaluate: Evaluate, x: tf.Tensor, threat: Threat, seed: Any) -> tf.Tensor:
        _, restarts, _ = self.schedule
        best = self._ascend(evaluate, x, threat, noise.fold(seed, 0))
        if restarts > 1:
            best = self._restart(evaluate, x, threat, seed, best)
        return tf.stop_gradient(best)

    def _restart(
        self, evaluate: Evaluate, x: tf.Tensor, threat: Threat, seed: Any, first: tf.Tensor
    ) -> tf.Tensor:
        """The restart that broke the example, else the one of highest loss."""

        def body(i: tf.Tensor, best: Any, value: Any, broken: Any) -> Any:
            x_adv = self._ascend(evaluate, x, threat, noise.fold(seed, i))
            new_value, new_broken = evaluate(x_adv)
            better = ~broken & (new_broken | (new_value > value))
            return (
                i + 1,
                tf.where(rows(better, best), x_adv, best),
                tf.where(better, new_value, value),
                broken | new_broken,
            )

        state = (tf.constant(1), first, *evaluate(first))
        return tf.while_loop(
            lambda i, *_: i < self.schedule[1], body, state, parallel_iterations=1
        )[1]

    def _ascend(self, evaluate: Evaluate, x: tf.Tensor, threat: Threat, seed: Any) -> tf.Tensor:
        steps, _, keep_broken = self.schedule
        step = per_example(self.step(threat.eps), x)

        def body(i: tf.Tensor, x_adv: tf.Tensor) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x_adv)
                value, broken = evaluate(x_adv)
                total = tf.reduce_sum(value)
            gradient = tape.gradient(total, x_adv)
            moved = threat.project(x_adv + step * threat.steepest(gradient), x)
            if keep_broken:  # the start is no step of the attack: it does not count as a success
                moved = tf.where(rows(broken & (i > 0), x), x_adv, moved)
            return i + 1, moved

        state = (tf.constant(0), self._begin(x, threat, seed))
        if steps == 1:
            return body(*state)[1]
        return tf.while_loop(lambda i, _: i < steps, body, state, parallel_iterations=1)[1]

    def _begin(self, x: tf.Tensor, threat: Threat, seed: Any) -> tf.Tensor:
        if self.start == "uniform":
            return threat.random_start(x, seed)
        if self.start == "normal":
            draw = tf.ensure_shape(noise.normal(tf.shape(x), seed), x.shape)
            return threat.project(x + 0.001 * draw, x)
        return x
