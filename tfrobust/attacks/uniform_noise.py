"""Uniform noise, which every other attack must beat."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks.base import Attack, LogitsFn, Outcome
from tfrobust.attacks.compaction import State, hunt
from tfrobust.errors import require_at_least
from tfrobust.norms import rows
from tfrobust.serialization import serializable
from tfrobust.threat import Threat


@serializable
@dataclasses.dataclass(frozen=True)
class UniformNoise(Attack):
    """Uniform draws from the ball, clipped to the box, up to the first that is misclassified.

    An example that no draw breaks gets the draw of highest cross entropy, or keeps its image if no
    draw raises the cross entropy.

    Args:
        draws: The number of draws. Each costs one query, besides that of the clean image.
    """

    needs_gradients = False

    draws: int = 1

    def __post_init__(self) -> None:
        require_at_least(1, draws=self.draws)

    @property
    def title(self) -> str:
        return "Uniform noise" + (f" x{self.draws}" if self.draws > 1 else "")

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)

        def evaluate(images: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits, labels = logits_fn(images), tf.gather(y, row)
            return losses.cross_entropy(logits, labels), ~losses.correct(logits, labels)

        def draw(i: tf.Tensor, s: State) -> State:
            row = s["row"]
            images = tf.gather(threat.random_start(x, noise.fold(seed, i)), row)
            value, broken = evaluate(images, row)
            better = broken | (value > s["value"])
            return {
                "row": row,
                "x_adv": tf.where(rows(better, x), images, s["x_adv"]),
                "value": tf.where(better, value, s["value"]),
                "broken": broken,
                "queries": s["queries"] + 1,
            }

        value, broken = evaluate(x, tf.range(tf.shape(x)[0]))
        zeros = tf.zeros_like(broken, tf.int32)
        state = {"x_adv": x, "value": value, "broken": broken, "queries": zeros + 1}
        end = hunt(draw, state, self.draws)
        return Outcome(tf.stop_gradient(end["x_adv"]), end["broken"], end["queries"], zeros)
